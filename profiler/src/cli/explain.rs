//! `perjoule explain`: one request's joules taken apart.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::print;
use super::progress::Progress;
use crate::explain::explain;
use crate::export::labels::clean;
use crate::ledger::ServiceId;
use crate::recording::{Recorded, RecordedRequest, RecordingError};

/// Ids that are offered for one that is not there.
const OFFERED: usize = 3;
/// More would be a table, which `script` prints.
const MOST: u64 = 100;

/// Which requests to take apart.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  perjoule explain perjoule.pj 196610
  perjoule explain perjoule.pj --costliest 3
  perjoule explain perjoule.pj --costliest 1 --service vllm --format json")]
pub(super) struct Options {
    /// A recording
    file: PathBuf,
    /// A request's id, as `perjoule script` prints it
    #[arg(required_unless_present = "costliest")]
    id: Option<String>,
    /// The N requests with most energy
    #[arg(long, value_name = "N", conflicts_with = "id",
        value_parser = clap::value_parser!(u64).range(1..=MOST))]
    costliest: Option<u64>,
    /// Of this service only
    #[arg(long, value_name = "NAME", requires = "costliest")]
    service: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One line of JSON, schema 1
    Json,
}

/// Prints the explanation on stdout.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    let progress = Progress::of(&[(&options.file, 1)]);
    let recorded = Recorded::open(&options.file)?;
    let requests = match &options.id {
        Some(id) => by_id(&options, &recorded, id)?,
        None => costliest(&options, &recorded)?,
    };
    let explanation = explain(&recorded, &requests)?;
    drop(progress);
    print(&match options.format {
        Format::Text => explanation.to_text(),
        Format::Json => explanation.to_json()? + "\n",
    })?;
    Ok(ExitCode::SUCCESS)
}

fn by_id(options: &Options, recorded: &Recorded, id: &str) -> Result<Vec<RecordedRequest>> {
    let found = recorded.requests_of_id(id)?;
    if !found.is_empty() {
        return Ok(found);
    }
    let file = options.file.display();
    let near = nearest(recorded, id)?;
    if near.is_empty() {
        bail!("{file}: no request was booked, so there is none to explain");
    }
    bail!(
        "{file}: no request has the id `{id}`; nearest: {}. `perjoule script {file}` lists all, \
         --costliest 5 takes the costliest",
        near.join(", ")
    )
}

/// The ids that are most like this one.
fn nearest(recorded: &Recorded, id: &str) -> Result<Vec<String>, RecordingError> {
    let mut near: Vec<(f64, String)> = Vec::new();
    let _all: ControlFlow<()> = recorded.requests(|request| {
        let other = match &request.name {
            Some(name) => name.clone(),
            None => request.booked.request.id.0.to_string(),
        };
        near.push((strsim::jaro_winkler(id, &other), other));
        near.sort_by(|one, other| other.0.total_cmp(&one.0));
        near.truncate(OFFERED);
        ControlFlow::Continue(())
    })?;
    Ok(near.into_iter().map(|(_, id)| id).collect())
}

fn costliest(options: &Options, recorded: &Recorded) -> Result<Vec<RecordedRequest>> {
    let file = options.file.display();
    let mut services: Vec<ServiceId> = Vec::new();
    if let Some(wanted) = &options.service {
        let mut names = Vec::new();
        recorded.services(|id, name, _| {
            let name = clean(name);
            if name == *wanted {
                services.push(id);
            }
            names.push(name);
        })?;
        if services.is_empty() {
            names.sort_unstable();
            names.dedup();
            bail!(
                "{file}: no service is called `{wanted}`; its services: {}",
                names.join(", ")
            );
        }
    }
    let most = usize::try_from(options.costliest.unwrap_or(1)).unwrap_or(usize::MAX);
    let found = recorded.costliest(most, &services)?;
    if found.is_empty() {
        bail!(
            "{file}: no request with known energy; `perjoule report {file}` shows what was measured"
        );
    }
    Ok(found)
}
