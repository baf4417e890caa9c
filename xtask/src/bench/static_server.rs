//! The agent beside a static server: the cheapest requests there are, as many as the machine can
//! make.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::hooks::{self, Plan};
use super::pairs::Pairs;
use super::servers::{Nginx, Server as _, Watch};
use super::table::{Budget, Row};
use super::{Lengths, memory, step, usage};

/// All figures of this server.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let Some(server) = Nginx::start(folder)? else {
        return Ok(vec![
            Row::new("static server", "", []).remark("no nginx or no wrk here"),
        ]);
    };
    let mut rows = Vec::new();
    let plan = Plan {
        folder,
        settle: Duration::from_secs(1),
        window: lengths.window,
        rounds: lengths.rounds,
    };
    step("nanoseconds per event under plain requests");
    let load = server.load()?;
    rows.extend(hooks::sockets("plain", &server, plan)?);
    drop(load);

    step("nanoseconds per context switch");
    rows.extend(hooks::scheduler(&server, plan, lengths.switches)?);

    step("the agent under 10,000 requests/s");
    let agent = server.agent(Watch::Server)?;
    let (rate, busy) = server.steady(lengths.steady_s, || {
        sleep(Duration::from_secs(1));
        usage::percent_of_a_core(agent.id(), Duration::from_secs(lengths.steady_s - 2))
    })?;
    rows.push(
        Row::new(
            "agent CPU, about 10,000 requests/s (static)",
            "% of a core",
            [busy],
        )
        .budget(Budget::Figure(2.0))
        .remark(format!("it was {rate:.0} requests/s")),
    );
    agent.stop()?;

    step("requests/s with the agent and without");
    let mut rates = Pairs::default();
    let mut costs = Pairs::default();
    let mut busy = Vec::new();
    let mut resident = Vec::new();
    let mut saturate = |on| -> Result<()> {
        let before = usage::cpu_time(server.process())?;
        let rate = server.saturate(lengths.wrk_s)?;
        let used = usage::cpu_time(server.process())?.saturating_sub(before);
        rates.add(on, rate);
        costs.add(on, used.as_secs_f64() * 1e6 / (rate * lengths.wrk_s as f64));
        Ok(())
    };
    for _ in 0..lengths.wrk_turns {
        for on in [false, true, true, false] {
            if !on {
                saturate(on)?;
                continue;
            }
            let agent = server.agent(Watch::Server)?;
            let process = agent.id();
            let window = Duration::from_secs(lengths.wrk_s).mul_f64(0.8);
            std::thread::scope(|scope| -> Result<()> {
                let watched = scope.spawn(|| usage::percent_of_a_core(process, window));
                saturate(on)?;
                busy.extend(watched.join().ok().transpose()?);
                Ok(())
            })?;
            resident.push(usage::resident(process)?);
            agent.stop()?;
        }
    }
    rows.push(Row::new(
        "agent CPU, static server saturated",
        "% of a core",
        busy,
    ));
    rows.extend(memory("static server saturated", &resident));
    rows.push(Row::new(
        "static server without the agent",
        "requests/s",
        rates.off.clone(),
    ));
    rows.push(
        Row::new(
            "static server with the agent",
            "requests/s",
            rates.on.clone(),
        )
        .peer(rates.off.clone())
        .remark("the peer is the run without the agent beside it"),
    );
    rows.push(
        Row::new("static server: requests/s lost", "%", rates.lost_percent())
            .budget(Budget::Figure(10.0)),
    );
    rows.push(
        Row::new(
            "static server: its CPU time per request with the agent",
            "µs",
            costs.on.clone(),
        )
        .peer(costs.off.clone())
        .remark("less moved than requests/s by what else runs on the machine; the peer is the run without the agent beside it"),
    );
    Ok(rows)
}
