//! `perjoule stat`: like perf stat. One table at the end, one line of JSON, or separated fields; of the whole run, of
//! each interval, or the mean of several runs.

mod repeat;

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use self::repeat::{Run, repeat};
use super::measure::{Measure, News, check_services, measure, seconds};
use super::print;
use super::settings::{Record, Target};
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
    #[command(flatten)]
    record: Record,
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

/// How the result is printed.
#[derive(Debug, Clone, Copy)]
enum Form {
    Table,
    Json,
    Separated(Separator),
}

/// Counts until the command or every process named ends, the time is over or a signal comes.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let form = options.form();
    let Options { repeat, full, .. } = options;
    let counting = Measure {
        file,
        verbose,
        target: options.target,
        all: false,
        command: options.command,
        duration: options.duration,
        interval: options.interval.map(Duration::from_millis),
        recording: options.record.record,
        per_thread: options.per_thread,
        listen: Vec::new(),
    };
    if let Some(code) = counting.refused() {
        return Ok(code);
    }
    match repeat {
        Some(repeats) if repeats > 1 => count_often(repeats, &counting, full, form),
        _ => count_once(counting, full, form),
    }
}

fn count_once(counting: Measure<'_>, full: FullEnergy, form: Form) -> Result<ExitCode> {
    let in_intervals = counting.interval.is_some();
    if let (true, Form::Table) = (in_intervals, form) {
        print(INTERVAL_HEADER)?;
    }
    let tell = |time, report: &Report| -> Result<()> {
        Ok(print(&match form {
            Form::Table => report.to_interval(time),
            Form::Json => report.to_interval_json(time)? + "\n",
            Form::Separated(sign) => report.to_separated(sign, Some(time))?,
        })?)
    };
    let measured = measure(counting, |news| {
        if let News::Interval(time, part) = news {
            tell(time, &part.report(full))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let report = measured.summary.report(full);
    if in_intervals {
        tell(measured.seconds, &report)?;
    } else {
        print(&match form {
            Form::Table => report.to_table(),
            Form::Json => report.to_json()? + "\n",
            Form::Separated(sign) => report.to_separated(sign, None)?,
        })?;
    }
    check_services([&report]);
    Ok(ExitCode::from(measured.code))
}

fn count_often(
    repeats: u32,
    counting: &Measure<'_>,
    full: FullEnergy,
    form: Form,
) -> Result<ExitCode> {
    let runs = repeat(repeats, || {
        let measured = measure(counting.clone(), |_| Ok(ControlFlow::Continue(())))?;
        Ok(Run {
            report: measured.summary.report(full),
            code: measured.code,
        })
    })?;
    // As perf has it: a run that fails ends nothing, and the last one's code is told.
    let code = runs.last().map_or(1, |run| run.code);
    let failed = runs.iter().filter(|run| run.code != 0).count();
    let reports: Vec<Report> = runs.into_iter().map(|run| run.report).collect();
    check_services(&reports);
    let runs = reports.len();
    let repeats = Repeats::new(reports);
    print(&match form {
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
