//! A meter's walk along the timeline: how much work there was in a stretch, and each request's
//! part of the energy that is put on it.
//!
//! A walk keeps, per service and kind, the sum of the rates and a *level*: the energy so far per
//! unit of rate, the virtual time of processor sharing. A request's part is rate × (level at its
//! end − level at its beginning), so that an edge costs the same however many requests are in
//! flight. All of it is integer arithmetic modulo 2¹²⁸: what is added at one edge is exactly what
//! is subtracted at the other.
//!
//! Source: A. Demers, S. Keshav, S. Shenker, "Analysis and simulation of a fair queueing
//! algorithm", SIGCOMM 1989 (virtual time).

use super::work::{Amounts, CHUNK, Change, ENERGY_PLACES, Edge, KINDS, Kind, RATE_ONE, Timeline};
use crate::clock::Timestamp;

/// What one service does on one meter at the moment up to which the meter has walked.
#[derive(Debug, Clone, Copy, Default)]
struct Pool {
    rate: Amounts,
    level: Amounts,
    carry: Amounts,
}

/// The work in one stretch of a meter's time.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    /// Where it starts.
    pub(super) from: Timestamp,
    /// Where it ends.
    pub(super) to: Timestamp,
    /// Each service's amounts, by its place.
    pub(super) amounts: Vec<Amounts>,
    /// Each service's rates when it starts, by its place.
    pub(super) rates: Vec<Amounts>,
}

/// A meter's walk along the timeline.
#[derive(Debug, Default)]
pub(super) struct Walk {
    until: Timestamp,
    pools: Vec<Pool>,
}

impl Walk {
    /// How far it has come.
    pub(super) fn until(&self) -> Timestamp {
        self.until
    }

    fn pool(&mut self, service: u32) -> &mut Pool {
        let place = service as usize;
        if place >= self.pools.len() {
            self.pools.resize(place + 1, Pool::default());
        }
        &mut self.pools[place]
    }

    /// The place is another service's.
    pub(super) fn clear(&mut self, service: u32) {
        if let Some(pool) = self.pools.get_mut(service as usize) {
            *pool = Pool::default();
        }
    }

    /// A walk at the same place that has given out no energy yet.
    pub(super) fn companion(&self) -> Self {
        let pools = self.pools.iter().map(|pool| Pool {
            rate: pool.rate,
            ..Pool::default()
        });
        Self {
            until: self.until,
            pools: pools.collect(),
        }
    }

    /// Takes an edge that lies behind this walk: it counts from here on. A point behind is lost.
    /// Gives what the edge adds to the energy of its request.
    pub(super) fn take_late(&mut self, edge: &Edge) -> u128 {
        let kind = edge.kind() as usize;
        let pool = self.pool(edge.service());
        match edge.change() {
            Change::Begin(rate) => pool.begin(kind, rate, pool.level[kind]),
            Change::End(rate) => pool.end(kind, rate, pool.level[kind]),
            Change::Point(_) => 0,
        }
    }

    /// Sums up the work from here to `to`, without going there.
    pub(super) fn look(&mut self, timeline: &Timeline, to: Timestamp, stretch: &mut Stretch) {
        stretch.from = self.until;
        stretch.to = to.max(self.until);
        if let Some(highest) = stretch.edges(timeline).map(Edge::service).max() {
            self.pool(highest);
        }
        let length = u128::from(stretch.to.since(stretch.from));
        stretch.rates.clear();
        stretch
            .rates
            .extend(self.pools.iter().map(|pool| pool.rate));
        stretch.amounts.clear();
        let whole = |pool: &Pool| pool.rate.map(|rate| rate.wrapping_mul(length));
        stretch.amounts.extend(self.pools.iter().map(whole));
        for edge in timeline.within(stretch.from, stretch.to) {
            let left = u128::from(stretch.to.since(edge.at));
            let amount = &mut stretch.amounts[edge.service() as usize][edge.kind() as usize];
            *amount = match edge.change() {
                Change::Begin(rate) => amount.wrapping_add(u128::from(rate).wrapping_mul(left)),
                Change::End(rate) => amount.wrapping_sub(u128::from(rate).wrapping_mul(left)),
                Change::Point(chunks) => amount.wrapping_add(u128::from(chunks) * CHUNK),
            };
        }
    }

    /// Goes to the end of `stretch`, which [`Self::look`] gave of the same timeline, and puts `energies` (µJ, by
    /// service and kind) on the work in it. `account` is given what an edge adds to the energy of
    /// its request.
    pub(super) fn go(
        &mut self,
        timeline: &Timeline,
        stretch: &Stretch,
        energies: &[[u64; KINDS]],
        mut account: impl FnMut(&Edge, u128),
    ) {
        let mut prices = Vec::with_capacity(self.pools.len());
        for (service, pool) in self.pools.iter_mut().enumerate() {
            let mut price = Amounts::default();
            for kind in 0..KINDS {
                let amount = stretch
                    .amounts
                    .get(service)
                    .map_or(0, |amounts| amounts[kind]);
                let energy = energies.get(service).map_or(0, |energies| energies[kind]);
                if energy > 0 && amount > 0 {
                    let energy =
                        (u128::from(energy) << ENERGY_PLACES).saturating_add(pool.carry[kind]);
                    price[kind] = energy / amount;
                    pool.carry[kind] = energy % amount;
                }
            }
            prices.push(price);
        }
        for edge in stretch.edges(timeline) {
            let (kind, place) = (edge.kind() as usize, edge.service() as usize);
            let pool = &mut self.pools[place];
            let price = prices[place][kind];
            let passed = u128::from(edge.at.since(stretch.from));
            let level = pool.level[kind].wrapping_add(price.wrapping_mul(passed));
            let added = match edge.change() {
                Change::Begin(rate) => pool.begin(kind, rate, level),
                Change::End(rate) => pool.end(kind, rate, level),
                Change::Point(chunks) => price.wrapping_mul(u128::from(chunks) * CHUNK),
            };
            account(edge, added);
        }
        let length = u128::from(stretch.to.since(stretch.from));
        for (pool, price) in self.pools.iter_mut().zip(prices) {
            for (level, price) in pool.level.iter_mut().zip(price) {
                *level = level.wrapping_add(price.wrapping_mul(length));
            }
        }
        self.until = stretch.to;
    }
}

impl Pool {
    /// A rate begins at `level`; gives what that adds to the energy of its request.
    fn begin(&mut self, kind: usize, rate: u64, level: u128) -> u128 {
        let rate = u128::from(rate);
        self.rate[kind] = self.rate[kind].wrapping_add(rate);
        rate.wrapping_mul(level).wrapping_neg()
    }

    /// A rate ends at `level`; gives what that adds to the energy of its request.
    fn end(&mut self, kind: usize, rate: u64, level: u128) -> u128 {
        let rate = u128::from(rate);
        self.rate[kind] = self.rate[kind].wrapping_sub(rate);
        rate.wrapping_mul(level)
    }
}

impl Stretch {
    /// The edges in it.
    fn edges<'t>(&self, timeline: &'t Timeline) -> impl Iterator<Item = &'t Edge> + use<'t> {
        timeline.within(self.from, self.to)
    }

    /// The amount of `kind` that a service did.
    pub(super) fn amount(&self, service: u32, kind: Kind) -> u128 {
        self.amounts
            .get(service as usize)
            .map_or(0, |amounts| amounts[kind as usize])
    }

    /// Nanoseconds in which at least one request of `services` was in flight.
    pub(super) fn busy(&self, timeline: &Timeline, services: &[u32]) -> u64 {
        let length = self.to.since(self.from);
        let rate = |service: &u32| {
            self.rates
                .get(*service as usize)
                .map_or(0, |rates| rates[Kind::Residency as usize])
        };
        let mut in_flight = services.iter().map(rate).sum::<u128>() / u128::from(RATE_ONE);
        let ours =
            |edge: &&Edge| edge.kind() == Kind::Residency && services.contains(&edge.service());
        let ends = |edge: &&Edge| matches!(edge.change(), Change::End(_));
        let ended = self.edges(timeline).filter(ours).filter(ends).count() as u128;
        if in_flight > ended {
            return length;
        }
        // Only here can it have fallen to nothing, so only here the order of edges matters.
        let mut changes: Vec<(Timestamp, bool)> = self
            .edges(timeline)
            .filter(ours)
            .map(|edge| (edge.at, ends(&edge)))
            .collect();
        changes.sort_unstable();
        let (mut busy, mut since) = (0, self.from);
        for (at, ends) in changes {
            if in_flight > 0 {
                busy += at.since(since);
            }
            since = at;
            in_flight = if ends {
                in_flight.saturating_sub(1)
            } else {
                in_flight + 1
            };
        }
        if in_flight > 0 {
            busy + self.to.since(since)
        } else {
            busy
        }
    }
}
