//! `perjoule diff`: two recordings side by side.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::progress::Progress;
use super::{logging, print, profile};
use crate::compare::{self, Comparison, Condition, ConditionOutcome, Side};
use crate::export::labels::clean;
use crate::recording::Recorded;

/// A condition was met.
const EXIT_MET: u8 = 1;
/// A file cannot be read, or the data do not decide a condition: as diff(1) has it, and clap for a wrong
/// command line.
const EXIT_TROUBLE: u8 = 2;

/// What to compare, and how.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  perjoule diff before.pj after.pj
  perjoule diff before.pj after.pj --format md > comment.md
  perjoule diff main.pj branch.pj --fail-if 'j_per_request>+5%' --fail-if 'ttft_s>+10%'

Figures: j_per_request, j_per_output_token, j_per_token, duration_s, ttft_s (means), requests_per_s.

Exit status: 0, no condition is met; 1, one is; 2, a file cannot be read, the command line is
wrong, or there is not enough data to decide a condition.")]
pub(super) struct Options {
    /// The base: a recording
    a: PathBuf,
    /// What is held against it: another one
    b: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// How often chance alone may be called a change
    #[arg(long, value_name = "P", default_value = "0.01", value_parser = alpha)]
    alpha: f64,
    /// Exit with 1 if a figure's change is beyond this and beyond chance, as in 'j_per_request>+5%';
    /// repeatable
    #[arg(long, value_name = "CONDITION")]
    fail_if: Vec<Condition>,
    /// Conditions ask for the change alone, significant or not
    #[arg(long, requires = "fail_if")]
    regardless: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Aligned text
    Table,
    /// Markdown for a review
    Md,
    /// One line of JSON, schema 1
    Json,
}

/// Prints the comparison on stdout.
pub(super) fn run(options: Options) -> ExitCode {
    let compared = compare(&options).and_then(|comparison| {
        print(&match options.format {
            Format::Table => comparison.to_table(),
            Format::Md => comparison.to_markdown(),
            Format::Json => comparison.to_json()? + "\n",
        })?;
        Ok(comparison)
    });
    match compared {
        Ok(comparison) => verdict(&options, &comparison),
        Err(error) => {
            logging::fail(&error);
            ExitCode::from(EXIT_TROUBLE)
        }
    }
}

fn compare(options: &Options) -> Result<Comparison> {
    let _progress = Progress::of(&[(&options.a, 1), (&options.b, 1)]);
    let (a, b) = (Recorded::open(&options.a)?, Recorded::open(&options.b)?);
    let stacks_a = profile::cpu_stacks(&options.a)?;
    let stacks_b = profile::cpu_stacks(&options.b)?;
    let (name_a, name_b) = (name(&options.a), name(&options.b));
    let a = Side {
        name: &name_a,
        recorded: &a,
        stacks: stacks_a.as_ref(),
    };
    let b = Side {
        name: &name_b,
        recorded: &b,
        stacks: stacks_b.as_ref(),
    };
    let asked = compare::Options {
        alpha: options.alpha,
        service: options.service.as_deref(),
        conditions: &options.fail_if,
        regardless: options.regardless,
    };
    let comparison = compare::compare(a, b, asked)?;
    if let Some(service) = &options.service
        && comparison.services.is_empty()
    {
        let mut names = BTreeSet::new();
        for side in [a, b] {
            side.recorded.services(|_, name, _| {
                names.insert(clean(name));
            })?;
        }
        let names: Vec<String> = names.into_iter().collect();
        bail!(
            "no service `{service}` served a request in {name_a} or {name_b}; their services: {}",
            names.join(", ")
        );
    }
    Ok(comparison)
}

fn name(file: &Path) -> String {
    file.display().to_string()
}

/// One condition that is met is enough; one that no service decides is trouble.
fn verdict(options: &Options, comparison: &Comparison) -> ExitCode {
    let results = &comparison.conditions;
    let met = results
        .iter()
        .find(|result| result.outcome == ConditionOutcome::Met);
    if let Some(met) = met {
        eprintln!("perjoule: {}: {} is met", met.service, met.condition);
        return ExitCode::from(EXIT_MET);
    }
    let is_decided = |condition: &&Condition| {
        let condition = condition.to_string();
        let mut of_it = results.iter().filter(|one| one.condition == condition);
        of_it.any(|result| result.outcome == ConditionOutcome::NotMet)
    };
    if let Some(undecided) = options.fail_if.iter().find(|one| !is_decided(one)) {
        eprintln!(
            "perjoule: {undecided} is not decided: not enough data, or no service that is in both \
             recordings; record longer, or ask for the change alone with --regardless"
        );
        return ExitCode::from(EXIT_TROUBLE);
    }
    ExitCode::SUCCESS
}

fn alpha(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(alpha) if (1e-6..=0.5).contains(&alpha) => Ok(alpha),
        _ => Err("a probability from 0.000001 to 0.5, e.g. 0.01 for 1 %".to_owned()),
    }
}
