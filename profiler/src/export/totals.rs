//! What the exposition is made from: integer totals that only grow, and the latest readings.
//!
//! One writer ([`super::Metrics`]) owns them; each snapshot is a copy, so that a scrape never
//! waits for the writer and never sees half an interval.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::activity::{CudaTotals, HardwareTotals};
use super::aliases::Aliases;
use super::exemplars::{Moment, Sampled};
use super::fold::{Finished, Folded};
use super::histogram::{DURATION, ENERGY, Histogram, SYSCALL, WAIT};
use super::labels::Names;
use super::saved::pairs;
use super::smoothed::SmoothedPower;
use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, Aggregate, BookedInterval, BookedRequest, Class, Component, Floor, Outcome, Route,
    Source, TokenDelta, TokenSource,
};
use crate::pods::{GpuPod, PodNames};
use crate::telemetry::GpuTelemetry;
use crate::units::{Microjoules, Ratio, Watts};
use crate::waits::{Reason, Waits};

/// Pods that a service has series of, beside its first one; then its series name none.
const MOST_PODS: usize = 8;

/// All totals of one agent.
#[derive(Debug, Clone)]
pub(super) struct Totals {
    pub(super) version: String,
    pub(super) aliases: Aliases,
    pub(super) meters: BTreeMap<(Component, String), MeterTotals>,
    pub(super) nodes: BTreeMap<String, NodeTotals>,
    pub(super) service_names: Names,
    /// By the number that `service_names` gave.
    pub(super) services: Vec<ServiceTotals>,
    /// Pods of services that were not named any more.
    pub(super) pods_folded: u64,
    /// Of services that have ended long ago.
    pub(super) finished: Finished,
    pub(super) folded: Folded,
    pub(super) gpus: BTreeMap<String, Gpu>,
    /// Which containers have which GPUs, and when the kubelet said so.
    pub(super) gpu_pods: Option<(Timestamp, BTreeSet<GpuPod>)>,
    pub(super) sources: BTreeMap<&'static str, SourceState>,
    pub(super) probes: BTreeMap<(&'static str, &'static str), bool>,
    pub(super) probe_costs: BTreeMap<&'static str, ProbeCost>,
    pub(super) probes_thinned: BTreeMap<&'static str, u64>,
    pub(super) dropped: BTreeMap<Cow<'static, str>, Dropped>,
}

/// Events lost for a reason.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Dropped {
    /// By the agents before this one.
    pub(super) before: u64,
    /// By this one.
    pub(super) own: u64,
}

impl Dropped {
    pub(super) const fn sum(self) -> u64 {
        self.before.saturating_add(self.own)
    }
}

impl Totals {
    /// The totals of a number that `service_names` gave.
    pub(super) fn service(&mut self, number: usize) -> Option<&mut ServiceTotals> {
        if self.services.len() <= number {
            self.services.resize_with(number + 1, Default::default);
        }
        self.services.get_mut(number)
    }

    /// The services that have series of their own, and `other`.
    pub(super) fn named_services(&self) -> impl Iterator<Item = (&str, &ServiceTotals)> {
        let names = self.service_names.all();
        names.filter_map(|(number, name)| Some((name, self.services.get(number)?)))
    }
}

/// One device's part of the ledger. A device whose meter changes (driver reload) keeps its sums.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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

/// One service name's part. A finished process keeps its joules here. What is skipped is no sum, and
/// is told anew.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ServiceTotals {
    #[serde(skip)]
    pub(super) model: Option<String>,
    /// What was counted in the pod in which it runs, if in any.
    #[serde(flatten)]
    pub(super) here: PodTotals,
    /// What was counted in others.
    pub(super) elsewhere: Vec<PodTotals>,
    pub(super) sessions: u64,
    #[serde(with = "pairs")]
    pub(super) request_energy: BTreeMap<(Route, Class), Sampled<{ ENERGY.len() }>>,
    pub(super) duration: BTreeMap<Route, Sampled<{ DURATION.len() }>>,
    pub(super) first_token: BTreeMap<Route, Sampled<{ DURATION.len() }>>,
    #[serde(skip)]
    pub(super) engine: Option<String>,
    #[serde(skip)]
    pub(super) engine_version: Option<String>,
    #[serde(skip)]
    pub(super) engine_running: Option<u64>,
    #[serde(skip)]
    pub(super) engine_waiting: Option<u64>,
    /// In the order of [`TokenSource::ALL`].
    pub(super) tokens: [TokenTotals; TokenSource::ALL.len()],
    #[serde(skip)]
    pub(super) tokens_per_chunk: Option<f64>,
    #[serde(skip)]
    pub(super) active: Aggregate,
    pub(super) cpu_nanos: Option<u64>,
    pub(super) syscalls: BTreeMap<Cow<'static, str>, u64>,
    pub(super) syscall_durations: BTreeMap<Cow<'static, str>, Histogram<{ SYSCALL.len() }>>,
    pub(super) page_faults: BTreeMap<Cow<'static, str>, u64>,
    pub(super) tracepoints: BTreeMap<String, u64>,
    pub(super) cuda: Option<CudaTotals>,
    pub(super) hardware: HardwareTotals,
    /// Of threads that are followed.
    pub(super) waits: Option<WaitTotals>,
    /// Nanoseconds by reason.
    pub(super) starved: BTreeMap<Cow<'static, str>, u64>,
}

/// What is told of each pod apart: a service's counters must not move from one pod to the next.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PodTotals {
    pub(super) pod: PodNames,
    pub(super) energy: BTreeMap<Component, Parts>,
    #[serde(with = "pairs")]
    pub(super) requests: BTreeMap<(Route, Cow<'static, str>, Outcome), u64>,
}

/// What a service's threads waited for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct WaitTotals {
    pub(super) run_queue: Histogram<{ WAIT.len() }>,
    pub(super) disk: Histogram<{ WAIT.len() }>,
    /// Nanoseconds by reason.
    pub(super) off_cpu: BTreeMap<Cow<'static, str>, u64>,
    pub(super) voluntary: u64,
    pub(super) involuntary: u64,
    pub(super) migrations: u64,
}

impl WaitTotals {
    pub(super) fn add(&mut self, waits: &Waits) {
        self.run_queue
            .add_powers_of_two(&WAIT, &waits.histogram, waits.run_queue);
        let disk = waits.off_cpu(Reason::Disk);
        self.disk
            .add_powers_of_two(&WAIT, &waits.disk_histogram, disk);
        for reason in Reason::ALL {
            let name = Cow::Borrowed(reason.name());
            *self.off_cpu.entry(name).or_default() += waits.off_cpu(reason);
        }
        self.voluntary += waits.voluntary;
        self.involuntary += waits.involuntary;
        self.migrations += waits.migrations;
    }
}

/// Which token counters of an engine's own are read at present: no other source counts the same.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ServerReads {
    pub(super) input: bool,
    pub(super) output: bool,
}

/// Tokens from one source, and the active energy of the requests they belong to.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct TokenTotals {
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    pub(super) energy: Option<Microjoules>,
}

impl TokenTotals {
    pub(super) fn add(
        &mut self,
        input: Option<u64>,
        output: Option<u64>,
        energy: Option<Microjoules>,
    ) {
        for (sum, new) in [(&mut self.input, input), (&mut self.output, output)] {
            if let Some(new) = new {
                *sum.get_or_insert_default() += new;
            }
        }
        if let Some(energy) = energy {
            *self.energy.get_or_insert_default() += energy;
        }
    }
}

/// A service's energy on one component.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Parts {
    pub(super) requests: Microjoules,
    pub(super) overhead: Microjoules,
}

impl ServiceTotals {
    /// Counts what comes from here on in this pod; false if it has run in so many that this one is
    /// not named.
    pub(super) fn enter(&mut self, pod: PodNames) -> bool {
        if self.here.pod == pod {
            return true;
        }
        let known = self.elsewhere.iter().position(|totals| totals.pod == pod);
        if known.is_none() && self.elsewhere.len() >= MOST_PODS && pod != PodNames::default() {
            self.enter(PodNames::default());
            return false;
        }
        let there = known.map(|place| self.elsewhere.swap_remove(place));
        let there = there.unwrap_or_else(|| PodTotals {
            pod,
            ..PodTotals::default()
        });
        let left = mem::replace(&mut self.here, there);
        if !(left.energy.is_empty() && left.requests.is_empty()) {
            self.elsewhere.push(left);
        }
        true
    }

    /// Takes what the engine counted.
    pub(super) fn count(&mut self, delta: &TokenDelta) {
        self.count_from(TokenSource::ServerMetrics, delta.input, delta.output, None);
    }

    fn count_from(
        &mut self,
        source: TokenSource,
        input: Option<u64>,
        output: Option<u64>,
        energy: Option<Microjoules>,
    ) {
        let known = TokenSource::ALL.iter().zip(&mut self.tokens);
        for (_, sums) in known.filter(|(known, _)| **known == source) {
            sums.add(input, output, energy);
        }
    }

    fn count_request(&mut self, booked: &BookedRequest, reads: ServerReads) {
        let active = booked.active();
        let ServerReads { input, output } = reads;
        if output {
            self.count_from(TokenSource::ServerMetrics, None, None, active);
        }
        if let Some(count) = booked.token_count() {
            let own_input = count.input.filter(|_| !input);
            let own_output = count.output.filter(|_| !output);
            let energy = active.filter(|_| own_output.is_some());
            self.count_from(count.source, own_input, own_output, energy);
        }
    }

    /// `route`: under which it is shown. `reads`: what its service's engine counts itself.
    pub(super) fn book(
        &mut self,
        booked: &BookedRequest,
        route: Route,
        reads: ServerReads,
        moment: Moment,
    ) {
        let request = &booked.request;
        if request.begins_session() {
            self.sessions += 1;
            return;
        }
        let outcome = request.end.map_or(Outcome::Incomplete, |end| end.outcome);
        let code = Cow::Borrowed(request.code().unwrap_or("none"));
        let requests = &mut self.here.requests;
        *requests.entry((route, code, outcome)).or_default() += 1;
        let active = booked.active();
        // Beyond a bound of 100 % it is no figure; its joules are in the service's.
        if let Some(energy) = active.filter(|_| booked.error_ratio().is_some()) {
            self.request_energy
                .entry((route, booked.class))
                .or_default()
                .observe(&ENERGY, energy.0, moment);
        }
        self.active.add(booked);
        self.count_request(booked, reads);
        if let Some(end) = request.end
            && outcome != Outcome::Incomplete
        {
            let took = end.at.since(request.start);
            let durations = self.duration.entry(route).or_default();
            durations.observe(&DURATION, took, moment);
        }
        if let Some(first) = request.first_data
            && request.streamed
        {
            let waited = first.since(request.start);
            let times = self.first_token.entry(route).or_default();
            times.observe(&DURATION, waited, moment);
        }
    }
}

/// A GPU's facts and latest readings.
#[derive(Debug, Clone, Default)]
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) power: SmoothedPower,
    pub(super) telemetry: Option<GpuTelemetry>,
    /// Critical errors by number.
    pub(super) errors: BTreeMap<u64, u64>,
    /// How busy services kept it, by the number of their names, and when that was asked.
    pub(super) busy: (Timestamp, BTreeMap<usize, Ratio>),
    /// The idle floor, once somebody has looked for it.
    pub(super) idle: Option<Option<Floor>>,
}

/// What a meter of the whole machine has shown.
#[derive(Debug, Clone, Copy)]
pub struct NodeTotals {
    /// When it was last read.
    pub at: Timestamp,
    /// Its power then, if it is known.
    pub power: Option<Watts>,
    /// An older reading says nothing of the present.
    pub stale_after: Duration,
    /// Energy so far, without its holes.
    pub energy: Microjoules,
    /// Time in holes.
    pub gap: Duration,
    /// Systematic gain error of the sensor.
    pub gain_error_ratio: f64,
}

/// Whether a source works, when it last did, and what its calls cost.
#[derive(Debug, Clone, Default)]
pub(super) struct SourceState {
    pub(super) up: bool,
    pub(super) latest: Option<Timestamp>,
    /// Between two asks at most, where it asks seldom.
    pub(super) every: Duration,
    pub(super) calls: Option<SourceCalls>,
}

/// A source's calls of its devices so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceCalls {
    /// Calls.
    pub count: u64,
    /// Of them, those that failed.
    pub errors: u64,
    /// Time spent inside them.
    pub busy: Duration,
    /// Median time of the latest ones; `None` before the first.
    pub p50: Option<Duration>,
    /// Its 99th percentile.
    pub p99: Option<Duration>,
}

/// A kernel program's own cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProbeCost {
    pub(super) runs: u64,
    pub(super) run_nanos: u64,
}
