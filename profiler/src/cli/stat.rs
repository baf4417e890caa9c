//! `perjoule stat`: like perf stat. One table at the end, one line of JSON, or separated fields; of the whole run, of
//! each interval, or the mean of several runs.

mod command;
mod measure;
mod repeat;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use self::measure::measure;
use super::settings::Target;
use super::{EXIT_USAGE, print, usage};
use crate::report::{FullEnergy, INTERVAL_HEADER, Repeats, Report, Separator};

const EXAMPLES: &str = "\
Examples:
  perjoule stat --port 8000 -- ./load-test         while a load generator runs
  perjoule stat --port 8000 -r 5 -- ./load-test    five times: means, and how sure they are
  perjoule stat --name vllm -I 1000                each second, until Ctrl-C
  perjoule stat --name vllm --duration 60 -x ,     for a spreadsheet

What each figure and field is: docs/stat.md.";

/// What to count, and for how long.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// One line of JSON, schema 1, as the last line on stdout; with -I one an interval
    #[arg(long)]
    json: bool,
    /// One figure a line, with this sign between its fields: , or ; or \t
    #[arg(short = 'x', long, value_name = "SIGN", conflicts_with = "json")]
    field_separator: Option<Separator>,
    /// Run the command this many times, and tell means with 95 % intervals (Student's t)
    #[arg(short, long, value_name = "N", requires = "command",
        conflicts_with_all = ["interval", "record", "per_thread"],
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    repeat: Option<u32>,
    /// Tell the figures of each interval of this many milliseconds, with the time before each
    #[arg(short = 'I', long = "interval-print", value_name = "MS", conflicts_with = "per_thread",
        value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    interval: Option<u64>,
    /// End after this many seconds; a command that still runs then is ended
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
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

/// How the result is printed.
#[derive(Debug, Clone, Copy)]
enum Form {
    Table,
    Json,
    Separated(Separator),
}

/// Counts until the command or every process named ends, the time is over or a signal comes.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    // Before anything is started, and a process in which it is.
    if let Err(error) = options.target.config(file, verbose) {
        return Ok(usage(&error, EXIT_USAGE));
    }
    match options.repeat {
        Some(repeats) if repeats > 1 => run_often(repeats, file, verbose, &options),
        _ => run_once(file, verbose, &options),
    }
}

fn run_once(file: Option<&Path>, verbose: u8, options: &Options) -> Result<ExitCode> {
    let form = options.form();
    if let (Some(_), Form::Table) = (options.interval, form) {
        print(INTERVAL_HEADER)?;
    }
    let measured = measure(file, verbose, options, |time, report| {
        Ok(print(&match form {
            Form::Table => report.to_interval(time),
            Form::Json => report.to_interval_json(time)? + "\n",
            Form::Separated(sign) => report.to_separated(sign, Some(time))?,
        })?)
    })?;
    let report = &measured.report;
    if options.interval.is_none() {
        print(&match form {
            Form::Table => report.to_table(),
            Form::Json => report.to_json()? + "\n",
            Form::Separated(sign) => report.to_separated(sign, None)?,
        })?;
    }
    warn_of_nothing(std::slice::from_ref(report));
    Ok(ExitCode::from(measured.code))
}

fn run_often(
    repeats: u32,
    file: Option<&Path>,
    verbose: u8,
    options: &Options,
) -> Result<ExitCode> {
    let runs = repeat::repeat(repeats, || measure(file, verbose, options, |_, _| Ok(())))?;
    // As perf has it: a run that fails ends nothing, and the last one's code is told.
    let code = runs.last().map_or(1, |run| run.code);
    let failed = runs.iter().filter(|run| run.code != 0).count();
    let reports: Vec<Report> = runs.into_iter().map(|run| run.report).collect();
    warn_of_nothing(&reports);
    let runs = reports.len();
    let repeats = Repeats::new(reports);
    print(&match options.form() {
        Form::Table => repeats.to_table(),
        Form::Json => repeats.to_json()? + "\n",
        Form::Separated(sign) => repeats.to_separated(sign)?,
    })?;
    if let Some(noise) = repeats.noise() {
        eprintln!("perjoule: {noise}");
    }
    if failed > 0 {
        eprintln!("perjoule: the command failed in {failed} of {runs} runs; they are in the means");
    }
    Ok(ExitCode::from(code))
}

impl Options {
    fn form(&self) -> Form {
        match self.field_separator {
            Some(sign) => Form::Separated(sign),
            None if self.json => Form::Json,
            None => Form::Table,
        }
    }
}

fn warn_of_nothing(reports: &[Report]) {
    if reports.iter().all(|report| report.services.is_empty()) {
        eprintln!(
            "perjoule: no service was found: no process that listens on TCP holds a GPU; name one \
             with --port, --pid or --name"
        );
    }
}
