//! `perjoule report`: a recording's summary.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::print;
use super::progress::Progress;
use crate::report::{self, FullEnergy, Inputs};

/// What to print, and how.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// A recording that `perjoule record`, `run --record` or `replay` wrote
    file: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    full: FullEnergy,
    #[command(flatten)]
    inputs: Inputs,
}

const EXAMPLES: &str = "Examples:
  perjoule report night.pj
  perjoule report night.pj --format html --country DE --price 0.21 --currency EUR > night.html
  perjoule report night.pj --format csv --pue 1.3 --embodied-kg 1500 --lifetime-years 5";

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
    let progress = Progress::of(&[(&options.file, 1)]);
    let report = report::read(&options.file, options.full, &options.inputs)?;
    drop(progress);
    let title = format!("Energy report: {}", options.file.display());
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
