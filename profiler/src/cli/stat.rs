//! `perjoule stat`: like perf stat. One table at the end, or one line of JSON.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::measure::{Measure, check_services, measure, seconds};
use super::print;
use super::settings::{Record, Target};
use crate::report::FullEnergy;

/// What to count, and for how long.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    record: Record,
    /// One line of JSON, schema 1, as the last line on stdout
    #[arg(long)]
    json: bool,
    /// End after this time (seconds, or 10s, 5m, 1h); a command that still runs then is ended
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Also tell each thread's time on CPU, in the run queue and off CPU, and its switches
    #[arg(long)]
    per_thread: bool,
    #[command(flatten)]
    full: FullEnergy,
    /// Runs while counting, two seconds after it began where a GPU's idle power must be learned
    /// first. With --pid, --port or --name it only sets the time (a load generator,
    /// `sleep 10`); without, it is what is counted. Its exit code is kept
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Counts until the command or every process named ends, the time is over or a signal comes.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let counting = Measure {
        file,
        verbose,
        target: options.target,
        all: false,
        command: options.command,
        duration: options.duration,
        recording: options.record.record,
        per_thread: options.per_thread,
        listen: Vec::new(),
    };
    let measured = match measure(counting, |_| ControlFlow::Continue(()))? {
        Ok(measured) => measured,
        Err(code) => return Ok(code),
    };
    let report = measured.summary.report(options.full);
    if options.json {
        print(&(report.to_json()? + "\n"))?;
    } else {
        print(&report.to_table())?;
    }
    check_services(&report);
    Ok(measured.code)
}
