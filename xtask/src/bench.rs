//! What the agent itself costs, measured on the machine at hand and held against its budgets:
//! nanoseconds per event beside a peer's, CPU, memory, scrapes, requests/s lost.
//!
//! Ratios are taken within one run; absolute figures move with the machine's mood.

mod bpf;
mod hooks;
mod peers;
mod servers;
mod table;
mod usage;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::project::{is_root, target};
use crate::{demo, setup};
use hooks::Plan;
use servers::{Inference, Nginx, Server, Watch};
use table::{Budget, Row};

/// Debian packages of the load and of the peers; what cannot be had is named in the table.
const PACKAGES: &[(&str, &str)] = &[
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("perf", "linux-perf"),
    ("bpftrace", "bpftrace"),
    ("runqlat", "libbpf-tools"),
];

/// Requests a second: the demo's load, and one that keeps about 22 streams open.
const DEMO_RATE: f64 = 2.5;
const BUSY_RATE: f64 = 5.0;
const SCRAPES: usize = 200;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Options {
    /// A minute instead of five: shorter windows, fewer repetitions, more noise
    #[arg(long)]
    quick: bool,
    /// One line of JSON on stdout instead of the table
    #[arg(long)]
    json: bool,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
struct Lengths {
    /// Requests a second, and about how many streams that keeps open.
    rates: &'static [(f64, u32)],
    idle: Duration,
    ramp: Duration,
    load: Duration,
    /// From attaching to measuring, under streams.
    settle: Duration,
    window: Duration,
    rounds: usize,
    switches: u32,
    wrk_s: u64,
    /// Off, on, on, off.
    wrk_turns: usize,
    steady_s: u64,
    inference_s: Option<u64>,
}

impl Lengths {
    const QUICK: Self = Self {
        rates: &[(BUSY_RATE, 22)],
        idle: Duration::from_secs(3),
        ramp: Duration::from_secs(2),
        load: Duration::from_secs(3),
        settle: Duration::from_secs(2),
        window: Duration::from_millis(1_200),
        rounds: 1,
        switches: 100_000,
        wrk_s: 2,
        wrk_turns: 1,
        steady_s: 3,
        inference_s: None,
    };
    const FULL: Self = Self {
        rates: &[(DEMO_RATE, 8), (BUSY_RATE, 22)],
        idle: Duration::from_secs(12),
        ramp: Duration::from_secs(6),
        load: Duration::from_secs(12),
        settle: Duration::from_millis(2_500),
        window: Duration::from_secs(4),
        rounds: 2,
        switches: 200_000,
        wrk_s: 3,
        wrk_turns: 3,
        steady_s: 8,
        inference_s: Some(10),
    };
}

/// `cargo xtask bench`.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        is_root(),
        "the bench loads BPF programs: run it as root, e.g. with `sudo -E env PATH=$PATH cargo xtask bench`"
    );
    demo::build()?;
    let missing = setup::ensure_packages(PACKAGES);
    if !missing.is_empty() {
        eprintln!("not to be had here: {}", missing.join(", "));
    }
    let folder = target("bench");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot clear target/bench")?;
    }
    fs::create_dir_all(&folder).context("cannot make target/bench")?;

    let lengths = if options.quick {
        Lengths::QUICK
    } else {
        Lengths::FULL
    };
    let busy = read("/proc/loadavg");
    let start = Instant::now();
    let mut rows = inference_server(&folder, lengths)?;
    rows.extend(static_server(&folder, lengths)?);

    let machine = machine(options.quick, start.elapsed(), &busy);
    if options.json {
        println!("{}", table::to_json(&rows, &machine));
    } else {
        println!("{}", table::to_text(&rows));
        println!("{machine}");
    }
    Ok(())
}

/// The agent beside an inference server: at rest, under streams, scraped.
fn inference_server(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let server = Inference::start(folder)?;

    step("the agent at rest and under streams");
    let agent = server.agent(Watch::Server)?;
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

    step("nanoseconds per event under streams");
    let load = server.load(BUSY_RATE)?;
    sleep(lengths.ramp);
    rows.extend(hooks::sockets(
        "streams",
        &server,
        Plan {
            folder,
            settle: lengths.settle,
            window: lengths.window,
            rounds: lengths.rounds,
        },
    )?);
    drop(load);

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
        let agent = on.then(|| server.agent(Watch::Server)).transpose()?;
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

/// The agent beside a static server: as many requests as two cores can make.
fn static_server(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
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
    let mut busy = Vec::new();
    let mut resident = Vec::new();
    for _ in 0..lengths.wrk_turns {
        for on in [false, true, true, false] {
            if !on {
                rates.add(on, server.saturate(lengths.wrk_s)?);
                continue;
            }
            let agent = server.agent(Watch::Server)?;
            let process = agent.id();
            let window = Duration::from_secs(lengths.wrk_s).mul_f64(0.8);
            rates.add(
                on,
                std::thread::scope(|scope| -> Result<f64> {
                    let watched = scope.spawn(|| usage::percent_of_a_core(process, window));
                    let rate = server.saturate(lengths.wrk_s);
                    busy.extend(watched.join().ok().transpose()?);
                    rate
                })?,
            );
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
    Ok(rows)
}

/// Figures of runs without the agent and with it, taken in turns.
#[derive(Debug, Default)]
struct Pairs {
    off: Vec<f64>,
    on: Vec<f64>,
}

impl Pairs {
    fn add(&mut self, on: bool, figure: f64) {
        if on {
            self.on.push(figure);
        } else {
            self.off.push(figure);
        }
    }

    /// Of each pair of neighbours: how much less it is with the agent.
    fn lost_percent(&self) -> Vec<f64> {
        self.off
            .iter()
            .zip(&self.on)
            .map(|(off, on)| (1.0 - on / off) * 100.0)
            .collect()
    }
}

fn memory(when: &str, resident: &[usage::Resident]) -> [Row; 2] {
    let row = |what: &str, of: fn(&usage::Resident) -> f64| {
        Row::new(
            format!("agent memory {what}, {when}"),
            "MB",
            resident.iter().map(of),
        )
        .budget(Budget::Figure(40.0))
    };
    [row("(RSS)", |r| r.now), row("(peak RSS)", |r| r.peak)]
}

fn step(what: &str) {
    eprintln!("measuring: {what}");
}

fn read(file: &str) -> String {
    fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn machine(quick: bool, took: Duration, busy: &str) -> Value {
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "pid_max": read("/proc/sys/kernel/pid_max"),
        // What else ran here: above 0 the absolute figures are too high.
        "load_average_before": busy.split_whitespace().next(),
        "quick": quick,
        "seconds": took.as_secs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_with_the_agent_is_held_against_its_neighbour_without() {
        let mut pairs = Pairs::default();
        // Off, on, on, off, while the machine gets slower.
        for (on, figure) in [(false, 100.0), (true, 90.0), (true, 45.0), (false, 50.0)] {
            pairs.add(on, figure);
        }
        let lost = pairs.lost_percent();
        assert!(
            lost.iter().all(|lost| (lost - 10.0).abs() < 1e-9),
            "{lost:?}"
        );
    }
}
