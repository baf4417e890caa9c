//! Sums up what was booked. Integers throughout; figures are made once, in [`Summary::report`].

mod cut;

use std::collections::BTreeMap;

use super::activity::Activity;
use super::full::{FullEnergy, IdlePolicy};
use super::host::HostSums;
use super::model::{
    AccountJoules, EnergyJoules, JoulesPerRequest, LedgerCheck, Losses, MeterReport, Report,
    RequestCounts, Seconds, ServiceReport,
};
use super::quantiles::Quantiles;
use super::tokens::{Figures, ServiceTokens};
use super::waits::WaitSums;
use crate::activity::{CudaCalls, HardwareCounts};
use crate::clock::Timestamp;
use crate::durations::Durations;
use crate::export::labels::clean;
use crate::ids::Ids;
use crate::ledger::{
    Aggregate, Booked, BookedInterval, BookedRequest, Component, CpuTime, EngineInfo, Floor,
    FloorSource, Meter, MeterId, Outcome, Owner, ServiceId, Source, TokenDelta,
};
use crate::recording::RecordedHost;
use crate::units::Microjoules;
use crate::waits::{ThreadTimes, Waits};

/// A running summary of everything that was booked.
#[derive(Debug, Default)]
pub struct Summary {
    simulated: bool,
    window: Option<(Timestamp, Timestamp)>,
    meters: BTreeMap<MeterId, MeterSums>,
    /// Places in `services`.
    places: Ids<ServiceId, usize>,
    /// By name, in no order.
    services: Vec<(String, ServiceSums)>,
    /// Context energy was booked on a meter of which nobody knew who holds it.
    context_unknown: bool,
    /// Events and requests, since the start.
    lost: Option<(u64, u64)>,
    /// Those of them that were before this.
    lost_before: (u64, u64),
    /// CUDA's launches, and the CPUs' counters, were asked for.
    expects_cuda: bool,
    expects_pmc: bool,
}

#[derive(Debug)]
struct MeterSums {
    component: Component,
    device: String,
    source: Source,
    intervals: u64,
    energy: Microjoules,
    accounts: [Microjoules; 8],
    /// Requests' energy on it by service's place, of every service that held it.
    by_service: BTreeMap<usize, Microjoules>,
    /// The idle floor, if anybody told it.
    floor: Option<Option<Floor>>,
}

#[derive(Debug, Default)]
struct ServiceSums {
    model: Option<String>,
    total: u64,
    aborted: u64,
    incomplete: u64,
    health: u64,
    by_code: BTreeMap<&'static str, u64>,
    chunks: u64,
    tokens: ServiceTokens,
    active: Aggregate,
    overhead: Microjoules,
    context: Microjoules,
    /// Requests with energy.
    charged: u64,
    /// Those of them whose energy is a figure.
    per_request: Quantiles,
    first_token: Quantiles,
    duration: Quantiles,
    cpu_nanos: Option<u64>,
    host: HostSums,
    activity: Activity,
    /// On CPU packages, overhead included.
    cpu_energy: Option<Microjoules>,
    waits: WaitSums,
}

impl Summary {
    /// Nothing booked yet; `simulated` if a simulated GPU is read.
    pub fn new(simulated: bool) -> Self {
        Self {
            simulated,
            ..Self::default()
        }
    }

    /// The time that was measured.
    pub fn set_window(&mut self, from: Timestamp, to: Timestamp) {
        self.window = Some((from, to));
    }

    /// Tells what a meter is; what is booked on a meter nobody described is left out.
    pub fn describe_meter(&mut self, id: MeterId, meter: &Meter) {
        self.meters.entry(id).or_insert_with(|| MeterSums {
            component: meter.component,
            device: clean(&meter.device),
            source: meter.source,
            intervals: 0,
            energy: Microjoules::ZERO,
            accounts: [Microjoules::ZERO; 8],
            by_service: BTreeMap::new(),
            floor: None,
        });
    }

    /// Tells a meter's idle floor, `None` while it is not known; again when it changes.
    pub fn set_floor(&mut self, id: MeterId, floor: Option<Floor>) {
        if let Some(meter) = self.meters.get_mut(&id) {
            meter.floor = Some(floor);
        }
    }

    /// Tells a service's name and model; services of one name are summed. One that is described
    /// appears in the report even if nothing was booked on it.
    pub fn describe_service(&mut self, id: ServiceId, name: &str, model: Option<&str>) {
        let place = self.place(clean(name));
        self.places.insert(id, place);
        if let Some(model) = model {
            self.service(id).model = Some(clean(model));
        }
    }

    /// What serves; a model it names is the service's.
    pub fn describe_engine(&mut self, info: &EngineInfo) {
        if let Some(model) = &info.model {
            self.service(info.service).model = Some(clean(model));
        }
    }

    /// Takes what a service's engine counted.
    pub fn add_tokens(&mut self, delta: &TokenDelta) {
        let service = self.service(delta.service);
        service.tokens.add(delta);
    }

    /// On-CPU time of a service; other owners are in the meters' accounts.
    pub fn add_cpu(&mut self, cpu: &CpuTime) {
        if let Owner::Service(id) = cpu.owner {
            *self.service(id).cpu_nanos.get_or_insert_default() += cpu.on_cpu;
        }
    }

    /// More system calls of a class, and the times of those that were timed.
    pub fn add_syscalls(&mut self, id: ServiceId, class: &'static str, calls: u64, of: &Durations) {
        self.service(id).host.add_syscalls(class, calls, of);
    }

    /// More page faults of a kind.
    pub fn add_page_faults(&mut self, id: ServiceId, kind: &'static str, count: u64) {
        self.service(id).host.add_page_faults(kind, count);
    }

    /// More events of a tracepoint.
    pub fn add_tracepoint(&mut self, id: ServiceId, event: &str, count: u64) {
        self.service(id).host.add_tracepoint(event, count);
    }

    /// What services did beside serving was asked for: what is not told of it is not known.
    pub fn expect_activity(&mut self, cuda: bool, pmc: bool) {
        self.expects_cuda = cuda;
        self.expects_pmc = pmc;
    }

    /// More launches and waits of a service.
    pub fn add_cuda(&mut self, calls: &CudaCalls) {
        self.service(calls.service).activity.add_cuda(calls);
    }

    /// More of what hardware counted for a service.
    pub fn add_hardware(&mut self, counts: &HardwareCounts) {
        self.service(counts.service).activity.add_hardware(counts);
    }

    /// What a recording holds of a service's threads.
    pub fn add_host(&mut self, host: &RecordedHost) {
        let service = self.service(host.service);
        if let Some(on_cpu) = host.on_cpu {
            *service.cpu_nanos.get_or_insert_default() += on_cpu;
        }
        if let Some(waits) = &host.waits {
            service.waits.add(waits);
        }
    }

    /// What a service's threads waited for since this was told last.
    pub fn add_waits(&mut self, id: ServiceId, waits: &Waits) {
        self.service(id).waits.add(waits);
    }

    /// `nanos` more in which a service's GPU starved for a reason.
    pub fn add_starved(&mut self, id: ServiceId, reason: &str, nanos: u64) {
        self.service(id).waits.add_starved(reason, nanos);
    }

    /// One of a service's threads; once each.
    pub fn add_thread(&mut self, id: ServiceId, name: &str, times: ThreadTimes) {
        self.service(id).waits.add_thread(&clean(name), times);
    }

    /// All events and all request records that were lost since the start.
    pub fn set_losses(&mut self, events: u64, requests: u64) {
        self.lost = Some((events, requests));
    }

    /// Takes what the ledger booked.
    pub fn add(&mut self, booked: &Booked) {
        match booked {
            Booked::Interval(interval) => self.add_interval(interval),
            Booked::Request(request) => self.add_request(request),
            // Time without known energy: the exporter counts it; no joule of it is in any sum.
            Booked::Hole { .. } => {}
        }
    }

    /// Takes a request that the ledger booked.
    pub fn add_request(&mut self, request: &BookedRequest) {
        self.service(request.request.service).add(request);
    }

    fn add_interval(&mut self, interval: &BookedInterval) {
        let Some(meter) = self.meters.get_mut(&interval.meter) else {
            return;
        };
        meter.intervals += 1;
        meter.energy += interval.energy;
        for (sum, energy) in meter.accounts.iter_mut().zip(interval.accounts.values()) {
            *sum += energy;
        }
        let context = interval.accounts.context;
        self.context_unknown |= context > Microjoules::ZERO && interval.holders.is_none();
        let is_package = meter.component == Component::Cpu;
        let holders = u64::from(interval.holders.unwrap_or(0));
        for (number, share) in (0..).zip(&interval.services) {
            let place = self.place_of(share.service);
            let service = &mut self.services[place].1;
            service.overhead += share.overhead;
            if is_package {
                *service.cpu_energy.get_or_insert_default() += share.requests + share.overhead;
            }
            if let Some(part) = context.0.checked_div(holders) {
                // The first ones take what does not divide.
                let extra = u64::from(number < context.0 % holders);
                service.context += Microjoules(part + extra);
            }
            if let Some(meter) = self.meters.get_mut(&interval.meter) {
                *meter.by_service.entry(place).or_default() += share.requests;
            }
        }
    }

    /// A service nobody described is `unknown`: its joules are kept.
    fn service(&mut self, id: ServiceId) -> &mut ServiceSums {
        let place = self.place_of(id);
        &mut self.services[place].1
    }

    fn place_of(&mut self, id: ServiceId) -> usize {
        if let Some(&place) = self.places.get(&id) {
            return place;
        }
        let place = self.place(clean(""));
        self.places.insert(id, place);
        place
    }

    /// The place of this name's sums.
    fn place(&mut self, name: String) -> usize {
        let known = self.services.iter().position(|(known, _)| *known == name);
        known.unwrap_or_else(|| {
            self.services.push((name, ServiceSums::default()));
            self.services.len() - 1
        })
    }

    /// The figures as they stand; `full` says what full energy takes in.
    pub fn report(&self, full: FullEnergy) -> Report {
        let mut meters: Vec<&MeterSums> = self.meters.values().collect();
        meters.sort_by(|one, two| (one.component, &one.device).cmp(&(two.component, &two.device)));
        let mut services: Vec<(usize, &(String, ServiceSums))> =
            self.services.iter().enumerate().collect();
        services.sort_by_key(|(_, (name, _))| name);
        let before = self.lost_before;
        let since = |(events, requests): (u64, u64)| {
            (
                events.saturating_sub(before.0),
                requests.saturating_sub(before.1),
            )
        };
        let lost = self.lost.map(since);
        Report {
            schema: 1,
            simulated: self.simulated,
            duration_s: self.window.map(|(from, to)| to.seconds_since(from)),
            idle_policy: full.idle_policy,
            pue: full.pue,
            services: services
                .iter()
                .map(|(place, (name, service))| {
                    let idle = self.idle_of(*place, full.idle_policy);
                    self.service_report(name, service, |active| full.of(active, idle))
                })
                .collect(),
            meters: meters.iter().map(|meter| meter.report()).collect(),
            ledger: LedgerCheck {
                residual_microjoules: Some(meters.iter().map(|meter| meter.residual()).sum()),
            },
            losses: Losses {
                events: lost.map(|(events, _)| events),
                requests: lost.map(|(_, requests)| requests),
            },
            planner: None,
            fleet: None,
        }
    }

    /// The service's part of the idle energy of what it held, joules.
    fn idle_of(&self, place: usize, policy: IdlePolicy) -> f64 {
        let of_meter = |meter: &MeterSums| {
            let own = meter.by_service.get(&place)?.0 as f64;
            let all: u64 = meter.by_service.values().map(|energy| energy.0).sum();
            let part = match policy {
                IdlePolicy::None => 0.0,
                IdlePolicy::Even => 1.0 / meter.by_service.len() as f64,
                IdlePolicy::Proportional if all > 0 => own / all as f64,
                IdlePolicy::Proportional => 0.0,
            };
            let [idle, ..] = meter.accounts;
            Some(part * idle.joules().0)
        };
        self.meters.values().filter_map(of_meter).sum()
    }

    fn service_report(
        &self,
        name: &str,
        service: &ServiceSums,
        full: impl Fn(Microjoules) -> f64,
    ) -> ServiceReport {
        let active = |component| {
            let metered = || {
                // No request yet, and a meter that runs: none is known to have cost anything.
                let mut meters = self.meters.values();
                let runs = meters.any(|meter| meter.component == component && meter.intervals > 0);
                (runs && service.charged == 0).then_some(Microjoules::ZERO)
            };
            service.active.energy(component).or_else(metered)
        };
        let components = Component::ALL.map(active);
        let total = components
            .into_iter()
            .flatten()
            .reduce(|sum, part| sum + part);
        // Beyond a bound of 100 % a sum is no figure; the meters' accounts hold its joules.
        let is_figure = service.active.class().is_none() || service.active.error_ratio().is_some();
        let figure = |energy: Option<Microjoules>| energy.filter(|_| is_figure);
        let joules = |energy: Option<Microjoules>| figure(energy).map(|energy| energy.joules().0);
        let [gpu, cpu, dram] = components.map(joules);
        let full = figure(total)
            .filter(|_| !self.context_unknown)
            .map(|active| full(active + service.overhead + service.context));
        let active = figure(service.active.active());
        let Figures {
            tokens,
            output,
            both,
        } = service.tokens.figures(active);
        let mut report = ServiceReport {
            service: name.to_owned(),
            model: service.model.clone(),
            requests: RequestCounts {
                total: service.total,
                aborted: service.aborted,
                incomplete: service.incomplete,
                health: service.health,
                by_code: service
                    .by_code
                    .iter()
                    .map(|(code, count)| ((*code).to_owned(), *count))
                    .collect(),
            },
            chunks: service.chunks,
            ttft_s: seconds(&service.first_token),
            duration_s: seconds(&service.duration),
            energy_j: EnergyJoules {
                gpu,
                cpu,
                dram,
                total: joules(total),
            },
            energy_full_j: full,
            j_per_request: JoulesPerRequest {
                mean: ratio(active, service.charged),
                p50: service.joules_at(0.50),
                p95: service.joules_at(0.95),
            },
            j_per_output_token: ratio(figure(output.0), output.1),
            j_per_token: ratio(figure(both.0), both.1),
            tokens,
            class: service.active.class(),
            error_ratio: service.active.error_ratio(),
            cpu_s: service.cpu_nanos.map(|nanos| nanos as f64 / 1e9),
            run_queue_s: None,
            host: service.host.report(),
            cuda: self.expects_cuda.then(|| service.activity.cuda()),
            pmc: self
                .expects_pmc
                .then(|| service.activity.pmc(service.cpu_energy)),
            run_queue_wait_s: seconds(&Quantiles::default()),
            off_cpu_s: None,
            switches: None,
            migrations: None,
            gpu_starved_s: None,
            threads: None,
        };
        service.waits.report(&mut report);
        report
    }
}

impl ServiceSums {
    /// A quantile of the energy of its requests, joules; `None` where the bounds of a tenth of them
    /// or more exceed 100 %: the others are no sample of all.
    fn joules_at(&self, quantile: f64) -> Option<f64> {
        let missing = self.charged - self.per_request.count();
        if missing * 10 >= self.charged {
            return None;
        }
        self.per_request.quantile(quantile).map(|uj| uj / 1e6)
    }

    fn add(&mut self, booked: &BookedRequest) {
        let request = &booked.request;
        if request.begins_session() {
            return;
        }
        let outcome = request.end.map_or(Outcome::Incomplete, |end| end.outcome);
        self.total += 1;
        self.aborted += u64::from(outcome == Outcome::Aborted);
        self.incomplete += u64::from(outcome == Outcome::Incomplete);
        if let Some(code) = request.code() {
            *self.by_code.entry(code).or_default() += 1;
        }
        if !request.route.costs_energy() {
            self.health += 1;
            return;
        }
        self.tokens.serve(booked);
        let active = booked.active();
        self.active.add(booked);
        if let Some(active) = active {
            self.charged += 1;
            if booked.error_ratio().is_some() {
                self.per_request.add(active.0);
            }
        }
        if let Some(end) = request.end
            && outcome != Outcome::Incomplete
        {
            self.duration.add(end.at.since(request.start));
        }
        if request.streamed {
            self.chunks += request.chunks;
            if let Some(first) = request.first_data {
                self.first_token.add(first.since(request.start));
            }
        }
    }
}

impl MeterSums {
    /// |Energy − Σ accounts|: 0 unless the ledger is broken.
    fn residual(&self) -> u64 {
        let accounts: Microjoules = self.accounts.into_iter().sum();
        self.energy.0.abs_diff(accounts.0)
    }

    /// What was not idle; `None` where no floor was ever known.
    fn above_idle(&self) -> Option<Microjoules> {
        let [idle, rest @ ..] = self.accounts;
        let floor_known = self.floor.is_some_and(|floor| floor.is_some());
        let known = self.intervals > 0 && (floor_known || idle > Microjoules::ZERO);
        known.then(|| rest.into_iter().sum())
    }

    fn report(&self) -> MeterReport {
        let known = self.intervals > 0;
        MeterReport {
            component: self.component,
            device: self.device.clone(),
            source: self.source,
            energy_j: known.then(|| self.energy.joules().0),
            above_idle_j: self.above_idle().map(|energy| energy.joules().0),
            idle_w: self.floor.flatten().map(|floor| floor.watts.0),
            idle_source: self
                .floor
                .map(|floor| FloorSource::name(floor.map(|floor| floor.source)).to_owned()),
            accounts_j: if known {
                AccountJoules::of(self.accounts)
            } else {
                AccountJoules::default()
            },
        }
    }
}

fn seconds(nanos: &Quantiles) -> Seconds {
    let quantile = |q| nanos.quantile(q).map(|nanos| nanos / 1e9);
    Seconds {
        p50: quantile(0.50),
        p99: quantile(0.99),
    }
}

fn ratio(energy: Option<Microjoules>, count: u64) -> Option<f64> {
    let energy = energy.filter(|_| count > 0)?;
    Some(energy.joules().0 / count as f64)
}
