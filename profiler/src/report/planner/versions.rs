//! What a request cost with each version of what serves it: the engine, its version, and the model.
//!
//! Requests do not name their version: theirs is the one that was told last before they began.

use super::model::VersionPlan;
use super::{Mean, Planner, ServiceSums, TOKENS_KNOWN};
use crate::clock::Timestamp;
use crate::ledger::{Aggregate, BookedRequest};
use crate::units::Microjoules;

/// One version of a service, and the requests that it served.
#[derive(Debug)]
pub(super) struct Version {
    engine: String,
    model: Option<String>,
    /// When the first of its requests began.
    first: Option<Timestamp>,
    requests: u64,
    charged: u64,
    active: Aggregate,
    input: Mean,
    output: Mean,
    /// Of the requests whose output tokens are known.
    output_energy: Option<Microjoules>,
}

/// Since when which version serves, in order: places in the service's versions.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<(Timestamp, usize)>);

impl Told {
    pub(super) fn tell(&mut self, at: Timestamp, version: usize) {
        if self.0.last().is_none_or(|(_, latest)| *latest != version) {
            self.0.push((at, version));
        }
    }

    /// The version that was told last; before the first one was told, it served already.
    pub(super) fn at(&self, start: Timestamp) -> Option<usize> {
        let told = self.0.partition_point(|(at, _)| *at <= start);
        self.0
            .get(told.saturating_sub(1))
            .map(|(_, version)| *version)
    }
}

impl Version {
    pub(super) fn add(&mut self, booked: &BookedRequest) {
        let start = booked.request.start;
        self.first = Some(self.first.map_or(start, |first| first.min(start)));
        self.requests += 1;
        self.active.add(booked);
        let active = booked.active();
        self.charged += u64::from(active.is_some());
        let tokens = booked.token_count();
        let output = tokens.and_then(|tokens| tokens.output);
        self.input.add(tokens.and_then(|tokens| tokens.input));
        self.output.add(output);
        if let Some(active) = active.filter(|_| output.is_some()) {
            *self.output_energy.get_or_insert_default() += active;
        }
    }

    /// `plans`: the same of the versions before.
    fn plan(&self, service: &str, from: Timestamp, plans: &[VersionPlan]) -> VersionPlan {
        let from_s = self.first.map_or(0.0, |first| first.seconds_since(from));
        let before = before(plans, service, from_s);
        let error_ratio = self.active.error_ratio();
        // Beyond a bound of 100 % a sum is no figure.
        let joules = |energy: Option<Microjoules>| {
            energy
                .filter(|_| error_ratio.is_some() || self.active.class().is_none())
                .map(|energy| energy.joules().0)
        };
        let each = |joules: Option<f64>, count: u64| {
            let joules = joules.filter(|_| count > 0)?;
            Some(joules / count as f64)
        };
        let active = joules(self.active.active());
        let tokens_known = self.output.count as f64 >= TOKENS_KNOWN * self.requests as f64;
        let j_per_request = each(active, self.charged);
        let j_per_output_token =
            each(joules(self.output_energy), self.output.sum).filter(|_| tokens_known);
        VersionPlan {
            service: service.to_owned(),
            model: self.model.clone(),
            engine: self.engine.clone(),
            from_s,
            requests: self.requests,
            active_j: active,
            error_ratio,
            j_per_request,
            j_per_output_token,
            mean_input_tokens: self.input.value(),
            mean_output_tokens: self.output.value(),
            j_per_request_change: change(j_per_request, before.and_then(|plan| plan.j_per_request)),
            j_per_output_token_change: change(
                j_per_output_token,
                before.and_then(|plan| plan.j_per_output_token),
            ),
        }
    }
}

/// The version before one that came at `from_s`: of the same service, the last that came earlier. `plans` are in order.
pub(in crate::report) fn before<'a>(
    plans: &'a [VersionPlan],
    service: &str,
    from_s: f64,
) -> Option<&'a VersionPlan> {
    let mut earlier = plans.iter().rev();
    earlier.find(|plan| plan.service == service && plan.from_s < from_s)
}

/// 0.1 is 10 % more than before.
pub(in crate::report) fn change(now: Option<f64>, before: Option<f64>) -> Option<f64> {
    let change = now? / before? - 1.0;
    change.is_finite().then_some(change)
}

impl ServiceSums {
    /// The place of this version.
    pub(super) fn version(&mut self, engine: &str, model: Option<String>) -> usize {
        let is_it = |version: &Version| version.engine == engine && version.model == model;
        let known = self.versions.iter().position(is_it);
        known.unwrap_or_else(|| {
            self.versions.push(Version {
                engine: engine.to_owned(),
                model,
                first: None,
                requests: 0,
                charged: 0,
                active: Aggregate::default(),
                input: Mean::default(),
                output: Mean::default(),
                output_energy: None,
            });
            self.versions.len() - 1
        })
    }
}

impl Planner {
    /// Of services of which several versions served: those that cost most first, and each one's versions
    /// as they came.
    pub(super) fn version_plans(&self) -> Vec<VersionPlan> {
        let mut services: Vec<(&ServiceSums, Vec<&Version>)> = self
            .services
            .iter()
            .map(|service| {
                let versions = service.versions.iter();
                let mut served: Vec<&Version> =
                    versions.filter(|version| version.requests > 0).collect();
                served.sort_by_key(|version| version.first);
                (service, served)
            })
            .filter(|(_, served)| served.len() > 1)
            .collect();
        services.sort_by(|(one, _), (other, _)| {
            let by_cost = other.active.cmp(&one.active);
            by_cost.then_with(|| one.name.cmp(&other.name))
        });
        let mut plans: Vec<VersionPlan> = Vec::new();
        for (service, served) in services {
            for version in served {
                let plan = version.plan(&service.name, self.window.0, &plans);
                plans.push(plan);
            }
        }
        plans
    }
}
