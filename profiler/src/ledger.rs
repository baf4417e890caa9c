//! The ledger: every interval of every meter, booked once, to the microjoule.
//!
//! Pure: no I/O, no clock, no async. In: [`Event`]s from any source, live or replayed.
//! Out: [`Booked`] values. Method and its sources: `docs/principles.md`.
//!
//! A request's way through it: [`Ledger::apply`] turns what is told of it into edges of work
//! (`flights`, `flight`, `service`, `prefill`) on one timeline (`work`). A meter's readings become intervals (`meter`).
//! [`Ledger::advance`] closes an interval once every fact about it has been told (`close`):
//! divides its energy by the rule of its component (`gpu`, `instances`, `cpu`, `floor`, `phases`, `split`) and
//! puts it on the work (`walk`). A request whose time every meter has passed is booked with its sum
//! (`bound`).

mod aggregate;
mod bound;
mod close;
mod cpu;
mod doubts;
mod flight;
mod flights;
mod floor;
mod gpu;
mod holding;
mod instances;
mod meter;
mod names;
mod phases;
mod prefill;
mod service;
mod split;
mod tokens;
mod values;
mod walk;
mod work;

use std::collections::VecDeque;
use std::time::Duration;

pub use aggregate::Aggregate;
pub use floor::{Floor, FloorSource, TypicalIdle};
pub use tokens::{Counts, EngineInfo, EngineLoad, TokenCount, TokenDelta, TokenSource};
pub use values::*;

pub(crate) use split::split;

use cpu::CpuTimes;
use flights::Flights;
use holding::{Held, InstanceHeld};
use meter::MeterState;
use walk::{Stretch, Walk};
use work::{Edge, Timeline};

use crate::clock::Timestamp;

/// What the ledger must know beside its meters.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Ratio of prefill to decode power above idle before it is learned, 1–5.
    pub kappa: f64,
    /// Tokens a second at which prompts are read, if it is not to be learned.
    pub prefill_speed: Option<f64>,
    /// How long an interval waits for the first data of a request in it.
    pub first_data_horizon: Duration,
    /// How long an interval waits for a source that has gone silent.
    pub source_patience: Duration,
    /// True if requests are told, with [`Event::RequestsUntil`].
    pub requests: bool,
    /// True if on-CPU time is told, with [`Event::CpuUntil`].
    pub cpu: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kappa: 1.9,
            prefill_speed: None,
            first_data_horizon: Duration::from_secs(2),
            source_patience: Duration::from_secs(5),
            requests: true,
            cpu: true,
        }
    }
}

/// All intervals with their accounts, and all requests that are not booked yet.
#[derive(Debug)]
pub struct Ledger {
    config: Config,
    meters: Vec<MeterState>,
    /// Walks while there is no meter, so that one that is added later finds its place.
    before_meters: Walk,
    timeline: Timeline,
    flights: Flights,
    cpu_times: CpuTimes,
    requests_until: Timestamp,
    cpu_until: Timestamp,
    /// How far the furthest meter has walked.
    furthest: Timestamp,
    losses: VecDeque<Timestamp>,
    lost: u64,
    booked: Vec<Booked>,
    edges: Vec<Edge>,
    stretch: Stretch,
    /// Work over the time for which a GPU's instances were sampled.
    sampled: Stretch,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(config: Config) -> Self {
        Self {
            meters: Vec::new(),
            before_meters: Walk::default(),
            timeline: Timeline::default(),
            flights: Flights::new(config.prefill_speed),
            cpu_times: CpuTimes::default(),
            requests_until: Timestamp(0),
            cpu_until: Timestamp(0),
            furthest: Timestamp(0),
            losses: VecDeque::new(),
            lost: 0,
            booked: Vec::new(),
            edges: Vec::new(),
            stretch: Stretch::default(),
            sampled: Stretch::default(),
            config,
        }
    }

    /// Adds a meter; its intervals begin with its first reading.
    pub fn add_meter(&mut self, meter: Meter) -> MeterId {
        let id = MeterId(self.meters.len() as u32);
        let mut state = MeterState::new(meter, self.config.kappa);
        let slowest = self
            .meters
            .iter()
            .map(|meter| &meter.walk)
            .min_by_key(|walk| walk.until());
        state.walk = slowest.unwrap_or(&self.before_meters).companion();
        self.meters.push(state);
        id
    }

    /// Says that a meter of the host measures one package: time on others costs it nothing.
    pub fn set_package(&mut self, meter: MeterId, package: u32) {
        if let Some(meter) = self.meters.get_mut(meter.0 as usize) {
            meter.package = Some(package);
        }
    }

    /// Goes on from where another ledger stopped: what the counter gained since then is `gap`. Before
    /// the meter's first reading.
    pub fn resume(&mut self, latest: Reading) {
        if let Some(meter) = self.meters.get_mut(latest.meter.0 as usize) {
            meter.resume(latest);
        }
    }

    /// The reading up to which a meter is booked, if it is known: where [`Self::resume`] may go on.
    pub fn booked_reading(&self, id: MeterId) -> Option<Reading> {
        self.meters.get(id.0 as usize)?.booked_reading(id)
    }

    /// What the device, or devices of its model, drew when idle: used until it has been seen quiet, unless
    /// its floor is fixed.
    pub fn set_typical_idle(&mut self, meter: MeterId, typical: TypicalIdle) {
        if let Some(meter) = self.meters.get_mut(meter.0 as usize) {
            meter.levels.set_typical(typical);
        }
    }

    /// The idle levels that the meter has learned, for another ledger's [`Self::set_typical_idle`].
    pub fn learned_idle(&self, meter: MeterId) -> Option<TypicalIdle> {
        self.meters.get(meter.0 as usize)?.levels.learned()
    }

    /// A service has ended: what was learned of it is forgotten, and its place is another's once all that
    /// was told of it is booked. Should it be heard of again, it begins anew.
    pub fn forget_service(&mut self, service: ServiceId) {
        self.flights.leave(service);
    }

    /// Takes a fact. Facts of different sources may come in any order; what names a meter that
    /// does not exist is ignored.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Reading(reading) => {
                if let Some(meter) = self.meters.get_mut(reading.meter.0 as usize) {
                    self.booked.extend(meter.read(reading.meter, reading));
                }
            }
            // Intervals of the counter are shared by the timeline alone: on data-centre GPUs an
            // instant reading shows a quarter of the time.
            Event::Power(_) => {}
            Event::Request { at, request } => {
                self.flights
                    .observe(at, request, self.requests_until, &mut self.edges);
                self.place_edges();
            }
            Event::Load(load) => self.flights.load(load),
            Event::RequestsUntil(until) => {
                self.requests_until = self.requests_until.max(until);
                self.flights.queue(self.requests_until);
                self.flights.resolve(self.requests_until, &mut self.edges);
                self.place_edges();
            }
            Event::RequestsLost { at, count } => {
                self.lost = self.lost.saturating_add(count);
                self.losses.push_back(at);
            }
            Event::Cpu(time) => {
                let flights = &mut self.flights;
                if self
                    .meters
                    .iter()
                    .any(|meter| meter.meter.component != Component::Gpu)
                {
                    self.cpu_times.add(time, |id| flights.service(id));
                }
            }
            Event::CpuUntil(until) => self.cpu_until = self.cpu_until.max(until),
            Event::Shares(shares) => {
                if let Some(meter) = self.meters.get_mut(shares.meter.0 as usize) {
                    meter.holding.share(shares);
                }
            }
            Event::Holders(holders) => {
                let Holders {
                    meter,
                    at,
                    services,
                    others,
                    instances,
                } = holders;
                let mut places = |services: Vec<ServiceId>| {
                    let places = services.into_iter().map(|id| self.flights.service(id));
                    places.collect()
                };
                let services = places(services);
                let instances = instances.into_iter().map(|held| InstanceHeld {
                    instance: held.instance,
                    services: places(held.services),
                    others: held.others,
                });
                let held = Held {
                    at,
                    services,
                    others,
                    instances: instances.collect(),
                };
                if let Some(meter) = self.meters.get_mut(meter.0 as usize) {
                    meter.holding.hold(held);
                }
            }
        }
    }

    /// Closes every interval whose facts have all been told, or that has waited long enough at
    /// `now`, and books the requests that this completes.
    pub fn advance(&mut self, now: Timestamp) -> Vec<Booked> {
        let mut all = Vec::new();
        self.advance_into(now, |booked| all.push(booked));
        all
    }

    /// As [`Self::advance`], one by one: when a meter is read at last, all that waited for it
    /// comes at once.
    pub fn advance_into(&mut self, now: Timestamp, mut out: impl FnMut(Booked)) {
        self.close_ready(now);
        self.walk_the_silent(now);
        self.forget();
        self.booked.drain(..).for_each(&mut out);
        self.book_requests(self.told(now), out);
    }

    /// Closes everything: requests in flight become incomplete and are booked with what they
    /// have; readings that come later find nothing in flight.
    pub fn finish(&mut self, now: Timestamp) -> Vec<Booked> {
        self.flights.end_all(now, &mut self.edges);
        self.place_edges();
        self.flights.resolve(Timestamp(u64::MAX), &mut self.edges);
        self.place_edges();
        self.close_all();
        self.forget();
        let mut all = std::mem::take(&mut self.booked);
        self.book_requests(Timestamp(u64::MAX), |booked| all.push(booked));
        all
    }

    /// The meter's idle floor, if it is known.
    pub fn floor(&self, meter: MeterId) -> Option<Floor> {
        self.meters.get(meter.0 as usize)?.levels.floor()
    }

    /// Ratio of prefill to decode power above idle that the meter has learned.
    pub fn kappa(&self, meter: MeterId) -> Option<f64> {
        Some(self.meters.get(meter.0 as usize)?.phases.ratio())
    }

    /// Σ counter deltas − Σ accounts of the meter, from the integers: 0.
    pub fn residual_microjoules(&self, meter: MeterId) -> i128 {
        self.meters
            .get(meter.0 as usize)
            .map_or(0, MeterState::residual)
    }

    /// The same over all meters, of absolute values.
    pub fn total_residual_microjoules(&self) -> i128 {
        self.meters.iter().map(|meter| meter.residual().abs()).sum()
    }

    /// Counter deltas that were beyond what the device can draw.
    pub fn refused(&self) -> u64 {
        self.meters.iter().map(|meter| meter.refused).sum()
    }

    /// Facts about requests that came after they were booked, twice, or too late, and were
    /// ignored.
    pub fn ignored(&self) -> u64 {
        self.flights.ignored()
    }

    /// Requests whose records were lost.
    pub fn requests_lost(&self) -> u64 {
        self.lost
    }

    /// The moment up to which everything about requests has been told.
    fn told(&self, now: Timestamp) -> Timestamp {
        if self.config.requests {
            self.requests_until
        } else {
            now
        }
    }

    /// Puts new edges on the timeline; meters that have passed them take them at once.
    fn place_edges(&mut self) {
        for edge in self.edges.drain(..) {
            if edge.at > self.furthest {
                self.timeline.insert(edge);
                continue;
            }
            let Some(flight) = self.flights.get_mut(edge.flight) else {
                continue;
            };
            let mut ahead_of_somebody = false;
            if self.meters.is_empty() {
                self.before_meters.take_late(&edge);
            }
            for meter in &mut self.meters {
                if edge.at <= meter.walk.until() {
                    let place = close::energy_place(meter.meter.component, edge.kind());
                    let added = meter.walk.take_late(&edge);
                    flight.energies[place] = flight.energies[place].wrapping_add(added);
                } else {
                    ahead_of_somebody = true;
                }
            }
            if ahead_of_somebody {
                self.timeline.insert(edge);
            }
        }
    }
}
