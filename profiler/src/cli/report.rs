//! `perjoule report`: a recording's summary.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::print;
use crate::recording::{Recorded, RecordingError};
use crate::report::{FullEnergy, Summary};

/// What to print, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// A recording that `perjoule run --record` or `perjoule replay` wrote
    file: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    full: FullEnergy,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Aligned text
    Table,
    /// Markdown for a planner
    Md,
    /// One line of JSON, schema 1
    Json,
}

/// Prints the summary on stdout.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    let report = summary(&options.file)?.report(options.full);
    match options.format {
        Format::Table => print(&report.to_table())?,
        Format::Md => {
            let title = format!("Energy report: {}", options.file.display());
            print(&report.to_markdown(&title))?;
        }
        Format::Json => print(&(report.to_json()? + "\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Sums up a recording, row by row.
fn summary(file: &Path) -> Result<Summary, RecordingError> {
    let recorded = Recorded::open(file)?;
    let mut summary = Summary::new(recorded.simulated);
    recorded.meters(|id, meter| summary.describe_meter(id, &meter))?;
    recorded.floors(|id, floor| summary.set_floor(id, floor))?;
    recorded.services(|id, name, model| summary.describe_service(id, name, model))?;
    // Before the requests: whether a request's tokens are counted is known from the start.
    recorded.tokens(|delta| summary.add_tokens(&delta))?;
    recorded.intervals(|interval| summary.add(&interval))?;
    let _all: ControlFlow<()> = recorded.requests(|request| {
        summary.add_request(&request.booked);
        ControlFlow::Continue(())
    })?;
    if let Some((from, to)) = recorded.window()? {
        summary.set_window(from, to);
    }
    Ok(summary)
}
