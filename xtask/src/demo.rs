//! The demo: a serving stack with a simulated GPU, the real agent on the real kernel, and what it
//! says beside what is true.

mod live;
mod recording;
pub(crate) mod stack;
mod summary;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::project::{cargo, is_root, run as run_command, target};
use crate::setup;
use recording::Recording;
use stack::Stack;
use summary::Summary;

/// How long the agent sees an idle GPU before the load begins.
const QUIET: Duration = Duration::from_secs(3);
/// Intervals wait up to 2 s for late facts; records and ticks need a little more.
const BOOKING: Duration = Duration::from_secs(8);

/// What to show.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How long new requests arrive
    #[arg(long, default_value_t = 40)]
    seconds: u64,
    /// Requests per second, Poisson
    #[arg(long, default_value_t = 2.5)]
    rate: f64,
    /// The load's seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// Leave the stack and /metrics up until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// What the errors of the energy per request may be at some rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bars {
    pub(crate) rate: f64,
    pub(crate) median: f64,
    pub(crate) p95: f64,
}

/// Builds the agent and the stack as users run them.
pub(crate) fn build() -> Result<()> {
    setup::ensure()?;
    run_command(cargo().args(["build", "--release", "--quiet"]).args([
        "--package=profiler",
        "--package=nvml-sim",
        "--package=inference-sim",
        // In the same run, so that nothing is built twice.
        "--package=accuracy",
    ]))
}

/// `cargo xtask demo`.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        is_root(),
        "the demo loads BPF programs: run it as root, e.g. with `sudo -E env PATH=$PATH cargo xtask demo`"
    );
    build()?;
    if let Some(driver) = nvidia_driver() {
        return measure_real(options, &driver);
    }
    let summary = measure(options, true)?;
    if options.json {
        println!("{}", summary.to_json());
    }
    Ok(())
}

/// Runs the demo at one rate and holds it against the bars.
pub(crate) fn check(bars: &Bars) -> Result<()> {
    let options = Options {
        seconds: 40,
        rate: bars.rate,
        seed: 1,
        json: true,
        keep: false,
    };
    let summary = measure(&options, false)?;
    println!("{}", summary.to_json());
    summary.hold_against(bars)
}

/// Version of the NVIDIA driver, if one is loaded.
fn nvidia_driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

fn measure(options: &Options, live: bool) -> Result<Summary> {
    eprintln!(
        "No NVIDIA driver here: the GPU is simulated (tests/nvml-sim), and so are its joules. \
         Kernel, sockets, probes and agent are real."
    );
    let folder = target("demo");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot clear target/demo")?;
    }
    fs::create_dir_all(&folder).context("cannot make target/demo")?;

    let mut stack = Stack::start(&folder)?;
    eprintln!(
        "serving on {}, metrics on {}",
        stack.url(),
        stack.metrics_url()
    );
    eprintln!("learning the idle floor for {} s", QUIET.as_secs());
    sleep(QUIET);

    let mut recording = Recording::follow(&stack.recording());
    let mut load = stack.load(options.rate, options.seconds, options.seed)?;
    let start = Instant::now();
    let mut table = live::Table::new();
    let mut ended = None;
    let load_summary = loop {
        sleep(Duration::from_secs(1));
        recording.read_on()?;
        if live {
            table.row(start.elapsed(), &recording);
        }
        stack.still_up()?;
        if ended.is_none() && load.has_ended()? {
            ended = Some(Instant::now());
        }
        // All that was sent has been served: wait until it is booked, too.
        if let Some(at) = ended {
            let served = stack.truths()?.len();
            if recording.requests.len() >= served || at.elapsed() > BOOKING {
                break load.summary()?;
            }
        }
    };
    if !options.keep {
        stack.stop_agent()?;
    }
    recording.read_on()?;
    let summary = Summary::new(&recording, &stack, &load_summary)?;
    write_reports(&folder, &stack.recording())?;
    eprint!("{}", summary.to_text());
    eprintln!("{REPORTS}");
    if options.keep {
        eprintln!(
            "metrics stay up at {}; end with Ctrl-C",
            stack.metrics_url()
        );
        stack.wait_for_interrupt()?;
    }
    stack.stop()?;
    Ok(summary)
}

/// On a machine with a GPU and its driver: the real one, under whatever is served there.
fn measure_real(options: &Options, driver: &str) -> Result<()> {
    ensure!(
        !options.keep,
        "--keep is for the simulated stack; on this machine run `perjoule run`"
    );
    eprintln!(
        "NVIDIA driver found ({driver}): measuring the real GPU for {} s. Services are found by \
         their GPU contexts; start your own server and load.",
        options.seconds
    );
    let folder = target("demo");
    fs::create_dir_all(&folder).context("cannot make target/demo")?;
    let recording = folder.join("perjoule.pj");
    let mut stat = Command::new(target("release/perjoule"));
    stat.args([
        "stat",
        "--stacks",
        "--duration",
        &options.seconds.to_string(),
        "--record",
    ])
    .arg(&recording);
    if options.json {
        stat.arg("--json");
    }
    run_command(&mut stat)?;
    write_reports(&folder, &recording)?;
    eprintln!("{REPORTS}");
    Ok(())
}

/// What there is to look at after a run.
const REPORTS: &str = "report for a planner: target/demo/report.md; where the energy went: \
                       target/demo/flamegraph.svg";

fn write_reports(folder: &Path, recording: &Path) -> Result<()> {
    fs::write(folder.join("report.md"), stack::report(recording)?)
        .context("cannot write the report")?;
    fs::write(
        folder.join("flamegraph.svg"),
        stack::flame_graph(recording)?,
    )
    .context("cannot write the flame graph")
}
