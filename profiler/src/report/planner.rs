//! What whoever plans capacity asks of a recording: totals, their trend, power against limits, the
//! load curve, coverage, and what could be saved. One pass, memory that does not grow with the file.

pub(super) mod figures;
mod load;
mod meter;
pub(super) mod model;
pub(super) mod savings;
mod time;
pub(super) mod trend;
pub(super) mod versions;

use std::collections::BTreeMap;

use figures::shares;
use load::Load;
use meter::MeterPlan;
use model::{Amount, Carbon, Plan, Power, PowerOf, ServicePlan, Totals};
use trend::Parts;
use versions::{Told, Version};

use super::full::FullEnergy;
use super::inputs::Inputs;
use super::model::Report;
use super::quantiles::Quantiles;
use crate::clock::Timestamp;
use crate::export::labels::clean;
use crate::ids::Ids;
use crate::ledger::{
    Aggregate, Booked, BookedInterval, BookedRequest, Component, GpuPhases, Meter, MeterId,
    Outcome, ServiceId,
};
use crate::recording::RecordedEngine;
use crate::units::Microjoules;

/// Of so many requests the tokens must be known.
pub(super) const TOKENS_KNOWN: f64 = 0.99;

/// A running sum of what a plan needs.
#[derive(Debug)]
pub struct Planner {
    window: (Timestamp, Timestamp),
    meters: BTreeMap<MeterId, MeterPlan>,
    members: Ids<ServiceId, Member>,
    services: Vec<ServiceSums>,
    parts: Parts,
    load: Load,
    served: u64,
    charged: u64,
    output_known: u64,
    active: Aggregate,
    per_request: Quantiles,
    host_waits: BTreeMap<String, f64>,
    /// Seconds by device and reason.
    throttled: BTreeMap<String, BTreeMap<String, f64>>,
    environment: BTreeMap<String, String>,
}

/// One of those whose name is a service's.
#[derive(Debug)]
struct Member {
    /// Place in `services`.
    place: usize,
    model: Option<String>,
    told: Told,
}

#[derive(Debug, Default)]
struct ServiceSums {
    name: String,
    engines: Vec<String>,
    versions: Vec<Version>,
    in_flight: u128,
    input: Mean,
    output: Mean,
    active: Option<Microjoules>,
    aborted: Option<Microjoules>,
    phases: Option<GpuPhases>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: u64,
    count: u64,
}

impl Planner {
    /// Of a period with intervals.
    pub fn new(from: Timestamp, to: Timestamp) -> Self {
        Self {
            window: (from, to),
            meters: BTreeMap::new(),
            members: Ids::default(),
            services: Vec::new(),
            parts: Parts::new(from, to),
            load: Load::new(from, to),
            served: 0,
            charged: 0,
            output_known: 0,
            active: Aggregate::default(),
            per_request: Quantiles::default(),
            host_waits: BTreeMap::new(),
            throttled: BTreeMap::new(),
            environment: BTreeMap::new(),
        }
    }

    /// Tells what a meter is; what is booked on a meter nobody described is left out.
    pub fn describe_meter(&mut self, id: MeterId, meter: &Meter) {
        let plan = MeterPlan::new(meter, clean(&meter.device), self.window);
        self.meters.insert(id, plan);
    }

    /// Tells a service's name and model; services of one name are summed.
    pub fn describe_service(&mut self, id: ServiceId, name: &str, model: Option<&str>) {
        let name = clean(name);
        let known = self
            .services
            .iter()
            .position(|service| service.name == name);
        let place = known.unwrap_or_else(|| {
            self.services.push(ServiceSums {
                name,
                ..ServiceSums::default()
            });
            self.services.len() - 1
        });
        let member = Member {
            place,
            model: model.map(clean),
            told: Told::default(),
        };
        self.members.insert(id, member);
    }

    /// What serves since when; of each service in order.
    pub fn describe_engine(&mut self, told: &RecordedEngine) {
        let version = told.version.as_deref().unwrap_or_default();
        let engine = clean(format!("{} {version}", told.engine).trim());
        let Some((member, service)) = self.member(told.service) else {
            return;
        };
        // Some name their model with their first request only.
        let model = told.model.as_deref().map(clean);
        let model = model.or_else(|| member.model.clone());
        let version = service.version(&engine, model);
        member.told.tell(told.at, version);
        if !service.engines.contains(&engine) {
            service.engines.push(engine);
        }
    }

    /// A fact that the file tells of itself.
    pub fn add_fact(&mut self, name: &str, value: &str) {
        self.environment.insert(clean(name), clean(value));
    }

    /// Time that threads waited for a reason.
    pub fn add_host_wait(&mut self, reason: &str, nanos: u64) {
        *self.host_waits.entry(clean(reason)).or_default() += nanos as f64 / 1e9;
    }

    /// Time for which a GPU's clocks were held down for a reason.
    pub fn add_throttled(&mut self, id: MeterId, reason: &str, nanos: u64) {
        if let Some(meter) = self.meters.get(&id) {
            let of = self.throttled.entry(meter.device.clone()).or_default();
            *of.entry(clean(reason)).or_default() += nanos as f64 / 1e9;
        }
    }

    /// Takes what the ledger booked.
    pub fn add(&mut self, booked: &Booked) {
        match booked {
            Booked::Interval(interval) => self.add_interval(interval),
            Booked::Request(request) => self.add_request(request),
            Booked::Hole {
                meter, from, to, ..
            } => {
                if let Some(meter) = self.meters.get_mut(meter) {
                    meter.add_hole(*from, *to);
                }
            }
        }
    }

    /// Takes a request that the ledger booked.
    pub fn add_request(&mut self, booked: &BookedRequest) {
        let request = &booked.request;
        if request.begins_session() || !request.route.costs_energy() {
            return;
        }
        let (from, to) = self.window;
        let inside = |at: Timestamp| Timestamp(at.0.clamp(from.0, to.0));
        let seen = request.end.map(|end| end.at).or(request.last_data);
        let (start, end) = (inside(request.start), inside(seen.unwrap_or(request.start)));
        self.served += 1;
        self.parts.serve(end);
        self.load.serve(booked, start, end);
        let active = booked.active();
        let tokens = booked.token_count();
        let output = tokens.and_then(|tokens| tokens.output);
        self.output_known += u64::from(output.is_some());
        self.active.add(booked);
        if let Some(active) = active {
            self.charged += 1;
            if booked.error_ratio().is_some() {
                self.per_request.add(active.0);
            }
        }
        let Some((member, service)) = self.member(request.service) else {
            return;
        };
        if service.versions.len() > 1
            && let Some(version) = member.told.at(request.start)
            && let Some(version) = service.versions.get_mut(version)
        {
            version.add(booked);
        }
        service.in_flight += u128::from(end.since(start));
        service.input.add(tokens.and_then(|tokens| tokens.input));
        service.output.add(output);
        let Some(active) = active else {
            return;
        };
        *service.active.get_or_insert_default() += active;
        let aborted = service.aborted.get_or_insert_default();
        if request
            .end
            .is_some_and(|end| end.outcome == Outcome::Aborted)
        {
            *aborted += active;
        }
    }

    fn add_interval(&mut self, interval: &BookedInterval) {
        let Some(meter) = self.meters.get_mut(&interval.meter) else {
            return;
        };
        meter.add(interval);
        let is_gpu = meter.component == Component::Gpu;
        self.parts.add(interval);
        if is_gpu {
            self.load.draw(interval);
        }
        for share in &interval.services {
            if let Some(phases) = share.phases
                && let Some((_, service)) = self.member(share.service)
            {
                let sum = service.phases.get_or_insert_default();
                sum.prefill += phases.prefill;
                sum.decode += phases.decode;
                sum.wait += phases.wait;
            }
        }
    }

    fn member(&mut self, id: ServiceId) -> Option<(&mut Member, &mut ServiceSums)> {
        if !self.members.contains_key(&id) {
            self.describe_service(id, "", None);
        }
        let member = self.members.get_mut(&id)?;
        let service = self.services.get_mut(member.place)?;
        Some((member, service))
    }

    /// The plan beside the report of the same recording; `today`: the day on which inputs were given.
    pub fn plan(
        mut self,
        report: &Report,
        inputs: &Inputs,
        full: FullEnergy,
        today: Option<&str>,
    ) -> Plan {
        self.meters.values_mut().for_each(MeterPlan::finish);
        let amount = |joules: Option<f64>| inputs.amount(full, joules);
        let totals = self.totals(report, inputs, amount);
        let requests = self.requests(report);
        let carbon = Carbon::new(&totals, &requests, inputs, self.seconds());
        let power = self.power();
        let load_curve = self.load_curve();
        let measured = totals.measured_j;
        let savings = measured.map_or_else(Vec::new, |measured| {
            savings::find(&self, report, &load_curve, measured, amount)
        });
        let meters = self.meters.values().filter(|meter| meter.intervals > 0);
        Plan {
            inputs: inputs.list(full, today),
            shares: shares(report, &totals),
            carbon,
            requests,
            trend: self.parts.trend(meters.count() as u64),
            services: self.service_plans(&totals, amount),
            versions: self.version_plans(),
            power,
            load_curve,
            coverage: self
                .meters
                .values()
                .map(|meter| meter.coverage(self.seconds()))
                .collect(),
            savings,
            totals,
            host_waits_s: self.host_waits,
            throttled_s: self.throttled,
            environment: self.environment,
        }
    }

    fn seconds(&self) -> f64 {
        self.window.1.seconds_since(self.window.0)
    }

    fn gpus(&self) -> impl Iterator<Item = &MeterPlan> {
        let gpus = self.meters.values();
        gpus.filter(|meter| meter.component == Component::Gpu && meter.intervals > 0)
    }

    /// The longest of the GPUs' mean intervals, nanoseconds.
    fn gpu_interval(&self) -> u64 {
        self.gpus()
            .filter_map(MeterPlan::interval)
            .max()
            .unwrap_or(0)
    }

    fn load_curve(&self) -> Vec<model::LoadPoint> {
        let known =
            self.served > 0 && self.output_known as f64 >= TOKENS_KNOWN * self.served as f64;
        self.load
            .curve(self.gpus().count() as u64, self.gpu_interval(), known)
    }

    fn power(&self) -> Power {
        let (count, interval) = (self.gpus().count() as u64, self.gpu_interval());
        let limit: Option<f64> = self.gpus().map(|gpu| gpu.limit).sum();
        let limit = limit.filter(|_| count > 0);
        let p99 = |length| {
            let powers = self.load.powers(count, interval, length);
            powers.quantile(0.99).map(|milliwatts| milliwatts / 1e3)
        };
        let gpus: Vec<PowerOf> = self.gpus().map(MeterPlan::power).collect();
        let mean = gpus.iter().map(|gpu| gpu.mean_w).sum::<Option<f64>>();
        Power {
            all: (count > 0).then(|| {
                let p99 = [p99(load::SECOND), p99(load::MINUTE)];
                PowerOf::new("all GPUs".to_owned(), limit, mean, p99)
            }),
            gpus,
            busiest_minute: limit
                .and_then(|limit| self.load.busiest_minute(count, interval, limit)),
        }
    }

    fn service_plans(
        &self,
        totals: &Totals,
        amount: impl Fn(Option<f64>) -> Amount,
    ) -> Vec<ServicePlan> {
        let seconds = self.seconds();
        let mut plans: Vec<ServicePlan> = self
            .services
            .iter()
            .map(|service| {
                let active = service.active.filter(|_| totals.active_j.is_some());
                let active = active.map(|active| active.joules().0);
                let phase = |of: fn(&GpuPhases) -> Microjoules| {
                    service.phases.as_ref().map(|phases| of(phases).joules().0)
                };
                ServicePlan {
                    service: service.name.clone(),
                    engines: service.engines.clone(),
                    active: amount(active),
                    active_ratio: active
                        .zip(totals.active_j)
                        .filter(|(_, all)| *all > 0.0)
                        .map(|(active, all)| active / all),
                    mean_input_tokens: service.input.value(),
                    mean_output_tokens: service.output.value(),
                    mean_in_flight: (seconds > 0.0)
                        .then(|| service.in_flight as f64 / 1e9 / seconds),
                    aborted_j: service.aborted.map(|aborted| aborted.joules().0),
                    prefill_j: phase(|phases| phases.prefill),
                    decode_j: phase(|phases| phases.decode),
                    wait_j: phase(|phases| phases.wait),
                }
            })
            .collect();
        // Those that cost most first; by name where they cost the same.
        let cost = |plan: &ServicePlan| plan.active.energy_kwh.unwrap_or(-1.0);
        plans.sort_by(|one, other| {
            let by_cost = cost(other).total_cmp(&cost(one));
            by_cost.then_with(|| one.service.cmp(&other.service))
        });
        plans
    }
}

impl Mean {
    fn add(&mut self, value: Option<u64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1;
        }
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }
}
