//! The agent beside a static server, as cheap as a request gets: at a steady rate, and saturated.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::servers::{Nginx, Saturated as _, Server as _};
use super::table::{Budget, Row};
use super::{Lengths, memory, step, usage};

/// The rate that the budget names.
const RATE: u32 = 10_000;

/// All figures.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let Some(server) = Nginx::start(folder)? else {
        return Ok(vec![
            Row::new("static server", "", []).remark("no nginx or no wrk here"),
        ]);
    };
    let mut rows = Vec::new();
    step("the agent under 10,000 requests/s");
    rows.extend(steady(&server, lengths)?);
    step("the agent beside a saturated static server");
    rows.extend(saturated(&server, lengths)?);
    Ok(rows)
}

fn steady(server: &Nginx, lengths: Lengths) -> Result<Vec<Row>> {
    let agent = server.agent(None)?;
    let mut windows = Vec::new();
    let (rate, ()) = server.paced(RATE, || {
        sleep(Duration::from_secs(1));
        for _ in 0..lengths.steady_s {
            windows.push(usage::percent_of_a_core(
                agent.id(),
                Duration::from_secs(1),
            )?);
        }
        Ok(())
    })?;
    let drops = agent.ring_drops()?;
    let resident = usage::resident(agent.id())?;
    agent.stop()?;
    let mut rows = vec![
        Row::new(
            format!("agent CPU, {RATE} requests/s (static)"),
            "% of a core",
            windows,
        )
        .budget(Budget::Figure(2.0))
        .remark(format!("it was {rate:.0} requests/s; windows of a second")),
        Row::new("ring drops at that rate", "requests", [drops]).budget(Budget::Figure(0.0)),
    ];
    rows.extend(memory("at that rate", &[resident]));
    Ok(rows)
}

fn saturated(server: &Nginx, lengths: Lengths) -> Result<Vec<Row>> {
    let mut rates = Vec::new();
    let mut costs = Vec::new();
    let mut resident = Vec::new();
    for _ in 0..lengths.pairs {
        let agent = server.agent(None)?;
        sleep(lengths.settle);
        let before = usage::cpu_time(agent.id())?;
        let rate = server.saturate(lengths.saturated_s)?;
        let used = usage::cpu_time(agent.id())?.saturating_sub(before);
        resident.push(usage::resident(agent.id())?);
        costs.push(used.as_secs_f64() * 1e6 / (rate * lengths.saturated_s as f64));
        rates.push(rate);
        agent.stop()?;
    }
    let mut rows = vec![
        Row::new(
            "agent CPU per request, static server saturated",
            "µs",
            costs,
        )
        .remark("what it takes at rest is in it"),
        Row::new("requests/s, static server saturated", "/s", rates),
    ];
    rows.extend(memory("static server saturated", &resident));
    Ok(rows)
}
