//! Two recordings side by side: what changed, by more than chance, and what it is made of.
//!
//! In: two recordings, in one pass each; memory does not grow with them. Out: a [`Comparison`], and from
//! it JSON (schema 1), a table and Markdown. Requests of one run share batches and time and are
//! not independent: what is compared are means of blocks of time. Method: `docs/compare.md`.

mod blocks;
mod conditions;
mod judge;
mod markdown;
mod model;
mod run;
mod significance;
mod statement;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use conditions::Condition;
pub use model::{
    AccountChange, Comparison, ConditionOutcome, ConditionResult, Figure, FigureChange, Load, Pair,
    PartChange, RunFacts, SeenIn, ServiceComparison, Verdict,
};

use judge::Judge;
use run::{Run, Services};

use crate::export::labels::clean;
use crate::ledger::{Accounts, Component};
use crate::profiles::SEPARATOR;
use crate::profiles::folded::Stacks;
use crate::recording::{Recorded, RecordingError};

/// Stacks that are shown of a service.
const MOST_STACKS: usize = 5;

/// One side of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What to call it.
    pub name: &'a str,
    /// Its recording.
    pub recorded: &'a Recorded,
    /// Its CPU energy by stack, where stacks were recorded.
    pub stacks: Option<&'a Stacks>,
}

/// What to compare, and how strictly.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// How often chance alone may be called a change, e.g. 0.01.
    pub alpha: f64,
    /// This service alone.
    pub service: Option<&'a str>,
    /// What to look for.
    pub conditions: &'a [Condition],
    /// Conditions ask for the change alone, not for its significance.
    pub regardless: bool,
}

/// Compares `b` with `a`.
///
/// # Errors
/// If a recording cannot be read.
pub fn compare(
    a: Side<'_>,
    b: Side<'_>,
    options: Options<'_>,
) -> Result<Comparison, RecordingError> {
    let (in_a, in_b) = (Services::read(a.recorded)?, Services::read(b.recorded)?);
    let run_a = Run::read(a.recorded, &in_a, &in_b)?;
    let run_b = Run::read(b.recorded, &in_b, &in_a)?;
    let names: BTreeSet<&String> = run_a.services.keys().chain(run_b.services.keys()).collect();
    let names = names
        .into_iter()
        .filter(|name| options.service.is_none_or(|only| only == *name));
    let judge = Judge {
        a: &run_a,
        b: &run_b,
        alpha: options.alpha,
    };
    let mut services: Vec<ServiceComparison> = names.map(|name| judge.service(name)).collect();
    judge::conclude(&mut services, options.alpha);
    if let (Some(stacks_a), Some(stacks_b)) = (a.stacks, b.stacks) {
        for service in &mut services {
            service.stacks = changed_stacks(service, stacks_a, stacks_b);
        }
    }
    let conditions = conditions::check(&services, options.conditions, options.regardless);
    Ok(Comparison {
        schema: 1,
        alpha: options.alpha,
        a: facts(a, &run_a),
        b: facts(b, &run_b),
        same_meters: meters(&run_a) == meters(&run_b),
        services,
        watts: watts(&run_a, &run_b),
        conditions,
    })
}

impl Comparison {
    /// One compact line.
    ///
    /// # Errors
    /// None in practice: every key is a string and every figure finite.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

fn facts(side: Side<'_>, run: &Run) -> RunFacts {
    let gains = run.meters.iter().map(|(.., gain)| *gain);
    RunFacts {
        file: side.name.to_owned(),
        simulated: run.report.simulated,
        duration_s: run.report.duration_s,
        gain_error_ratio: gains.reduce(f64::max),
    }
}

fn meters(run: &Run) -> Vec<(Component, &str)> {
    let mut all: Vec<_> = run
        .meters
        .iter()
        .map(|(component, device, ..)| (*component, device.as_str()))
        .collect();
    all.sort_unstable();
    all
}

/// Mean power of each component's meters together.
fn watts(a: &Run, b: &Run) -> Vec<AccountChange> {
    let of = |run: &Run, component: Component, account: &str| {
        let duration = run.report.duration_s.filter(|duration| *duration > 0.0)?;
        let meters = run.report.meters.iter();
        let energies = meters
            .filter(|meter| meter.component == component)
            .filter_map(|meter| {
                let rows = meter.accounts_j.rows();
                let account = rows.into_iter().find(|(name, _)| *name == account);
                account.map_or(meter.energy_j, |(_, energy)| energy)
            });
        energies
            .reduce(|sum, energy| sum + energy)
            .map(|sum| sum / duration)
    };
    let accounts = ["all"].into_iter().chain(Accounts::NAMES);
    let mut all = Vec::new();
    for component in Component::ALL {
        for account in accounts.clone() {
            let values = Pair {
                a: of(a, component, account),
                b: of(b, component, account),
            };
            // An account that is empty in both says nothing.
            if values.a.unwrap_or(0.0) + values.b.unwrap_or(0.0) > 0.0 {
                all.push(AccountChange {
                    component,
                    account,
                    values,
                });
            }
        }
    }
    all
}

/// The service's stacks that changed most, joules a request.
fn changed_stacks(service: &ServiceComparison, a: &Stacks, b: &Stacks) -> Option<Vec<PartChange>> {
    let (requests_a, requests_b) = service.requests.a.zip(service.requests.b)?;
    let mut all: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for (place, stacks) in [a, b].into_iter().enumerate() {
        for (stack, weight) in stacks.iter() {
            let Some((whose, frames)) = stack.split_once(SEPARATOR) else {
                continue;
            };
            if clean(whose) == service.service
                && let Some(sum) = all.entry(frames).or_default().get_mut(place)
            {
                *sum += weight.microjoules;
            }
        }
    }
    let each = |microjoules: u64, requests: u64| microjoules as f64 * 1e-6 / requests.max(1) as f64;
    let mut changes: Vec<PartChange> = all
        .into_iter()
        .map(|(frames, [in_a, in_b])| PartChange {
            part: frames.split(SEPARATOR).collect::<Vec<_>>().join(";"),
            values: Pair {
                a: Some(each(in_a, requests_a)),
                b: Some(each(in_b, requests_b)),
            },
        })
        .collect();
    let size = |change: &PartChange| change.values.difference().map_or(0.0, f64::abs);
    changes.retain(|change| size(change) > 0.0);
    changes.sort_by(|one, other| size(other).total_cmp(&size(one)));
    changes.truncate(MOST_STACKS);
    Some(changes)
}
