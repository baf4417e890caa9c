//! What the agent itself costs, measured on the machine at hand and held against its budgets:
//! nanoseconds per event beside a peer's, CPU, memory, scrapes, requests/s lost.
//!
//! Ratios are taken within one run; absolute figures move with the machine's mood.

mod bpf;
pub(crate) mod crowd;
mod inference;
mod interval;
mod ledger;
mod paced;
pub(crate) mod pairs;
mod peers;
mod plain;
mod recording;
mod requests;
mod scheduler;
mod scrape;
mod servers;
mod sockets;
mod stopwatch;
pub(crate) mod streams;
mod syscalls;
mod table;
pub(crate) mod usage;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::project::{is_root, target};
use crate::{demo, setup};
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

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// All parts unless one is named
    part: Option<Part>,
    /// Shorter windows, fewer repetitions, more noise
    #[arg(long)]
    quick: bool,
    /// One line of JSON on stdout instead of the table
    #[arg(long)]
    json: bool,
    /// An agent built from another state of the code, to be timed at the same calls
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// At rest, beside an inference server and beside a static one
    Agent,
    /// Following requests: per call, and what servers lose
    Requests,
    /// Per context switch
    Scheduler,
    /// On a machine with many threads and processes
    Crowd,
    /// Per system call
    Syscalls,
    /// The ledger by itself, and a replay
    Ledger,
    /// An hour at 1,000 requests a second: to write, on disk, and its report
    Recording,
    /// `/metrics` by its size, in both formats
    Scrape,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
struct Lengths {
    /// Requests a second, and about how many streams that keeps open.
    rates: &'static [(f64, u32)],
    idle: Duration,
    ramp: Duration,
    load: Duration,
    /// From attaching to measuring.
    settle: Duration,
    window: Duration,
    /// Of runs that are held against each other, in either order.
    pairs: usize,
    /// Of `perf bench sched pipe`, each with so many turns.
    switch_pairs: usize,
    switches: u32,
    saturated_s: u64,
    steady_s: u64,
    inference_s: Option<u64>,
}

impl Lengths {
    const QUICK: Self = Self {
        rates: &[(BUSY_RATE, 22)],
        idle: Duration::from_secs(3),
        ramp: Duration::from_secs(2),
        load: Duration::from_secs(2),
        settle: Duration::from_millis(1_200),
        window: Duration::from_secs(1),
        pairs: 2,
        switch_pairs: 2,
        switches: 50_000,
        saturated_s: 2,
        steady_s: 5,
        inference_s: None,
    };
    const FULL: Self = Self {
        rates: &[(DEMO_RATE, 8), (BUSY_RATE, 22)],
        idle: Duration::from_secs(12),
        ramp: Duration::from_secs(6),
        load: Duration::from_secs(12),
        settle: Duration::from_millis(1_500),
        window: Duration::from_secs(2),
        pairs: 5,
        switch_pairs: 8,
        switches: 100_000,
        saturated_s: 3,
        steady_s: 12,
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
    let wanted = |part| options.part.is_none_or(|only| only == part);
    let mut rows = Vec::new();
    if wanted(Part::Agent) {
        rows.extend(inference::measure(&folder, lengths)?);
        rows.extend(plain::measure(&folder, lengths)?);
    }
    if wanted(Part::Requests) {
        rows.extend(requests::measure(
            &folder,
            lengths,
            options.against.as_deref(),
        )?);
    }
    if wanted(Part::Scheduler) {
        rows.extend(scheduler::measure(&folder, lengths)?);
    }
    if wanted(Part::Crowd) {
        rows.extend(crowd::measure(&folder, lengths)?);
    }
    if wanted(Part::Syscalls) {
        rows.extend(syscalls::measure(&folder, lengths)?);
    }
    if wanted(Part::Ledger) {
        rows.extend(ledger::measure(&folder, lengths)?);
    }
    if wanted(Part::Recording) {
        rows.extend(recording::measure(&folder, lengths)?);
    }
    if wanted(Part::Scrape) {
        rows.extend(scrape::measure(lengths)?);
    }

    let machine = machine(options.quick, start.elapsed(), &busy);
    if options.json {
        println!("{}", table::to_json(&rows, &machine));
    } else {
        println!("{}", table::to_text(&rows));
        println!("{machine}");
    }
    let over: Vec<&str> = table::over(&rows).collect();
    ensure!(over.is_empty(), "over budget: {}", over.join("; "));
    Ok(())
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
