//! The agent: wires sources to the ledger and the ledger to its sinks.
//!
//! In: [`Config`]. Out: what the sinks show. One thread (the caller's) drains the kernel side,
//! feeds the ledger and publishes; devices and /proc have threads of their own.

mod budget;
pub mod config;
mod engines;
mod gpus;
mod hindsight;
mod hops;
mod host;
mod memory;
mod pods;
pub mod privileges;
mod probes;
mod publish;
mod reload;
mod sinks;
mod stacks;
mod start;
mod starvation;
mod state;
mod threads;
mod tokens;
mod waits;
mod watch;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::export::{Exposition, NodeTotals, SourceCalls};
use crate::ledger::{
    Booked, BookedRequest, Class, Component, CpuTime, Event, Floor, FloorSource, Ledger, Meter,
    MeterId, Owner, Route, ServiceId,
};
use crate::meters::calibration::Calibrated;
use crate::meters::{News, Running, SourceState};
use crate::probes::requests::Observed;
use crate::report::Summary;
use crate::services::{self, Service};
use crate::telemetry::CriticalErrors;
use crate::top;
use budget::Budget;
use config::Config;
use engines::Engines;
use hops::Hops;
use host::Host;
use pods::Pods;
use probes::Probes;
use sinks::Sinks;
use stacks::Stacks;
use state::{Keeper, Known};
use threads::Threads;
use tokens::Tokens;
use watch::{Update, Watch};

pub use hindsight::{Answer, HindsightOptions};
pub use reload::Reloaded;
pub use start::{Options, StartError, examine};
pub use state::StateError;

/// Between two reads of on-CPU time: no longer than a GPU counter's tick.
const CPU_PERIOD: Duration = Duration::from_millis(100);

/// The same at rest, where the counter's changes are followed as seldom.
const CPU_REST_PERIOD: Duration = Duration::from_millis(200);

/// Without a request for this long the agent is at rest.
const AT_REST: Duration = Duration::from_secs(1);

/// Between two ticks while nothing streams: the kernel dates what happens to a request, but not
/// each chunk. A divisor of [`CPU_PERIOD`].
const UNSTREAMED_PERIOD: Duration = Duration::from_millis(50);

/// More requests than this at one tick want the next one soon, whatever they are: the ring, which
/// has room for seven times as many, must not fill while the agent waits for a CPU.
const CROWD: usize = 600;

/// What an agent leaves.
#[derive(Debug)]
pub struct Finished {
    /// Of all that was booked, if it was asked for.
    pub summary: Option<Summary>,
    /// False if the recording that was asked for is not whole; the log says why.
    pub records: bool,
}

/// A running agent. [`Self::finish`] ends it and books what is left.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    probes: Option<Probes>,
    watch: Watch,
    tokens: Tokens,
    /// Where stacks are sampled.
    stacks: Option<Stacks>,
    /// By id.
    services: Vec<Service>,
    pods: Pods,
    running: Option<Running>,
    news: Receiver<News>,
    ledger: Ledger,
    sinks: Sinks,
    meters: HashMap<MeterId, Meter>,
    /// Meters whose readings the user corrects.
    calibrated: HashMap<MeterId, Calibrated>,
    /// When each GPU last said what it draws.
    power_read: HashMap<MeterId, Timestamp>,
    /// Sources that are down.
    broken: HashSet<&'static str>,
    observed: Vec<Observed>,
    /// Many requests at the latest tick.
    crowded: bool,
    /// When a request last moved, other than the agent's own and those after somebody's health.
    served: Timestamp,
    hops: Hops,
    lost_requests: u64,
    /// Where the agent's cost is limited.
    budget: Option<Budget>,
    /// Where totals are left to the next agent, if anywhere.
    state: Option<Keeper>,
    host: Host,
    /// Which thread feeds which GPU.
    engines: Engines,
    /// Where each thread is asked for.
    threads: Option<Threads>,
    swept: Timestamp,
    /// Where the summary begins.
    began: Timestamp,
    cpu_read: Timestamp,
    published: Timestamp,
}

impl Agent {
    /// What scrapes read.
    pub fn exposition(&self) -> Arc<Exposition> {
        self.sinks.metrics.exposition()
    }

    /// The latest minutes, where they were asked for.
    pub const fn live(&self) -> Option<&top::Model> {
        self.sinks.live.as_ref()
    }

    /// How long after one [`Self::tick`] it wants the next: less often while no response streams
    /// and requests are few.
    pub fn period(&self) -> Duration {
        let drain = self.config.intervals.drain;
        if self.crowded || self.probes.as_ref().is_some_and(Probes::sees_streams) {
            drain
        } else {
            drain.max(UNSTREAMED_PERIOD)
        }
    }

    /// When the latest snapshot was published.
    pub const fn published(&self) -> Timestamp {
        self.published
    }

    /// The agent in a few words.
    pub fn status(&self) -> String {
        let alive = |service: &&Service| !service.pids.is_empty();
        let services = self.services.iter().filter(alive).count();
        let down = match self.broken.len() {
            0 => String::new(),
            count => format!("; {count} sources down"),
        };
        format!("{services} services, {} meters{down}", self.meters.len())
    }

    fn is_at_rest(&self, now: Timestamp) -> bool {
        now >= self.served.plus(AT_REST)
    }

    /// True if a GPU's idle floor is neither given nor learned yet.
    pub fn learns_a_floor(&self) -> bool {
        let settled = |floor: Floor| floor.source != FloorSource::Table;
        self.meters.iter().any(|(id, meter)| {
            meter.component == Component::Gpu && !self.ledger.floor(*id).is_some_and(settled)
        })
    }

    /// True if any service has a process, as of the latest look.
    pub fn sees_processes(&self) -> bool {
        self.services.iter().any(|service| !service.pids.is_empty())
    }

    /// Takes what the sources have told and books what can be booked. Memory and channels only:
    /// it does not wait for anything.
    pub fn tick(&mut self) {
        while let Ok(news) = self.news.try_recv() {
            self.take_news(news);
        }
        while let Some(update) = self.watch.next() {
            self.take_services(update, Timestamp::now());
        }
        self.take_pods();
        self.poll_requests();
        if let (Some(stacks), Some(probes)) = (&self.stacks, &self.probes) {
            stacks.drain(|index| probes.sampled_service(index), &mut self.sinks);
        }
        let now = Timestamp::now();
        self.watch.check(now);
        let rests = self.is_at_rest(now);
        if let Some(running) = &self.running {
            running.set_rest(rests);
        }
        let cpu_period = if rests { CPU_REST_PERIOD } else { CPU_PERIOD };
        if now >= self.cpu_read.plus(cpu_period) {
            self.cpu_read = now;
            self.read_cpu();
        }
        self.book(now);
        let due = now.since(self.published) >= self.config.intervals.publish.as_nanos() as u64;
        // The first figures are waited for.
        if due || self.sinks.metrics.has_first_figures() {
            self.published = now;
            self.publish(now);
        }
    }

    /// What was summed up since the start, or since this was called last; `None` where no summary was asked for. Energy
    /// is in the part in which it was booked: an interval of a meter waits up to two seconds for its requests.
    pub fn cut(&mut self) -> Option<Summary> {
        self.tick();
        self.read_cpu();
        let now = Timestamp::now();
        (self.cpu_read, self.published) = (now, now);
        self.publish(now);
        let began = std::mem::replace(&mut self.began, now);
        let mut part = self.sinks.summary.as_mut()?.cut();
        part.set_window(began, now);
        Some(part)
    }

    /// Books what can be booked.
    fn book(&mut self, now: Timestamp) {
        let (tokens, sinks) = (&mut self.tokens, &mut self.sinks);
        self.ledger.advance_into(now, |mut booked| {
            tokens.count(&mut booked);
            sinks.book(&booked);
        });
    }

    /// True unless the recording that was asked for could not be written any more; the log says why.
    pub const fn records(&self) -> bool {
        self.sinks.records()
    }

    /// Ends the sources, drains the kernel side a last time and closes every interval. Takes under a second; a
    /// source that hangs in a call is left behind.
    pub fn finish(mut self) -> Finished {
        if let Some(running) = self.running.take() {
            for name in running.stop() {
                log::warn!("the {name} thread hangs in a call and is left behind");
            }
        }
        if let Some(probes) = &mut self.probes {
            probes.stop_stacks();
        }
        self.tick();
        self.read_cpu();
        if let (Some(stacks), Some(probes)) = (self.stacks.take(), &self.probes) {
            stacks.finish(|index| probes.sampled_service(index), &mut self.sinks);
        }
        // After the last look at requests: all that ended until then is counted.
        self.tokens.finish(&mut self.sinks, &self.services);
        let now = Timestamp::now();
        for mut booked in self.ledger.finish(now) {
            self.tokens.count(&mut booked);
            self.sinks.book(&booked);
        }
        let began = self.began;
        self.sinks.sum_up(|summary| summary.set_window(began, now));
        self.publish(now);
        self.report_threads();
        if let Some(keeper) = &self.state {
            keeper.keep(now, self.known(), self.sinks.metrics.save());
        }
        self.sinks.close();
        Finished {
            records: self.sinks.records(),
            summary: self.sinks.summary,
        }
    }

    /// What the next agent is to know of the meters.
    fn known(&self) -> Vec<Known> {
        let known = |(id, meter): (&MeterId, &Meter)| {
            let booked = self.ledger.booked_reading(*id);
            Known::of(meter, booked, self.ledger.learned_idle(*id))
        };
        self.meters.iter().map(known).collect()
    }

    fn take_news(&mut self, news: News) {
        match news {
            News::Event(Event::Reading(reading)) => {
                let calibrated = self.calibrated.get_mut(&reading.meter);
                let reading = calibrated.map_or(reading, |meter| meter.correct(reading));
                self.feed_engines(&reading);
                self.ledger.apply(Event::Reading(reading));
            }
            News::Event(event) => self.ledger.apply(event),
            News::Power { sample, instant } => {
                if let Some(meter) = self.meters.get(&sample.meter) {
                    self.power_read.insert(sample.meter, sample.at);
                    self.sinks
                        .metrics
                        .record_gpu_power(&meter.device, Some(sample.power));
                }
                if instant {
                    self.ledger.apply(Event::Power(sample));
                }
            }
            News::Processes(processes) => self.watch.tell(processes),
            News::Node(reading) => {
                let totals = NodeTotals {
                    at: reading.at,
                    power: reading.power,
                    stale_after: reading.stale_after,
                    energy: reading.energy,
                    gap: reading.gap,
                    gain_error_ratio: reading.gain_error_ratio,
                };
                self.sinks.metrics.record_node(&reading.device, totals);
            }
            News::Utilization(utilization) => self.take_utilization(&utilization),
            News::Telemetry(telemetry) => {
                let is_its = |meter: &Meter| {
                    meter.component == Component::Gpu && meter.device == telemetry.device
                };
                let mut meters = self.meters.iter();
                let meter = meters.find(|(_, meter)| is_its(meter)).map(|(id, _)| *id);
                self.sinks.telemetry(meter, *telemetry);
            }
            News::CriticalErrors(errors) => {
                let CriticalErrors { device, counts } = errors;
                self.sinks.metrics.record_gpu_errors(&device, counts);
            }
            News::Board(board) => self.take_board(*board),
            News::State(state) => self.take_state(&state),
        }
    }

    fn take_state(&mut self, state: &SourceState) {
        // Once, when it turns: a source that stays broken is seen in its metrics.
        if state.up {
            self.broken.remove(state.name);
        } else if self.broken.insert(state.name)
            && let Some(error) = &state.error
        {
            log::warn!("{}: {error}", state.name);
        }
        let metrics = &mut self.sinks.metrics;
        metrics.record_source(state.name, state.up, state.last_at);
        metrics.record_source_pace(state.name, state.every);
        let calls = SourceCalls {
            count: state.calls,
            errors: state.errors,
            busy: state.busy,
            p50: state.latency_p50,
            p99: state.latency_p99,
        };
        metrics.record_source_calls(state.name, calls);
    }

    fn take_services(&mut self, update: Update, now: Timestamp) {
        let Update {
            services,
            changes,
            holders,
        } = update;
        let is_new = |service: &&Service| services::find(&self.services, service.id).is_none();
        for service in services.iter().filter(is_new) {
            log::info!(
                "service {}{}: {} processes, ports {:?}",
                service.name,
                pods::told(service),
                service.pids.len(),
                service.ports()
            );
            let model = self.config.model.as_deref();
            self.sinks
                .describe_service(service.id, &service.name, model);
            if self.probes.as_ref().is_some_and(Probes::sees_cpu_time) {
                // Watched from here on: none so far is known, not unknown.
                self.sinks.cpu(&CpuTime {
                    owner: Owner::Service(service.id),
                    from: now,
                    to: now,
                    package: 0,
                    on_cpu: 0,
                    cycles: None,
                });
            }
        }
        self.hops.forget(now);
        self.pods.watch(&self.services, &services);
        self.services = services;
        self.name_services();
        self.tokens.watch(&self.services);
        if let Some(probes) = &mut self.probes {
            for (pid, id) in changes.left {
                probes.leave(pid, id);
            }
            for (pid, id) in changes.joined {
                probes.join(pid, id);
            }
        }
        self.forget(&changes.forgotten);
        for holders in holders {
            self.ledger.apply(Event::Holders(holders));
        }
    }

    /// Forgets services that ended long ago, and gives back the kernel side's places of theirs; there are
    /// 252.
    fn forget(&mut self, services: &[ServiceId]) {
        if let Some(probes) = &mut self.probes
            && !services.is_empty()
        {
            probes.forget(services);
        }
        for &id in services {
            self.engines.forget(id);
            self.pods.forget(id);
            self.tokens.forget(id);
            self.ledger.forget_service(id);
            self.sinks.forget_service(id);
        }
    }

    fn take_tokens(&mut self) {
        for load in self.tokens.take_news(&mut self.sinks, &self.services) {
            self.ledger.apply(Event::Load(load));
        }
    }

    fn poll_requests(&mut self) {
        let Some(probes) = &mut self.probes else {
            self.take_tokens();
            return;
        };
        probes.poll_log();
        self.observed.clear();
        let until = probes.poll_requests(&mut self.observed);
        // The agent's own requests were told before a server could see them.
        self.take_tokens();
        let Some(until) = until else {
            return;
        };
        let observed = std::mem::take(&mut self.observed);
        self.take_requests(&observed);
        self.observed = observed;
        let lost = self
            .probes
            .as_ref()
            .map_or(0, |probes| probes.losses().requests());
        if lost > self.lost_requests {
            let count = lost - self.lost_requests;
            self.lost_requests = lost;
            self.engines.requests_lost();
            self.ledger.apply(Event::RequestsLost { at: until, count });
        }
        self.ledger.apply(Event::RequestsUntil(until));
    }

    /// Takes requests as they were seen in one poll.
    fn take_requests(&mut self, observed: &[Observed]) {
        self.crowded = observed.len() > CROWD;
        for seen in observed {
            self.hops.watch(seen);
        }
        for seen in observed {
            let Observed { at, request, .. } = *seen;
            if self.tokens.is_own(seen) {
                continue;
            }
            self.tokens.follow(seen);
            if request.route != Route::Health {
                self.served = self.served.max(at);
            }
            if self.hops.is_hop(&self.services, seen) {
                continue;
            }
            if request.route == Route::Health {
                // Costs nobody energy; only its end is told.
                if request.end.is_some() {
                    self.sinks.book(&Booked::Request(BookedRequest {
                        request,
                        gpu: None,
                        phases: None,
                        cpu: None,
                        dram: None,
                        class: Class::C,
                        errors: None,
                        tokens: None,
                    }));
                }
                continue;
            }
            if let Some(trace) = seen.trace.filter(|_| request.end.is_some()) {
                self.sinks.trace(request.id, trace);
            }
            self.engines.request(&request);
            self.ledger.apply(Event::Request { at, request });
        }
    }

    fn read_cpu(&mut self) {
        let Some(window) = self.probes.as_mut().and_then(Probes::read_cpu) else {
            return;
        };
        self.take_cpu(window.times(), window.to);
        if let Some(probes) = &self.probes {
            let holders = self.watch.holders();
            self.engines.look(probes, &self.services, holders);
        }
    }

    /// Takes on-CPU time; all of it is told up to `until`.
    fn take_cpu(&mut self, times: impl IntoIterator<Item = CpuTime>, until: Timestamp) {
        for time in times {
            self.sinks.cpu(&time);
            self.ledger.apply(Event::Cpu(time));
        }
        self.ledger.apply(Event::CpuUntil(until));
    }
}

#[cfg(test)]
mod tests;
