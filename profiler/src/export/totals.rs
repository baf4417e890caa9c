//! What the exposition is made from: integer totals that only grow, and the latest readings.
//!
//! One writer ([`super::Metrics`]) owns them; each snapshot is a copy, so that a scrape never
//! waits for the writer and never sees half an interval.

use std::collections::BTreeMap;

use super::histogram::{DURATION, ENERGY, Histogram};
use super::labels::Names;
use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, Aggregate, BookedInterval, BookedRequest, Class, Component, Outcome, Route, Source,
    TokenDelta,
};
use crate::units::{Microjoules, Watts};

/// All totals of one agent.
#[derive(Debug, Clone)]
pub(super) struct Totals {
    pub(super) version: String,
    pub(super) meters: BTreeMap<(Component, String), MeterTotals>,
    pub(super) service_names: Names,
    /// By the number that `service_names` gave.
    pub(super) services: Vec<ServiceTotals>,
    pub(super) gpus: BTreeMap<String, Gpu>,
    pub(super) sources: BTreeMap<&'static str, SourceState>,
    pub(super) probes: BTreeMap<(&'static str, &'static str), bool>,
    pub(super) probe_costs: BTreeMap<&'static str, ProbeCost>,
    pub(super) dropped: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// The totals of a number that `service_names` gave.
    pub(super) fn service(&mut self, number: usize) -> Option<&mut ServiceTotals> {
        if self.services.len() <= number {
            self.services.resize_with(number + 1, Default::default);
        }
        self.services.get_mut(number)
    }
}

/// One device's part of the ledger. A device whose meter changes (driver reload) keeps its sums.
#[derive(Debug, Clone, Default)]
pub(super) struct MeterTotals {
    /// By source; more than one only if it changed in the agent's life.
    pub(super) energy: Vec<(Source, Microjoules)>,
    /// In the order of [`Accounts::NAMES`].
    pub(super) accounts: [Microjoules; 8],
    pub(super) gap_nanos: u64,
    pub(super) gain_error_ratio: f64,
}

impl MeterTotals {
    pub(super) fn book(&mut self, source: Source, interval: &BookedInterval) {
        match self.energy.iter_mut().find(|(known, _)| *known == source) {
            Some((_, sum)) => *sum += interval.energy,
            None => self.energy.push((source, interval.energy)),
        }
        for (sum, energy) in self.accounts.iter_mut().zip(interval.accounts.values()) {
            *sum += energy;
        }
    }

    /// Meter less accounts, in microjoules: 0 unless the ledger is broken.
    pub(super) fn residual(&self) -> i128 {
        let energy: i128 = self.energy.iter().map(|(_, sum)| i128::from(sum.0)).sum();
        let accounts: i128 = self.accounts.iter().map(|sum| i128::from(sum.0)).sum();
        energy - accounts
    }

    pub(super) fn agent(&self) -> Microjoules {
        Accounts::NAMES
            .iter()
            .zip(self.accounts)
            .filter(|(name, _)| **name == "agent")
            .map(|(_, energy)| energy)
            .sum()
    }
}

/// One service name's part. A finished process keeps its joules here.
#[derive(Debug, Clone, Default)]
pub(super) struct ServiceTotals {
    pub(super) model: Option<String>,
    pub(super) energy: BTreeMap<Component, Parts>,
    pub(super) requests: BTreeMap<(Route, &'static str, &'static str), u64>,
    pub(super) sessions: u64,
    pub(super) request_energy: BTreeMap<(Route, Class), Histogram<{ ENERGY.len() }>>,
    pub(super) duration: BTreeMap<Route, Histogram<{ DURATION.len() }>>,
    pub(super) first_token: BTreeMap<Route, Histogram<{ DURATION.len() }>>,
    pub(super) engine: Option<String>,
    pub(super) engine_version: Option<String>,
    pub(super) engine_running: Option<u64>,
    pub(super) engine_waiting: Option<u64>,
    /// True while the engine's own counter of output tokens is read: streams are not counted.
    pub(super) reads_server: bool,
    pub(super) server_tokens: TokenTotals,
    pub(super) chunk_tokens: TokenTotals,
    pub(super) active: Aggregate,
    pub(super) cpu_nanos: Option<u64>,
    pub(super) syscalls: BTreeMap<&'static str, u64>,
}

/// Tokens from one source, and the active energy of the requests they belong to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TokenTotals {
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    pub(super) energy: Option<Microjoules>,
}

/// A service's energy on one component.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts {
    pub(super) requests: Microjoules,
    pub(super) overhead: Microjoules,
}

impl ServiceTotals {
    /// Takes what the engine counted: from now on streams are not counted.
    pub(super) fn count(&mut self, delta: &TokenDelta) {
        let add = |sum: &mut Option<u64>, new: Option<u64>| {
            if let Some(new) = new {
                *sum.get_or_insert_default() += new;
            }
        };
        add(&mut self.server_tokens.input, delta.input);
        add(&mut self.server_tokens.output, delta.output);
        self.reads_server |= delta.output.is_some();
    }

    pub(super) fn book(&mut self, booked: &BookedRequest) {
        let request = &booked.request;
        if request.begins_session() {
            self.sessions += 1;
            return;
        }
        let outcome = request.end.map_or(Outcome::Incomplete, |end| end.outcome);
        *self
            .requests
            .entry((
                request.route,
                request.code().unwrap_or("none"),
                outcome.name(),
            ))
            .or_default() += 1;
        let active = booked.active();
        if let Some(energy) = active {
            self.request_energy
                .entry((request.route, booked.class))
                .or_default()
                .observe(&ENERGY, energy.0);
        }
        self.active.add(booked);
        if let Some(energy) = active
            && self.reads_server
        {
            *self.server_tokens.energy.get_or_insert_default() += energy;
        }
        if let Some(end) = request.end
            && outcome != Outcome::Incomplete
        {
            self.duration
                .entry(request.route)
                .or_default()
                .observe(&DURATION, end.at.since(request.start));
        }
        if let Some(chunks) = request.output_tokens() {
            if !self.reads_server {
                *self.chunk_tokens.output.get_or_insert_default() += chunks;
                if let Some(energy) = active {
                    *self.chunk_tokens.energy.get_or_insert_default() += energy;
                }
            }
            if let Some(first) = request.first_data {
                self.first_token
                    .entry(request.route)
                    .or_default()
                    .observe(&DURATION, first.since(request.start));
            }
        }
    }
}

/// A GPU's facts and latest readings.
#[derive(Debug, Clone, Default)]
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) power: Option<Watts>,
    pub(super) limit: Option<Watts>,
}

/// Whether a source works, and when it last did.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceState {
    pub(super) up: bool,
    pub(super) latest: Option<Timestamp>,
}

/// A kernel program's own cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProbeCost {
    pub(super) runs: u64,
    pub(super) run_nanos: u64,
}
