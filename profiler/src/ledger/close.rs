//! Closing: when an interval's facts are complete, its energy is divided and put on the work.
//!
//! An interval waits until every source has told all about it, and a GPU's also until no request
//! in it still waits for first data. No wait is endless: first data is waited for as long as
//! [`super::Config::first_data_horizon`] says, a silent source as long as its patience, and a
//! meter that went silent keeps no request from being booked.

use super::cpu;
use super::doubts::Doubts;
use super::flights::Flights;
use super::gpu::{self, Division, Question};
use super::holding::Held;
use super::instances::{self, Shared};
use super::meter::{MeterState, Pending, Tally};
use super::walk::Stretch;
use super::work::{ENERGY_PLACES, KINDS, Kind, Timeline};
use super::{Accounts, Booked, BookedInterval, BookedRequest, Component, Ledger, MeterId, bound};
use crate::clock::Timestamp;
use crate::ids::{IdSet, Ids};
use crate::units::Microjoules;
use std::time::Duration;

/// A floor is learned only from intervals that nothing was in flight on for this long before.
const SETTLING: Duration = Duration::from_millis(300);
/// A loss that is noticed so long after an interval may have happened in it.
const LOSS_NOTICED: Duration = Duration::from_millis(200);

/// Where a request keeps the energy of this kind of work on this component.
pub(super) fn energy_place(component: Component, kind: Kind) -> usize {
    match component {
        Component::Gpu => kind as usize,
        Component::Cpu => KINDS,
        Component::Dram => KINDS + 1,
    }
}

impl Ledger {
    /// Closes what is ready at `now`.
    pub(super) fn close_ready(&mut self, now: Timestamp) {
        if !self.config.requests {
            self.flights.resolve(now, &mut self.edges);
            self.place_edges();
        }
        self.flights.list_waiting();
        for meter in 0..self.meters.len() {
            while let Some(pending) = self
                .meters
                .get(meter)
                .and_then(|m| m.pending.front())
                .copied()
            {
                if !self.ready(meter, pending, now) {
                    break;
                }
                self.close(meter, pending);
            }
        }
    }

    /// Closes everything.
    pub(super) fn close_all(&mut self) {
        for meter in 0..self.meters.len() {
            while let Some(pending) = self
                .meters
                .get(meter)
                .and_then(|m| m.pending.front())
                .copied()
            {
                self.close(meter, pending);
            }
            self.walk(meter, Timestamp(u64::MAX));
        }
        self.walk_before_meters(Timestamp(u64::MAX));
    }

    /// True if nothing more is to be waited for.
    fn ready(&mut self, meter: usize, pending: Pending, now: Timestamp) -> bool {
        let Some(component) = self.meters.get(meter).map(|meter| meter.meter.component) else {
            return false;
        };
        let out_of_patience = now >= pending.to.plus(self.config.source_patience);
        let untold = (self.config.requests && self.requests_until < pending.to)
            || (self.config.cpu && component != Component::Gpu && self.cpu_until < pending.to);
        if untold && !out_of_patience {
            return false;
        }
        if untold {
            self.flights.resolve(pending.to, &mut self.edges);
            self.place_edges();
        }
        if component != Component::Gpu {
            return true;
        }
        let is_late = now >= pending.to.plus(self.config.first_data_horizon);
        let Some(state) = self.meters.get(meter) else {
            return false;
        };
        if !is_late && state.holding.awaits_shares(pending.to) {
            return false;
        }
        // An instance's sample holds several intervals, and is placed by the requests in all of them.
        let sampled = state
            .holding
            .split_at(pending.to)
            .filter(|split| split.fresh);
        let until = sampled.map_or(pending.to, |split| split.to.max(pending.to));
        if !is_late && self.config.requests && self.requests_until < until {
            return false;
        }
        let services = self.services_on(meter, pending.to);
        let waits = |service: &&u32| {
            self.flights
                .services
                .get(**service as usize)
                .is_some_and(|service| service.waits(until))
        };
        let waiting: Vec<u32> = services.iter().filter(waits).copied().collect();
        if waiting.is_empty() {
            return true;
        }
        if !is_late {
            return false;
        }
        for service in waiting {
            self.flights.presume(service, pending.to, &mut self.edges);
        }
        self.place_edges();
        true
    }

    /// The services whose requests count on the meter: those that hold it, or all while nobody
    /// has said who does.
    fn services_on(&self, meter: usize, at: Timestamp) -> Vec<u32> {
        match self
            .meters
            .get(meter)
            .and_then(|meter| meter.holding.held_at(at))
        {
            Some(held) => held.services.clone(),
            None => (0..self.flights.services.len() as u32).collect(),
        }
    }

    /// Closes the meter's oldest interval.
    fn close(&mut self, place: usize, pending: Pending) {
        // What lies before this epoch's first interval was measured by nobody.
        self.walk(place, pending.from);
        let Some(meter) = self.meters.get_mut(place) else {
            return;
        };
        meter.pending.pop_front();
        // Given up on before its reading came: the work in it is behind the walk.
        let passed = meter.walk.until() > pending.from;
        meter
            .walk
            .look(&self.timeline, pending.to, &mut self.stretch);
        let division = if pending.gap || passed {
            meter.miss(pending.from, pending.to);
            let accounts = Accounts {
                gap: pending.energy,
                ..Accounts::default()
            };
            Division {
                accounts,
                ..Division::default()
            }
        } else {
            self.divide(place, pending)
        };
        let Some(meter) = self.meters.get_mut(place) else {
            return;
        };
        put(
            &mut self.flights,
            meter,
            &self.timeline,
            &self.stretch,
            &division.energies,
        );
        meter.account(&division.accounts);
        self.furthest = self.furthest.max(meter.walk.until());
        let component = meter.component();
        let meter_component = meter.meter.component;
        let holders = meter.holding.held_at(pending.to).map(Held::holders);
        let mut shares = Vec::with_capacity(division.shares.len());
        for (place, share) in &division.shares {
            if let Some(service) = self.flights.services.get_mut(*place as usize) {
                service.given[component] += i128::from(share.requests);
                let share = share.of(service.id);
                shares.push(match meter_component {
                    Component::Gpu => share.in_phases(division.phases_of(*place)),
                    Component::Cpu | Component::Dram => share,
                });
            }
        }
        self.booked.push(Booked::Interval(BookedInterval {
            meter: MeterId(place as u32),
            from: pending.from,
            to: pending.to,
            energy: pending.energy,
            accounts: division.accounts,
            services: shares,
            holders,
        }));
    }

    /// Divides an interval whose work lies in `self.stretch`, and learns from it.
    fn divide(&mut self, place: usize, pending: Pending) -> Division {
        let services = self.services_on(place, pending.to);
        let lost = self.lost_between(pending.from, pending.to);
        let Some(meter) = self.meters.get_mut(place) else {
            return Division::default();
        };
        let stretch = &self.stretch;
        let held = meter.holding.held_at(pending.to).cloned();
        let holds = held.as_ref().is_none_or(Held::held);
        let resident = |service: &u32| stretch.amount(*service, Kind::Residency) > 0;
        // Where no service is known to hold the GPU, requests of any may run on it: that is not
        // quiet, whoever pays for it.
        let mapped = meter.meter.component == Component::Gpu
            && held.as_ref().is_some_and(|held| !held.services.is_empty());
        let busy = if mapped {
            services.iter().any(resident)
        } else {
            (0..stretch.amounts.len() as u32).any(|service| resident(&service))
        };
        let length = pending.to.since(pending.from);
        let Shared {
            parts,
            is_split,
            stirs,
            doubt,
        } = match meter.meter.component {
            Component::Gpu => {
                let world = (&self.timeline, stretch, &mut self.sampled);
                instances::parts(meter, pending, services, held.as_ref(), world)
            }
            Component::Cpu | Component::Dram => Shared::default(),
        };
        if busy {
            meter.busy_until = pending.to;
        } else if pending.from >= meter.busy_until.plus(SETTLING) && !lost && !stirs {
            meter.levels.learn(holds, pending.energy, length);
        }
        if is_split {
            meter.split_until = pending.to;
        }
        let known_base = meter.levels.base(holds, length);
        if known_base.is_none() {
            meter.floorless_until = pending.to;
        }
        let base = known_base.unwrap_or_default();
        let spacing = |service: u32| {
            let service = self.flights.services.get(service as usize);
            service.map_or(1.0, |service| service.speed.spacing())
        };
        let division = match meter.meter.component {
            Component::Gpu => gpu::divide(&Question {
                energy: pending.energy,
                base,
                kappa: meter.phases.ratio(),
                stretch,
                timeline: &self.timeline,
                held: held.as_ref(),
                parts: &parts,
                spacing: &spacing,
                lost,
            }),
            Component::Cpu | Component::Dram => {
                let (timeline, times) = (&self.timeline, &self.cpu_times);
                cpu::divide(
                    pending.energy,
                    base,
                    stretch,
                    timeline,
                    times,
                    meter.package,
                )
            }
        };
        if known_base.is_some() && division.busy > 0.0 {
            let joules = division.accounts.requests.joules().0;
            let other = division.accounts.other.joules().0;
            meter.learn_busy(Tally {
                seconds: division.busy,
                requests: joules,
                by_time: division.by_time() * 1e-6,
                contended: division.contended * 1e-6,
                // Another instance's part is in doubt as a whole.
                foreign: if is_split { 0.0 } else { other },
                misplaced: match held {
                    Some(_) => division.across * doubt * 1e-6,
                    // Whose instance is whose is not known at all.
                    None if is_split => joules * doubt,
                    None => 0.0,
                },
            });
            if let Some(phases) = division.phases {
                meter.phases.learn(phases.prefill, phases.decode, joules);
            }
        }
        division
    }

    /// Walks a meter to `to` over time in which it measured nothing.
    fn walk(&mut self, meter: usize, to: Timestamp) {
        let Some(meter) = self.meters.get_mut(meter) else {
            return;
        };
        let from = meter.walk.until();
        if from < to {
            meter.miss(from, to);
            meter.walk.look(&self.timeline, to, &mut self.stretch);
            let timeline = &self.timeline;
            put(&mut self.flights, meter, timeline, &self.stretch, &[]);
            self.furthest = self.furthest.max(to);
        }
    }

    fn walk_before_meters(&mut self, to: Timestamp) {
        if self.meters.is_empty() && self.before_meters.until() < to {
            self.before_meters
                .look(&self.timeline, to, &mut self.stretch);
            self.before_meters
                .go(&self.timeline, &self.stretch, &[], |_, _| {});
            self.furthest = self.furthest.max(to);
        }
    }

    /// Walks meters from which nothing has come for long, so that no request waits for them.
    pub(super) fn walk_the_silent(&mut self, now: Timestamp) {
        self.walk_before_meters(self.told(now).min(now));
        for place in 0..self.meters.len() {
            let Some(meter) = self.meters.get(place) else {
                continue;
            };
            if meter.pending.is_empty() {
                let stale_after = Duration::from_nanos(meter.meter.stale_after);
                let to = now.minus(stale_after.max(self.config.first_data_horizon));
                self.walk(place, to);
            }
        }
    }

    fn lost_between(&self, from: Timestamp, to: Timestamp) -> bool {
        self.losses
            .iter()
            .any(|at| *at > from && *at <= to.plus(LOSS_NOTICED))
    }

    /// How far every meter has walked.
    fn walked(&self) -> Timestamp {
        let walks = self.meters.iter().map(|meter| meter.walk.until());
        walks.min().unwrap_or(self.before_meters.until())
    }

    /// Forgets what no meter needs any more.
    pub(super) fn forget(&mut self) {
        let walked = self.walked();
        self.timeline.forget(walked);
        for meter in &mut self.meters {
            meter.holding.forget(meter.walk.until());
        }
        let host = self
            .meters
            .iter()
            .filter(|meter| meter.meter.component != Component::Gpu);
        if let Some(until) = host.map(|meter| meter.walk.until()).min() {
            self.cpu_times.forget(until);
        }
        while self.losses.front().is_some_and(|at| *at <= walked) {
            self.losses.pop_front();
        }
        self.let_go();
    }

    /// Gives away the places of services that have ended. What one with nothing in flight did lies behind
    /// every meter's walk.
    fn let_go(&mut self) {
        if !self.flights.any_leaves() {
            return;
        }
        let held = self.meters.iter().flat_map(|meter| meter.holding.places());
        let needed: IdSet<u32> = held.chain(self.cpu_times.places()).collect();
        for place in self.flights.let_go(|place| needed.contains(&place)) {
            self.before_meters.clear(place);
            for meter in &mut self.meters {
                meter.walk.clear(place);
            }
        }
    }

    /// Books the requests that ended by `told` and that every meter has passed.
    pub(super) fn book_requests(&mut self, told: Timestamp, mut out: impl FnMut(Booked)) {
        let until = self.walked().min(told);
        let meters = &self.meters;
        let has = [Component::Gpu, Component::Cpu, Component::Dram]
            .map(|component| meters.iter().any(|m| m.meter.component == component));
        let mut doubts: Ids<u32, Doubts> = Ids::default();
        for (ended, flight) in self.flights.ended_by(until) {
            let Some(flight) = self.flights.take(flight) else {
                continue;
            };
            let Some(service) = self.flights.services.get_mut(flight.service as usize) else {
                continue;
            };
            let [prefill, decode, unstreamed, resident, cpu, dram] = flight.energies;
            let gpu = prefill
                .wrapping_add(decode)
                .wrapping_add(unstreamed)
                .wrapping_add(resident);
            let mut sums = [Microjoules::ZERO; 3];
            for (component, exact) in [gpu, cpu, dram].into_iter().enumerate() {
                let exact = exact.saturating_add(u128::from(service.carry[component]));
                service.carry[component] = exact as u64;
                let unbooked = service.given[component] - service.booked[component];
                // The last one out takes what rounding left, so that the sums are equal.
                let part = if service.open == 0 {
                    unbooked
                } else {
                    ((exact >> ENERGY_PLACES) as i128).min(unbooked)
                };
                service.booked[component] += part;
                sums[component] = Microjoules(u64::try_from(part).unwrap_or(0));
            }
            let joules = |exact: u128| match exact {
                0 => 0.0,
                exact => exact as f64 / (1_u128 << ENERGY_PLACES) as f64,
            };
            let doubts = doubts
                .entry(flight.service)
                .or_insert_with(|| Doubts::of(flight.service, ended, meters));
            let (class, errors) = bound::judge(&flight, &flight.energies.map(joules), doubts);
            // None of a meter that measured nothing of it is not 0.
            let known = |place: usize, component| {
                let is_seen = sums[place] > Microjoules::ZERO
                    || doubts.is_measured(component, flight.request.start, flight.end());
                (has[place] && is_seen).then_some(sums[place])
            };
            let gpu = known(0, Component::Gpu);
            out(Booked::Request(BookedRequest {
                gpu,
                phases: gpu.map(|gpu| flight.phases(gpu)),
                cpu: known(1, Component::Cpu),
                dram: known(2, Component::Dram),
                request: flight.request,
                class,
                errors,
                tokens: None,
            }));
        }
    }
}

/// Walks over the stretch and puts energies (µJ by service and kind) on the work in it.
fn put(
    flights: &mut Flights,
    meter: &mut MeterState,
    timeline: &Timeline,
    stretch: &Stretch,
    energies: &[[u64; KINDS]],
) {
    let component = meter.meter.component;
    meter.walk.go(timeline, stretch, energies, |edge, added| {
        if let Some(flight) = flights.get_mut(edge.flight) {
            let energy = &mut flight.energies[energy_place(component, edge.kind())];
            *energy = energy.wrapping_add(added);
        }
    });
}
