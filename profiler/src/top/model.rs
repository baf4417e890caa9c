//! The latest minutes of what was booked, in bounded memory.
//!
//! In: what every sink is told. Each value is put on the seconds that it is about, not on the moment
//! at which it was told: intervals and requests are booked up to some seconds late. What is shown ends
//! where every meter has been booked, see [`Model::booked_until`]. Everything is bounded: seconds by the
//! ring, requests by [`super::requests`], services by those that there are.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::requests::{Order, Shown, Worst};
use super::ring::{self, Ring, slices};
use super::sketch::Sketch;
use crate::clock::Timestamp;
use crate::export::labels::clean;
use crate::ledger::{
    Aggregate, Booked, BookedInterval, BookedRequest, Component, CpuTime, EngineInfo, Meter,
    MeterId, Outcome, Owner, ServiceId, Source, TokenDelta,
};
use crate::telemetry::GpuTelemetry;
use crate::units::{Microjoules, Ratio, Watts};

/// A meter that was booked no further than so long ago is not waited for: what has failed must not stop
/// the display.
const PATIENCE: Duration = Duration::from_secs(6);

/// What is shown; fed as the other sinks.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub(super) simulated: bool,
    pub(super) meters: BTreeMap<MeterId, MeterState>,
    /// By device.
    pub(super) gpus: HashMap<String, GpuFacts>,
    pub(super) services: BTreeMap<ServiceId, ServiceState>,
    /// Requests of all services, also of those that have ended.
    pub(super) served: Ring<Served>,
    pub(super) sees_requests: bool,
    pub(super) losses: Option<Losses>,
    pub(super) residual: Option<u128>,
    /// The first moment that was told.
    pub(super) began: Option<Timestamp>,
    pub(super) now: Timestamp,
    pub(super) totals: Totals,
}

/// Everything since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Of all meters.
    pub(super) energy: Microjoules,
    /// Requests, without those after health and metrics.
    pub(super) requests: u64,
    /// Their energy.
    pub(super) active: Microjoules,
}

/// What was lost since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Losses {
    pub(super) events: u64,
    pub(super) requests: u64,
}

/// What a GPU shows beside its energy.
#[derive(Debug, Clone, Default)]
pub(super) struct GpuFacts {
    pub(super) name: Option<String>,
    pub(super) limit: Option<Watts>,
    pub(super) utilization: Option<Ratio>,
}

/// One meter.
#[derive(Debug, Clone)]
pub(super) struct MeterState {
    pub(super) component: Component,
    pub(super) device: String,
    pub(super) source: Source,
    booked_until: Timestamp,
    pub(super) points: Ring<MeterPoint>,
}

/// A meter's second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MeterPoint {
    /// How much of it was measured, nanoseconds.
    pub(super) nanos: u64,
    /// In the order of `Accounts::NAMES`, microjoules.
    pub(super) accounts: [u64; 8],
}

/// One service.
#[derive(Debug, Clone)]
pub(super) struct ServiceState {
    pub(super) name: String,
    pub(super) model: Option<String>,
    pub(super) engine: Option<String>,
    pub(super) in_flight: Option<u64>,
    /// Told at least once; else it is not known.
    pub(super) sees_cpu: bool,
    pub(super) sees_waits: bool,
    pub(super) sees_starved: bool,
    /// What is told without its time since the latest [`Model::advance`], nanoseconds.
    run_queue: u64,
    starved: u64,
    pub(super) points: Ring<ServicePoint>,
    slowest: Worst,
    costliest: Worst,
}

/// A service's second.
#[derive(Debug, Clone, Default)]
pub(super) struct ServicePoint {
    /// Requests' and overhead's, microjoules by component.
    pub(super) energy: [u64; 3],
    /// Requests that ended in it.
    pub(super) served: Served,
    pub(super) durations: Sketch,
    pub(super) first_tokens: Sketch,
    /// Nanoseconds on CPU, in the run queue, and of starving GPUs.
    pub(super) cpu: u64,
    pub(super) run_queue: u64,
    pub(super) starved: u64,
    /// What the engine counted, and of how much of the second, nanoseconds.
    pub(super) engine_output: u64,
    pub(super) engine_nanos: u64,
}

/// Requests, without those after health and metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Served {
    pub(super) requests: u64,
    /// Those with energy, and that.
    pub(super) charged: u64,
    pub(super) active: Aggregate,
    /// Output tokens of those whose output is known, and their energy.
    pub(super) counted: u64,
    pub(super) output: u64,
    pub(super) output_energy: u64,
    /// All tokens of those whose input and output are known, and their energy.
    pub(super) both: u64,
    pub(super) both_energy: u64,
}

impl Served {
    fn add(&mut self, booked: &BookedRequest) {
        self.requests += 1;
        self.active.add(booked);
        let active = booked.active();
        self.charged += u64::from(active.is_some());
        let Some(count) = booked.token_count() else {
            return;
        };
        if let Some(output) = count.output {
            self.counted += 1;
            if let Some(active) = active {
                self.output += output;
                self.output_energy += active.0;
                if let Some(input) = count.input {
                    self.both += input + output;
                    self.both_energy += active.0;
                }
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.charged += other.charged;
        self.active.merge(&other.active);
        self.counted += other.counted;
        self.output += other.output;
        self.output_energy += other.output_energy;
        self.both += other.both;
        self.both_energy += other.both_energy;
    }
}

impl Model {
    /// Nothing booked yet; `simulated` if a simulated GPU is read.
    pub fn new(simulated: bool) -> Self {
        Self {
            simulated,
            ..Self::default()
        }
    }

    /// Tells what a meter is; what is booked on one that nobody described is not shown.
    pub fn describe_meter(&mut self, id: MeterId, meter: &Meter) {
        self.meters.entry(id).or_insert_with(|| MeterState {
            component: meter.component,
            device: clean(&meter.device),
            source: meter.source,
            booked_until: Timestamp(0),
            points: Ring::default(),
        });
    }

    /// A GPU's model.
    pub fn describe_gpu(&mut self, device: &str, name: &str) {
        self.gpus.entry(clean(device)).or_default().name = Some(clean(name));
    }

    /// What a GPU shows.
    pub fn add_telemetry(&mut self, telemetry: &GpuTelemetry) {
        let gpu = self.gpus.entry(clean(&telemetry.device)).or_default();
        gpu.limit = telemetry.limits.enforced;
        gpu.utilization = telemetry.utilization.map(|utilization| utilization.gpu);
    }

    /// Tells a service's name and model, again when they change or it comes back.
    pub fn describe_service(&mut self, id: ServiceId, name: &str, model: Option<&str>) {
        let service = self.services.entry(id).or_insert_with(|| ServiceState {
            name: String::new(),
            model: None,
            engine: None,
            in_flight: None,
            sees_cpu: false,
            sees_waits: false,
            sees_starved: false,
            run_queue: 0,
            starved: 0,
            points: Ring::default(),
            slowest: Worst::new(Order::Slowest),
            costliest: Worst::new(Order::Costliest),
        });
        service.name = clean(name);
        if let Some(model) = model {
            service.model = Some(clean(model));
        }
    }

    /// What serves; a model it names is the service's.
    pub fn describe_engine(&mut self, info: &EngineInfo) {
        if let Some(service) = self.services.get_mut(&info.service) {
            service.engine = Some(match &info.version {
                Some(version) => clean(&format!("{} {version}", info.engine)),
                None => clean(info.engine),
            });
            if let Some(model) = &info.model {
                service.model = Some(clean(model));
            }
        }
    }

    /// A service that ended long ago. What it did stays in the sums of all.
    pub fn forget_service(&mut self, id: ServiceId) {
        self.services.remove(&id);
    }

    /// Takes what the ledger booked.
    pub fn add(&mut self, booked: &Booked) {
        match booked {
            Booked::Interval(interval) => self.add_interval(interval),
            Booked::Request(request) => self.add_request(request),
            // Time without known energy: it is not measured.
            Booked::Hole { .. } => {}
        }
    }

    fn add_interval(&mut self, interval: &BookedInterval) {
        self.totals.energy += interval.energy;
        let Some(meter) = self.meters.get_mut(&interval.meter) else {
            return;
        };
        meter.booked_until = meter.booked_until.max(interval.to);
        let accounts = interval.accounts.values();
        for slice in slices(interval.from, interval.to) {
            let Some(point) = meter.points.at(slice.second) else {
                continue;
            };
            point.nanos += slice.nanos;
            for (sum, account) in point.accounts.iter_mut().zip(accounts) {
                *sum += slice.of(account.0);
            }
            for share in &interval.services {
                let energy = share.requests + share.overhead;
                if let Some(service) = self.services.get_mut(&share.service)
                    && let Some(point) = service.points.at(slice.second)
                    && let Some(sum) = point.energy.get_mut(meter.component as usize)
                {
                    *sum += slice.of(energy.0);
                }
            }
        }
    }

    fn add_request(&mut self, booked: &BookedRequest) {
        let request = &booked.request;
        if request.begins_session() || !request.route.costs_energy() {
            return;
        }
        self.totals.requests += 1;
        self.totals.active += booked.active().unwrap_or_default();
        let ended = request.end.map(|end| end.at).or(request.last_data);
        let second = ring::second(ended.unwrap_or(request.start));
        if let Some(served) = self.served.at(second) {
            served.add(booked);
        }
        let Some(service) = self.services.get_mut(&request.service) else {
            return;
        };
        let shown = Shown::of(booked);
        if let Some(point) = service.points.at(second) {
            point.served.add(booked);
            if let Some(shown) = &shown {
                if shown.outcome != Outcome::Incomplete {
                    point.durations.add(shown.duration);
                }
                if let Some(first) = shown.first_token {
                    point.first_tokens.add(first);
                }
            }
        }
        if let Some(shown) = shown {
            service.slowest.add(shown);
            service.costliest.add(shown);
        }
    }

    /// Takes what a service's engine counted.
    pub fn add_tokens(&mut self, delta: &TokenDelta) {
        let (Some(service), Some(output)) = (self.services.get_mut(&delta.service), delta.output)
        else {
            return;
        };
        for slice in slices(delta.from, delta.to) {
            if let Some(point) = service.points.at(slice.second) {
                point.engine_output += slice.of(output);
                point.engine_nanos += slice.nanos;
            }
        }
    }

    /// On-CPU time of a service.
    pub fn add_cpu(&mut self, cpu: &CpuTime) {
        let Owner::Service(id) = cpu.owner else {
            return;
        };
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.sees_cpu = true;
        for slice in slices(cpu.from, cpu.to) {
            if let Some(point) = service.points.at(slice.second) {
                point.cpu += slice.of(cpu.on_cpu);
            }
        }
    }

    /// `nanos` more in which threads of a service were in the run queue.
    pub fn add_run_queue(&mut self, id: ServiceId, nanos: u64) {
        if let Some(service) = self.services.get_mut(&id) {
            service.sees_waits = true;
            service.run_queue += nanos;
        }
    }

    /// `nanos` more in which a service's GPU starved.
    pub fn add_starved(&mut self, id: ServiceId, nanos: u64) {
        if let Some(service) = self.services.get_mut(&id) {
            service.sees_starved = true;
            service.starved += nanos;
        }
    }

    /// Requests of a service that are in flight.
    pub fn set_in_flight(&mut self, id: ServiceId, count: u64) {
        self.sees_requests = true;
        if let Some(service) = self.services.get_mut(&id) {
            service.in_flight = Some(count);
        }
    }

    /// All events and all request records that were lost since the start.
    pub fn set_losses(&mut self, events: u64, requests: u64) {
        self.losses = Some(Losses { events, requests });
    }

    /// Σ over meters of |counter deltas − accounts| of the ledger, microjoules.
    pub fn set_residual(&mut self, microjoules: i128) {
        self.residual = Some(microjoules.unsigned_abs());
    }

    /// All that is known at `now` has been told: what was told without its time happened since the
    /// call before.
    pub fn advance(&mut self, now: Timestamp) {
        let before = if self.began.is_some() { self.now } else { now };
        self.began.get_or_insert(now);
        self.now = now;
        for service in self.services.values_mut() {
            let run_queue = std::mem::take(&mut service.run_queue);
            let starved = std::mem::take(&mut service.starved);
            if run_queue == 0 && starved == 0 {
                continue;
            }
            for slice in slices(before, now) {
                if let Some(point) = service.points.at(slice.second) {
                    point.run_queue += slice.of(run_queue);
                    point.starved += slice.of(starved);
                }
            }
        }
    }

    /// Up to where every meter that is alive has been booked: what lies before is complete.
    pub(super) fn booked_until(&self) -> Timestamp {
        let alive = self.now.minus(PATIENCE);
        let booked = self.meters.values().map(|meter| meter.booked_until);
        let slowest = booked.filter(|until| *until >= alive).min();
        // Without a meter requests are booked as soon as they are told.
        slowest.unwrap_or(self.now.minus(Duration::from_secs(1)))
    }

    /// The slowest or costliest requests of a service in the latest five minutes.
    pub(super) fn requests(&self, id: ServiceId, order: Order) -> Vec<&Shown> {
        let Some(service) = self.services.get(&id) else {
            return Vec::new();
        };
        let worst = match order {
            Order::Slowest => &service.slowest,
            Order::Costliest => &service.costliest,
        };
        worst.list(self.now)
    }

    /// Seconds, sizes of durations and requests that are held: what memory depends on.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let meters = self.meters.values().map(|meter| meter.points.len());
        let services = self.services.values().map(|service| {
            let points = service.points.between(0, u64::MAX);
            let sizes = points.map(|point| 1 + point.durations.len() + point.first_tokens.len());
            sizes.sum::<usize>() + service.slowest.len() + service.costliest.len()
        });
        self.served.len() + meters.sum::<usize>() + services.sum::<usize>()
    }
}
