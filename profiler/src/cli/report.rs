//! `perjoule report`: a recording's summary, or a fleet's.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::print;
use super::progress::Progress;
use crate::report::{self, FleetSource, FullEnergy, Inputs};

/// What to print, and how.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// A recording that `perjoule record`, `run --record` or `replay` wrote
    #[arg(required_unless_present = "prometheus")]
    file: Option<PathBuf>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    full: FullEnergy,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    source: FleetSource,
}

const EXAMPLES: &str = "Examples:
  perjoule report night.pj
  perjoule report night.pj --format html --country DE --price 0.21 --currency EUR > night.html
  perjoule report night.pj --format csv --pue 1.3 --embodied-kg 1500 --lifetime-years 5
  perjoule report --prometheus http://prometheus:9090 --from 30d --match 'cluster=\"a\"' --format html > fleet.html
  perjoule report --prometheus https://mimir/prometheus --header 'X-Scope-OrgID: team' --from 2026-11-01T00:00:00Z";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Aligned text
    Table,
    /// One page for a planner, in one file
    Html,
    /// The same in Markdown
    Md,
    /// Every figure, one a line: section,subject,figure,value,unit
    Csv,
    /// One line of JSON, schema 1
    Json,
}

/// Prints the summary on stdout.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    let (report, of) = match &options.file {
        Some(file) => {
            let _progress = Progress::of(&[(file, 1)]);
            let report = report::read(file, options.full, &options.inputs)?;
            (report, file.display().to_string())
        }
        None => {
            let report = report::read_fleet(&options.source, options.full, &options.inputs)?;
            (report, options.source.shown())
        }
    };
    let title = format!("Energy report: {of}");
    let text = match options.format {
        Format::Table => report.to_table(),
        Format::Html => report.to_html(&title),
        Format::Md => report.to_markdown(&title),
        Format::Csv => report.to_csv()?,
        Format::Json => report.to_json()? + "\n",
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
