//! `perjoule report`: a journal's summary.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::print;
use crate::ledger::Booked;
use crate::recording;
use crate::report::Summary;

/// What to print, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// A journal that `perjoule run --journal` wrote
    file: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
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
    let recorded = recording::read(&options.file)?;
    let mut summary = Summary::new(recorded.simulated);
    for (id, meter) in &recorded.meters {
        summary.describe_meter(*id, meter);
    }
    for (id, name) in &recorded.services {
        summary.describe_service(*id, name, None);
    }
    for booked in &recorded.booked {
        summary.add(booked);
    }
    let intervals = || {
        recorded.booked.iter().filter_map(|booked| match booked {
            Booked::Interval(interval) => Some(interval),
            _ => None,
        })
    };
    if let (Some(from), Some(to)) = (
        intervals().map(|i| i.from).min(),
        intervals().map(|i| i.to).max(),
    ) {
        summary.set_window(from, to);
    }
    let report = summary.report();
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
