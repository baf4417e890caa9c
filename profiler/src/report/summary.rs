//! Sums up what was booked. Integers throughout; figures are made once, in [`Summary::report`].

use std::collections::{BTreeMap, HashMap};

use super::model::{
    AccountJoules, EnergyJoules, JoulesPerRequest, LedgerCheck, Losses, MeterReport, Report,
    RequestCounts, Seconds, ServiceReport,
};
use super::quantiles::Quantiles;
use super::tokens::{Figures, ServiceTokens};
use crate::clock::Timestamp;
use crate::export::labels::clean;
use crate::ids::Ids;
use crate::ledger::{
    Accounts, Aggregate, Booked, BookedInterval, BookedRequest, Component, CpuTime, EngineInfo,
    Floor, FloorSource, Holders, Meter, MeterId, Outcome, Owner, ServiceId, Source, TokenDelta,
};
use crate::units::Microjoules;

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
    holders: HashMap<MeterId, Holders>,
    /// Context energy was booked on a meter of which nobody said who holds it.
    context_unknown: bool,
    lost_events: Option<u64>,
    lost_requests: Option<u64>,
}

#[derive(Debug)]
struct MeterSums {
    component: Component,
    device: String,
    source: Source,
    intervals: u64,
    energy: Microjoules,
    accounts: [Microjoules; 8],
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
    per_request: Quantiles,
    first_token: Quantiles,
    duration: Quantiles,
    cpu_nanos: Option<u64>,
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

    /// Who holds a device: its context energy is theirs, in equal parts.
    pub fn set_holders(&mut self, holders: &Holders) {
        self.holders.insert(holders.meter, holders.clone());
    }

    /// On-CPU time of a service; other owners are in the meters' accounts.
    pub fn add_cpu(&mut self, cpu: &CpuTime) {
        if let Owner::Service(id) = cpu.owner {
            *self.service(id).cpu_nanos.get_or_insert_default() += cpu.on_cpu;
        }
    }

    /// All events and all request records that were lost in the window.
    pub fn set_losses(&mut self, events: u64, requests: u64) {
        self.lost_events = Some(events);
        self.lost_requests = Some(requests);
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
        for share in &interval.services {
            self.service(share.service).overhead += share.overhead;
        }
        if interval.accounts.context > Microjoules::ZERO {
            self.add_context(interval.meter, interval.accounts.context);
        }
    }

    fn add_context(&mut self, meter: MeterId, context: Microjoules) {
        let Some(holders) = self.holders.get(&meter) else {
            self.context_unknown = true;
            return;
        };
        let services = holders.services.clone();
        let parts = services.len() as u64 + u64::from(holders.others);
        for (place, id) in (0..).zip(services) {
            // The first ones take what does not divide.
            let extra = u64::from(place < context.0 % parts);
            self.service(id).context += Microjoules(context.0 / parts + extra);
        }
    }

    /// A service nobody described is `unknown`: its joules are kept.
    fn service(&mut self, id: ServiceId) -> &mut ServiceSums {
        let place = match self.places.get(&id) {
            Some(&place) => place,
            None => {
                let place = self.place(clean(""));
                self.places.insert(id, place);
                place
            }
        };
        &mut self.services[place].1
    }

    /// The place of this name's sums.
    fn place(&mut self, name: String) -> usize {
        let known = self.services.iter().position(|(known, _)| *known == name);
        known.unwrap_or_else(|| {
            self.services.push((name, ServiceSums::default()));
            self.services.len() - 1
        })
    }

    /// The figures as they stand.
    pub fn report(&self) -> Report {
        let mut meters: Vec<&MeterSums> = self.meters.values().collect();
        meters.sort_by(|one, two| (one.component, &one.device).cmp(&(two.component, &two.device)));
        let mut services: Vec<&(String, ServiceSums)> = self.services.iter().collect();
        services.sort_by_key(|(name, _)| name);
        Report {
            schema: 1,
            simulated: self.simulated,
            duration_s: self.window.map(|(from, to)| to.seconds_since(from)),
            services: services
                .iter()
                .map(|(name, service)| self.service_report(name, service))
                .collect(),
            meters: meters.iter().map(|meter| meter.report()).collect(),
            ledger: LedgerCheck {
                residual_microjoules: meters.iter().map(|meter| meter.residual()).sum(),
            },
            losses: Losses {
                events: self.lost_events,
                requests: self.lost_requests,
            },
        }
    }

    fn service_report(&self, name: &str, service: &ServiceSums) -> ServiceReport {
        let active = |component| {
            let metered = || {
                // No request yet, and a meter that runs: none is known to have cost anything.
                let mut meters = self.meters.values();
                let runs = meters.any(|meter| meter.component == component && meter.intervals > 0);
                (runs && service.per_request.count() == 0).then_some(Microjoules::ZERO)
            };
            service.active.energy(component).or_else(metered)
        };
        let components = Component::ALL.map(active);
        let total = components
            .into_iter()
            .flatten()
            .reduce(|sum, part| sum + part);
        let joules = |energy: Option<Microjoules>| energy.map(|energy| energy.joules().0);
        let [gpu, cpu, dram] = components.map(joules);
        let full = total
            .filter(|_| !self.context_unknown)
            .map(|active| active + service.overhead + service.context);
        let active = service.active.active();
        let Figures {
            tokens,
            output,
            both,
        } = service.tokens.figures(active);
        ServiceReport {
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
            energy_full_j: joules(full),
            j_per_request: JoulesPerRequest {
                mean: ratio(active, service.per_request.count()),
                p50: service.per_request.quantile(0.50).map(|uj| uj / 1e6),
                p95: service.per_request.quantile(0.95).map(|uj| uj / 1e6),
            },
            j_per_output_token: ratio(output.0, output.1),
            j_per_token: ratio(both.0, both.1),
            tokens,
            class: service.active.class(),
            error_ratio: service.active.error_ratio(),
            cpu_s: service.cpu_nanos.map(|nanos| nanos as f64 / 1e9),
            run_queue_s: None,
        }
    }
}

impl ServiceSums {
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
            self.per_request.add(active.0);
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

    fn report(&self) -> MeterReport {
        let known = self.intervals > 0;
        let account = |wanted: &str| {
            Accounts::NAMES
                .iter()
                .zip(self.accounts)
                .find(|(name, _)| known && **name == wanted)
                .map(|(_, energy)| energy.joules().0)
        };
        MeterReport {
            component: self.component,
            device: self.device.clone(),
            source: self.source,
            energy_j: known.then(|| self.energy.joules().0),
            idle_w: self.floor.flatten().map(|floor| floor.watts.0),
            idle_source: self
                .floor
                .map(|floor| FloorSource::name(floor.map(|floor| floor.source)).to_owned()),
            accounts_j: AccountJoules {
                idle: account("idle"),
                context: account("context"),
                requests: account("requests"),
                overhead: account("overhead"),
                other: account("other"),
                agent: account("agent"),
                unattributed: account("unattributed"),
                gap: account("gap"),
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
