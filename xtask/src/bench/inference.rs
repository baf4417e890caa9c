//! The agent beside an inference server: at rest, under streams, scraped.

use std::path::Path;
use std::thread::sleep;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::pairs::Pairs;
use super::servers::{Inference, Server as _};
use super::table::{self, Budget, Row};
use super::{DEMO_RATE, Lengths, bpf, memory, step, usage};

const SCRAPES: usize = 200;

/// All figures of this server.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let server = Inference::start(folder)?;

    step("the agent at rest and under streams");
    let mut first = Vec::new();
    for _ in 0..lengths.pairs {
        let agent = server.agent(None)?;
        first.push(agent.first_figure()?);
        agent.stop()?;
    }
    rows.push(
        Row::new("first figure after the start", "s", first)
            .budget(Budget::Figure(2.0))
            .remark("from the start of the program until /metrics shows booked joules"),
    );
    let agent = server.agent(None)?;
    // It looks around at its start: at rest is what comes after.
    sleep(lengths.ramp);
    let idle = usage::percent_of_a_core(agent.id(), lengths.idle)?;
    rows.push(
        Row::new("agent CPU, attached, no requests", "% of a core", [idle])
            .budget(Budget::Figure(0.5)),
    );
    for &(rate, streams) in lengths.rates {
        let _load = server.load(rate)?;
        sleep(lengths.ramp);
        let busy = usage::percent_of_a_core(agent.id(), lengths.load)?;
        rows.push(Row::new(
            format!("agent CPU, {rate} requests/s (about {streams} streams)"),
            "% of a core",
            [busy],
        ));
    }
    rows.extend(memory("under streams", &[usage::resident(agent.id())?]));
    let mebibytes = bpf::map_bytes_of(agent.id()) as f64 / f64::from(1 << 20);
    rows.push(
        Row::new("kernel memory of all maps", "MiB", [mebibytes]).budget(Budget::Figure(32.0)),
    );
    let programs = bpf::programs_of(agent.id());
    let syscalls = programs.iter().filter(|p| p.name.starts_with("sys_"));
    rows.push(
        Row::new(
            "programs at system call hooks by default",
            "",
            [syscalls.count() as f64],
        )
        .budget(Budget::Figure(0.0)),
    );
    let scrapes = usage::scrape(&agent.metrics_url, SCRAPES)?;
    let low_high = [scrapes.milliseconds.first(), scrapes.milliseconds.last()];
    rows.push(
        Row::new("scrape", "ms", table::median(&scrapes.milliseconds))
            .budget(Budget::Figure(5.0))
            .remark(format!(
                "{SCRAPES} scrapes of {} series, {} bytes, fastest and slowest {:.2?} ms; \
                 the budget is for 2,000 series",
                scrapes.series,
                scrapes.bytes,
                low_high.into_iter().flatten().collect::<Vec<_>>()
            )),
    );
    agent.stop()?;

    if let Some(seconds) = lengths.inference_s {
        step("what the inference server's clients see");
        // Requests of the load before are still being answered.
        drop(server);
        rows.extend(inference_clients(&Inference::start(folder)?, seconds)?);
    }
    Ok(rows)
}

/// The same requests at the same times, without the agent and with it.
fn inference_clients(server: &Inference, seconds: u64) -> Result<Vec<Row>> {
    let mut rates = Pairs::default();
    let mut waits = Pairs::default();
    for on in [false, true, true, false] {
        let agent = on.then(|| server.agent(None)).transpose()?;
        let seen = server.load_for(DEMO_RATE, seconds)?;
        if let Some(agent) = agent {
            agent.stop()?;
        }
        let number = |name: &str| {
            seen.get(name)
                .and_then(Value::as_f64)
                .with_context(|| format!("the load stated no {name}"))
        };
        let took = (number("last_end_ns")? - number("first_start_ns")?) * 1e-9;
        rates.add(on, number("tokens_out")? / took);
        waits.add(on, number("ttft_p50_s")?);
    }
    Ok(vec![
        Row::new(
            format!("streams at {DEMO_RATE} requests/s: tokens/s lost"),
            "%",
            rates.lost_percent(),
        )
        .budget(Budget::Figure(1.0))
        .remark("the same requests at the same times; the simulated GPU sets the pace"),
        Row::new(
            format!("streams at {DEMO_RATE} requests/s: time to first token added"),
            "%",
            waits.lost_percent().into_iter().map(|lost| -lost),
        ),
    ])
}
