//! The cost of following requests: per call at the socket hooks, and what servers lose that have
//! nothing else to do.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::pairs::Pairs;
use super::servers::{Nginx, Saturated, Streams};
use super::sockets::{self, Load, Plan};
use super::table::{Budget, Row};
use super::{Lengths, memory, step, usage};

/// Rounds of work before an event: some tens of microseconds, which is little for an engine's
/// front end.
const WORK: u64 = 10_000;

/// All figures.
pub(super) fn measure(folder: &Path, lengths: Lengths, against: Option<&Path>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let plan = Plan {
        folder,
        against,
        settle: lengths.settle,
        window: lengths.window,
        pairs: lengths.pairs,
    };
    let nginx = Nginx::start(folder)?;
    match &nginx {
        Some(server) => {
            step("nanoseconds per call under plain requests");
            let load = server.load()?;
            rows.extend(sockets::measure(Load::Plain, server, plan)?);
            drop(load);
        }
        None => rows.push(Row::new("static server", "", []).remark("no nginx or no wrk here")),
    }

    step("nanoseconds per call under streams");
    let server = Streams::start(folder, 0)?;
    let load = server.load()?;
    rows.extend(sockets::measure(Load::Streams, &server, plan)?);
    drop(load);
    drop(server);

    if let Some(server) = &nginx {
        step("a static server with the agent and without");
        rows.extend(lost("static server", 10.0, server, lengths)?);
    }
    step("a streaming server with the agent and without");
    rows.extend(lost(
        "streaming server",
        2.0,
        &Streams::start(folder, WORK)?,
        lengths,
    )?);
    Ok(rows)
}

/// What `server` loses, in pairs: off and on, on and off.
fn lost(name: &str, budget: f64, server: &dyn Saturated, lengths: Lengths) -> Result<Vec<Row>> {
    let mut rates = Pairs::default();
    let mut costs = Pairs::default();
    let (mut busy, mut resident, mut drops) = (Vec::new(), Vec::new(), 0.0);
    for pair in 0..lengths.pairs {
        for on in [pair % 2 != 0, pair % 2 == 0] {
            let agent = on.then(|| server.agent(None)).transpose()?;
            if agent.is_some() {
                // It learns who is who.
                sleep(Duration::from_millis(500));
            }
            let cpu = |process| usage::cpu_time(process).map(|time| time.as_secs_f64());
            let before = cpu(server.process())?;
            let agent_before = agent.as_ref().map(|agent| cpu(agent.id())).transpose()?;
            let rate = server.saturate(lengths.saturated_s)?;
            let seconds = lengths.saturated_s as f64;
            rates.add(on, rate);
            costs.add(
                on,
                (cpu(server.process())? - before) * 1e6 / (rate * seconds),
            );
            if let (Some(agent), Some(before)) = (agent, agent_before) {
                busy.push((cpu(agent.id())? - before) * 100.0 / seconds);
                resident.push(usage::resident(agent.id())?);
                drops += agent.ring_drops()?;
                agent.stop()?;
            }
        }
    }
    let mut rows = vec![
        Row::new(format!("agent CPU, {name} saturated"), "% of a core", busy),
        Row::new(format!("ring drops, {name} saturated"), "requests", [drops])
            .budget(Budget::Figure(0.0)),
    ];
    rows.extend(memory(&format!("{name} saturated"), &resident));
    rows.push(
        Row::new(format!("{name}: requests/s"), "/s", rates.on.clone())
            .peer(rates.off.clone())
            .remark("the peer is the run without the agent beside it"),
    );
    rows.push(
        Row::new(
            format!("{name}: requests/s lost"),
            "%",
            rates.lost_percent(),
        )
        .budget(Budget::Figure(budget)),
    );
    rows.push(
        Row::new(
            format!("{name}: its CPU time per request"),
            "µs",
            costs.on.clone(),
        )
        .peer(costs.off.clone())
        .remark(
            "less moved than requests/s by what else runs on the machine; the peer is the \
                 run without the agent beside it",
        ),
    );
    Ok(rows)
}
