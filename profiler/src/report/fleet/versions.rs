//! What a request cost with each version of what serves a model in the fleet: the engine and its version.

use std::collections::BTreeMap;

use super::gathered::named;
use super::sums::{Quantity, Sums};
use crate::report::planner::TOKENS_KNOWN;
use crate::report::planner::model::VersionPlan;
use crate::report::planner::versions::{before, change};

/// A version that served requests.
pub(super) struct Served<'a> {
    pub(super) model: &'a str,
    /// With its version; empty where its metrics told none.
    pub(super) engine: &'a str,
    /// When the first part of the period began in which it did.
    pub(super) from_s: f64,
    pub(super) sums: &'a Sums,
}

impl Served<'_> {
    fn active(&self) -> Option<f64> {
        self.sums.get(Quantity::Account("requests"))
    }

    /// `plans`: the same of the versions before.
    fn plan(&self, plans: &[VersionPlan]) -> VersionPlan {
        let service = named(self.model, "not known");
        let before = before(plans, &service, self.from_s);
        let sums = self.sums;
        let active = Quantity::Account("requests");
        let counted = sums.ratio(Quantity::TokenJoules, active);
        let j_per_request = sums.ratio(active, Quantity::Requests);
        let j_per_output_token = sums.ratio(Quantity::TokenJoules, Quantity::OutputTokens);
        VersionPlan {
            service,
            model: None,
            engine: self.engine.to_owned(),
            from_s: self.from_s,
            requests: sums.count(Quantity::Requests).unwrap_or(0),
            active_j: self.active(),
            error_ratio: None,
            j_per_request,
            j_per_output_token,
            mean_input_tokens: None,
            mean_output_tokens: sums
                .ratio(Quantity::OutputTokens, Quantity::Requests)
                .filter(|_| counted.is_some_and(|ratio| ratio >= TOKENS_KNOWN)),
            j_per_request_change: change(j_per_request, before.and_then(|plan| plan.j_per_request)),
            j_per_output_token_change: change(
                j_per_output_token,
                before.and_then(|plan| plan.j_per_output_token),
            ),
        }
    }
}

/// Of models that several versions served: those that cost most first, and each one's versions as they came.
pub(super) fn plans<'a>(served: impl Iterator<Item = Served<'a>>) -> Vec<VersionPlan> {
    let mut by_model: BTreeMap<&str, Vec<Served<'_>>> = BTreeMap::new();
    for version in served.filter(|version| !version.engine.is_empty()) {
        by_model.entry(version.model).or_default().push(version);
    }
    by_model.retain(|_, versions| versions.len() > 1);
    let mut models: Vec<Vec<Served<'_>>> = by_model.into_values().collect();
    let cost = |versions: &[Served<'_>]| versions.iter().filter_map(Served::active).sum::<f64>();
    models.sort_by(|one, other| cost(other).total_cmp(&cost(one)));
    let mut plans: Vec<VersionPlan> = Vec::new();
    for mut versions in models {
        // Of those that came at once, the next one is held against the one that served most.
        versions.sort_by(|one, other| {
            let by_time = one.from_s.total_cmp(&other.from_s);
            by_time.then_with(|| {
                one.active()
                    .unwrap_or(0.0)
                    .total_cmp(&other.active().unwrap_or(0.0))
            })
        });
        for version in versions {
            let plan = version.plan(&plans);
            plans.push(plan);
        }
    }
    plans
}
