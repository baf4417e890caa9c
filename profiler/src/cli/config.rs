//! `perjoule config check`: whether a configuration is understood, and all that is wrong with it.

use std::env;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::print;
use crate::agent::config::check::{check, file_to_check};
use crate::finding::Status;

const EXAMPLES: &str = "\
Examples:
  perjoule config check
  perjoule config check perjoule.toml
  perjoule --config perjoule.toml config check";

/// What to do with it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say all that is wrong with a file and the PERJOULE_* variables. Exit code: 0 nothing, 1 the
    /// agent would start and do something else than is meant, 2 it would not start
    #[command(after_help = EXAMPLES)]
    Check {
        /// The file [default: --config, else /etc/perjoule/perjoule.toml if it exists]
        #[arg(value_name = "FILE")]
        path: Option<PathBuf>,
    },
}

/// Exit codes are those of `doctor`.
pub(super) fn run(file: Option<PathBuf>, options: Options) -> Result<ExitCode> {
    let Action::Check { path } = options.action;
    let file = file_to_check(path.or(file));
    let problems = check(file.as_deref(), &variables());
    let mut text = String::new();
    for problem in &problems {
        writeln!(
            text,
            "{:<4}  {:<28}  {}",
            problem.status.label(),
            problem.key,
            problem.cause
        )?;
        writeln!(text, "{:<34}  fix: {}", "", problem.next)?;
    }
    let worst = problems.iter().map(|problem| problem.status).max();
    let worst = worst.unwrap_or(Status::Pass);
    if worst == Status::Pass {
        match &file {
            Some(file) => writeln!(text, "{}: all is understood", file.display())?,
            None => writeln!(text, "no file; the defaults and the variables apply")?,
        }
    }
    print(&text)?;
    Ok(ExitCode::from(worst.exit_code()))
}

/// Those that are text; the agent reads no others.
fn variables() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    env::vars_os().filter_map(text).collect()
}
