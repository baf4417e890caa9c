//! Who has series of its own: the one place where services are folded together.
//!
//! A service that comes while the series budget is used up shares those of `other`. One that
//! outgrows the budget, and one that has ended and was scraped since, leaves: its sums go on in
//! `finished-N` (see [`finished`]), and what is heard of it later in `other`. So the number of
//! series and the memory behind them are bounded however many services come and go, and no sum
//! over services ever falls.

use std::collections::BTreeMap;
use std::time::Duration;

use log::warn;
use serde::{Deserialize, Serialize};

use super::exemplars::Sampled;
use super::families::series;
use super::labels::{OTHER, finished};
use super::metrics::Metrics;
use super::totals::{PodTotals, ServiceTotals, WaitTotals};
use crate::clock::Timestamp;
use crate::ledger::{Route, ServiceId};

/// Series of a node unless told otherwise.
pub const SERIES_BUDGET: usize = 2_000;

/// What a service has that serves one streamed route with the settings as they are: 22 of its
/// requests' energy, 36 of their times, 54 of its threads' waits, the rest single figures. So much
/// room is asked for before one is let in.
const SERVICE_SERIES: usize = 150;

/// A service that has ended leaves once its last figures were scraped so often,
const SCRAPES: u64 = 2;
/// or after this time if nobody scrapes.
const UNSCRAPED: Duration = Duration::from_secs(600);
/// One that an agent before knew may still be found for so long.
const RESTORED: Duration = Duration::from_secs(60);

/// The sums of all services that have left.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Finished {
    /// How often one left.
    times: u64,
    totals: ServiceTotals,
}

impl Finished {
    /// `None` while no service has left.
    pub(super) fn named(&self) -> Option<(String, &ServiceTotals)> {
        (self.times > 0).then(|| (finished(self.times), &self.totals))
    }
}

/// Services without series of their own so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Folded {
    /// Because of the budget.
    pub(super) services: u64,
    /// Because they have ended.
    pub(super) finished: u64,
}

impl Folded {
    pub(super) const fn by_reason(self) -> [(&'static str, u64); 2] {
        [("services", self.services), ("finished", self.finished)]
    }
}

/// A name nobody lives under any more.
#[derive(Debug)]
pub(super) struct Leaving {
    number: usize,
    /// It stays for so long at least.
    stays: Duration,
    /// Since when a snapshot shows its last figures, and how many scrapes there had been before.
    shown: Option<(Timestamp, u64)>,
}

impl Leaving {
    fn is_due(&self, now: Timestamp, scrapes: u64) -> bool {
        self.shown.is_some_and(|(since, before)| {
            let waited = Duration::from_nanos(now.since(since));
            let was_seen = scrapes >= before.saturating_add(SCRAPES);
            waited >= self.stays && (was_seen || waited >= UNSCRAPED)
        })
    }
}

impl Metrics {
    /// How many series there may be; see [`SERIES_BUDGET`]. The machine's own and those of `other`
    /// are shown in any case. Before anything is told.
    pub fn set_series_budget(&mut self, series: usize) {
        self.series_budget = series;
    }

    /// A service has ended, and will be heard of no more under this id: it leaves once its last
    /// figures have been scraped twice, unless its name is described again.
    pub fn forget_service(&mut self, id: ServiceId) {
        if let Some(key) = self.services.remove(&id) {
            self.leave(key.number, Duration::ZERO);
        }
    }

    fn leave(&mut self, number: usize, stays: Duration) {
        let is_other = self.totals.service_names.name(number) == OTHER;
        if !is_other && self.services.values().all(|key| key.number != number) {
            self.leaving.push(Leaving {
                number,
                stays,
                shown: None,
            });
        }
    }

    /// All that another agent knew leave, unless they are found again.
    pub(super) fn leave_restored(&mut self) {
        let names = self.totals.service_names.all();
        let numbers: Vec<usize> = names.map(|(number, _)| number).collect();
        for number in numbers {
            self.leave(number, RESTORED);
        }
    }

    /// The number of a name's totals: its own, or those of `other`.
    pub(super) fn number_of_name(&mut self, name: &str) -> usize {
        let has_room = self.has_room();
        let names = &mut self.totals.service_names;
        let before = names.all().count();
        let (number, is_folded) = names.number(name, has_room);
        if is_folded {
            self.totals.folded.services += 1;
        } else if names.all().count() > before {
            self.series = self.series.map(|series| series + SERVICE_SERIES);
        }
        self.leaving.retain(|leaving| leaving.number != number);
        number
    }

    fn has_room(&mut self) -> bool {
        let series = match self.series {
            Some(series) => series,
            None => self.count_series(Timestamp::now()),
        };
        series + SERVICE_SERIES <= self.series_budget
    }

    fn count_series(&mut self, now: Timestamp) -> usize {
        let series = series(&self.totals, &self.process, now);
        self.series = Some(series);
        series
    }

    /// Has those leave that are due, and those that the budget has no room for.
    pub(super) fn fold(&mut self, now: Timestamp) {
        let scrapes = self.exposition.scrapes();
        let due: Vec<usize> = self
            .leaving
            .extract_if(.., |leaving| leaving.is_due(now, scrapes))
            .map(|leaving| leaving.number)
            .collect();
        if !due.is_empty() {
            self.totals.folded.finished += due.len() as u64;
            self.take_out(&due);
        }
        while self.count_series(now) > self.series_budget
            && let Some(number) = self.least()
        {
            let name = self.totals.service_names.name(number);
            let budget = self.series_budget;
            warn!(
                "the series budget of {budget} is used up: {name} shares the series of `{OTHER}`; \
                 raise series_budget to tell it apart"
            );
            self.totals.folded.services += 1;
            self.take_out(&[number]);
        }
    }

    /// From here on scrapes show the last figures of those that have ended.
    pub(super) fn count_scrapes_of_leaving(&mut self, now: Timestamp) {
        let scrapes = self.exposition.scrapes();
        for leaving in &mut self.leaving {
            leaving.shown.get_or_insert((now, scrapes));
        }
    }

    /// The service that has used the least energy.
    fn least(&self) -> Option<usize> {
        let names = self.totals.service_names.all();
        let services = names.filter(|(_, name)| *name != OTHER);
        let with_energy = services.filter_map(|(number, _)| {
            let service = self.totals.services.get(number)?;
            let pods = service.elsewhere.iter().chain([&service.here]);
            let parts = pods.flat_map(|totals| totals.energy.values());
            let energy: u64 = parts.map(|part| part.requests.0 + part.overhead.0).sum();
            Some((energy, number))
        });
        // Of equals the one that came last.
        with_energy
            .min_by_key(|(energy, number)| (*energy, std::cmp::Reverse(*number)))
            .map(|(_, number)| number)
    }

    /// Their sums go on in `finished`, and what is heard of them in `other`.
    fn take_out(&mut self, numbers: &[usize]) {
        for &number in numbers {
            if let Some(totals) = self.totals.services.get_mut(number) {
                let totals = std::mem::take(totals);
                self.totals.finished.totals.absorb(&totals);
            }
            self.totals.service_names.remove(number);
            // The number will be another's.
            for gpu in self.totals.gpus.values_mut() {
                gpu.busy.1.remove(&number);
            }
            self.leaving.retain(|leaving| leaving.number != number);
            if self.services.values().any(|key| key.number == number) {
                let (other, _) = self.totals.service_names.number(OTHER, true);
                for key in self
                    .services
                    .values_mut()
                    .filter(|key| key.number == number)
                {
                    key.number = other;
                }
            }
        }
        self.totals.finished.times += 1;
    }
}

/// The route of a request of services that are folded together, so that what they share has a
/// bounded number of series.
pub(super) const fn folded_route(route: Route) -> Route {
    match route {
        Route::Health => Route::Health,
        _ => Route::Other,
    }
}

impl ServiceTotals {
    /// Takes in all sums of another service, its routes as one and its pods as none. What is no sum
    /// stays behind.
    pub(super) fn absorb(&mut self, other: &Self) {
        for totals in other.elsewhere.iter().chain([&other.here]) {
            self.here.absorb(totals);
        }
        self.sessions += other.sessions;
        absorb_sampled(&mut self.request_energy, &other.request_energy, |key| {
            (folded_route(key.0), key.1)
        });
        let route = |route: &Route| folded_route(*route);
        absorb_sampled(&mut self.duration, &other.duration, route);
        absorb_sampled(&mut self.first_token, &other.first_token, route);
        for (tokens, more) in self.tokens.iter_mut().zip(other.tokens) {
            tokens.add(more.input, more.output, more.energy);
        }
        add_known(&mut self.cpu_nanos, other.cpu_nanos);
        add_each(&mut self.syscalls, &other.syscalls);
        for (class, more) in &other.syscall_durations {
            let durations = self.syscall_durations.entry(class.clone()).or_default();
            durations.absorb(more);
        }
        add_each(&mut self.page_faults, &other.page_faults);
        add_each(&mut self.tracepoints, &other.tracepoints);
        if let Some(more) = other.cuda {
            let cuda = self.cuda.get_or_insert_default();
            cuda.kernels += more.kernels;
            cuda.graphs += more.graphs;
            cuda.syncs += more.syncs;
            cuda.sync_nanos += more.sync_nanos;
        }
        add_known(&mut self.hardware.cycles, other.hardware.cycles);
        add_known(&mut self.hardware.instructions, other.hardware.instructions);
        add_known(&mut self.hardware.cache_misses, other.hardware.cache_misses);
        if let Some(more) = &other.waits {
            self.waits.get_or_insert_default().absorb(more);
        }
        add_each(&mut self.starved, &other.starved);
    }
}

impl PodTotals {
    /// Takes in what was counted in any pod.
    fn absorb(&mut self, other: &Self) {
        for (component, more) in &other.energy {
            let parts = self.energy.entry(*component).or_default();
            parts.requests += more.requests;
            parts.overhead += more.overhead;
        }
        for ((route, code, outcome), count) in &other.requests {
            let key = (folded_route(*route), code.clone(), *outcome);
            *self.requests.entry(key).or_default() += count;
        }
    }
}

impl WaitTotals {
    fn absorb(&mut self, other: &Self) {
        self.run_queue.absorb(&other.run_queue);
        self.disk.absorb(&other.disk);
        add_each(&mut self.off_cpu, &other.off_cpu);
        self.voluntary += other.voluntary;
        self.involuntary += other.involuntary;
        self.migrations += other.migrations;
    }
}

fn add_known(sum: &mut Option<u64>, more: Option<u64>) {
    if let Some(more) = more {
        *sum.get_or_insert_default() += more;
    }
}

fn add_each<K: Ord + Clone>(sums: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
    for (key, more) in more {
        *sums.entry(key.clone()).or_default() += more;
    }
}

fn absorb_sampled<K: Ord, const N: usize>(
    sums: &mut BTreeMap<K, Sampled<N>>,
    more: &BTreeMap<K, Sampled<N>>,
    folded: impl Fn(&K) -> K,
) {
    for (key, more) in more {
        sums.entry(folded(key)).or_default().absorb(more);
    }
}

#[cfg(test)]
mod tests;
