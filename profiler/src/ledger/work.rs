//! What requests did and when, as edges on one timeline that every meter walks in its own steps.
//!
//! In: work as it becomes known, in any order. Out: the edges in a stretch of time.
//!
//! Work is either spread evenly over a stretch (a begin and an end edge with a rate) or happens at
//! a point.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Timestamp;

/// The rate of one unit of work per nanosecond: rates have 24 binary places.
pub(super) const RATE_ONE: u64 = 1 << 24;

/// The amount of work that one chunk is.
pub(super) const CHUNK: u128 = 1 << 50;

/// Energies on the timeline have 64 binary places.
pub(super) const ENERGY_PLACES: u32 = 64;

/// A time bin is 2²⁴ ns (16.8 ms): shorter than any meter's tick, longer than most gaps.
const BIN_SHIFT: u32 = 24;

/// Bins that follow each other: about 17 s.
const MOST_NEAR: u64 = 1_024;

/// Bins' memory that is kept: about a second's.
const MOST_SPARE: usize = 64;

/// Spread over less than this, work is as good as at a point.
const SHORTEST_SPREAD: u64 = 1_000;

/// The kinds of work, each with its own energy per unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Time in prefill.
    Prefill,
    /// Chunks sent after the first.
    Decode,
    /// Time in service of a response that does not stream.
    Unstreamed,
    /// Time in flight of any request.
    Residency,
}

/// How many kinds of work there are.
pub(super) const KINDS: usize = 4;

/// An amount per kind of work.
pub(super) type Amounts = [u128; KINDS];

/// What happens at an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Work begins at this rate.
    Begin(u64),
    /// Work that had begun at this rate ends.
    End(u64),
    /// So many chunks at once.
    Point(u64),
}

/// A request's work changes. A busy server's requests leave a hundred thousand of them between
/// two readings of a slow meter, so each is packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    /// When.
    pub(super) at: Timestamp,
    /// A rate, or chunks.
    amount: u64,
    /// Whose: the request's slot.
    pub(super) flight: u32,
    /// The service's place, the kind of work (2 bits), the kind of change (2 bits).
    what: u32,
}

const _: () = assert!(size_of::<Edge>() == 24);

impl Edge {
    /// The service's place.
    pub(super) const fn service(&self) -> u32 {
        self.what >> 4
    }

    /// Which kind of work.
    pub(super) const fn kind(&self) -> Kind {
        match self.what >> 2 & 3 {
            0 => Kind::Prefill,
            1 => Kind::Decode,
            2 => Kind::Unstreamed,
            _ => Kind::Residency,
        }
    }

    /// How it changes.
    pub(super) const fn change(&self) -> Change {
        match self.what & 3 {
            0 => Change::Begin(self.amount),
            1 => Change::End(self.amount),
            _ => Change::Point(self.amount),
        }
    }
}

/// A request as the timeline knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker {
    /// The request's slot.
    pub(super) flight: u32,
    /// Its service's place.
    pub(super) service: u32,
}

impl Worker {
    /// An edge of this request's work.
    pub(super) fn edge(self, at: Timestamp, kind: Kind, change: Change) -> Edge {
        let (change, amount) = match change {
            Change::Begin(rate) => (0, rate),
            Change::End(rate) => (1, rate),
            Change::Point(chunks) => (2, chunks),
        };
        Edge {
            at,
            amount,
            flight: self.flight,
            what: self.service << 4 | (kind as u32) << 2 | change,
        }
    }

    /// Adds time spent on `kind` from `from` on, until `to` if that is known.
    pub(super) fn begin(
        self,
        from: Timestamp,
        to: Option<Timestamp>,
        kind: Kind,
        edges: &mut Vec<Edge>,
    ) {
        edges.push(self.edge(from, kind, Change::Begin(RATE_ONE)));
        edges.extend(to.map(|to| self.edge(to, kind, Change::End(RATE_ONE))));
    }

    /// Adds work on `kind` at `rate` over (from, to].
    pub(super) fn stretch(
        self,
        from: Timestamp,
        to: Timestamp,
        kind: Kind,
        rate: u64,
        edges: &mut Vec<Edge>,
    ) {
        if from < to && rate > 0 {
            edges.push(self.edge(from, kind, Change::Begin(rate)));
            edges.push(self.edge(to, kind, Change::End(rate)));
        }
    }

    /// Adds `count` chunks after the one at `previous`. The last went out at `to`; when the others
    /// did is not known, but it was after `looked`.
    pub(super) fn chunks(
        self,
        previous: Timestamp,
        looked: Timestamp,
        to: Timestamp,
        count: u64,
        edges: &mut Vec<Edge>,
    ) {
        if count == 0 {
            return;
        }
        // Evenly spaced chunks lie around the middles of even stretches.
        let half = to.since(previous) / count / 2;
        let from = Timestamp(previous.0.saturating_add(half)).max(looked);
        let until = Timestamp(to.0.saturating_sub(half));
        let spread_over = until.since(from);
        let spread = if spread_over < SHORTEST_SPREAD {
            0
        } else {
            count - 1
        };
        if spread > 0 {
            let rate = u128::from(spread) * CHUNK / u128::from(spread_over);
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            self.stretch(from, until, Kind::Decode, rate, edges);
        }
        edges.push(self.edge(to, Kind::Decode, Change::Point(count - spread)));
    }
}

/// Edges that some meter has not walked past yet, in bins of time: no order within a bin is
/// needed, so that to add one costs no sorting.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    /// Bins without a break, from `first` on: nearly every edge finds its own by its place.
    near: VecDeque<Vec<Edge>>,
    first: u64,
    /// Bins elsewhere: before these, or behind a pause.
    far: BTreeMap<u64, Vec<Edge>>,
    /// Memory of bins that were forgotten, for new ones.
    spare: Vec<Vec<Edge>>,
}

impl Timeline {
    /// Adds an edge.
    pub(super) fn insert(&mut self, edge: Edge) {
        let bin = edge.at.0 >> BIN_SHIFT;
        if self.near.is_empty() {
            self.first = bin;
        }
        match bin.checked_sub(self.first) {
            Some(place) if place < MOST_NEAR => {
                while self.near.len() as u64 <= place {
                    self.near.push_back(self.spare.pop().unwrap_or_default());
                }
                if let Some(edges) = self.near.get_mut(place as usize) {
                    edges.push(edge);
                }
            }
            _ => self.far.entry(bin).or_default().push(edge),
        }
    }

    /// The edges in (from, to], in no order.
    pub(super) fn within(&self, from: Timestamp, to: Timestamp) -> impl Iterator<Item = &Edge> {
        let (begin, end) = (from.0 >> BIN_SHIFT, to.0.max(from.0) >> BIN_SHIFT);
        let near = |bin: u64| (bin.saturating_sub(self.first) as usize).min(self.near.len());
        let past = end.saturating_add(1);
        self.near
            .range(near(begin)..near(past))
            .chain(self.far.range(begin..past).map(|(_, edges)| edges))
            .flatten()
            .filter(move |edge| edge.at > from && edge.at <= to)
    }

    /// Forgets what every meter has walked past.
    pub(super) fn forget(&mut self, until: Timestamp) {
        let until = until.0 >> BIN_SHIFT;
        while self.first < until
            && let Some(mut edges) = self.near.pop_front()
        {
            self.first += 1;
            if self.spare.len() < MOST_SPARE {
                edges.clear();
                self.spare.push(edges);
            }
        }
        while let Some(bin) = self.far.first_entry()
            && *bin.key() < until
        {
            bin.remove();
        }
        if self.near.is_empty() {
            self.spare.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_found_wherever_they_lie_and_forgotten_with_their_time() {
        let worker = Worker {
            flight: 0,
            service: 0,
        };
        let second = 1_000_000_000;
        // In order, far ahead, before the first, and between.
        let moments = [100, 101, 160, 99, 4_000, 20, 130].map(|at| at * second);
        let mut timeline = Timeline::default();
        for at in moments {
            timeline.insert(worker.edge(Timestamp(at), Kind::Decode, Change::Point(1)));
        }
        let seen = |timeline: &Timeline, from: u64, to: u64| {
            let edges = timeline.within(Timestamp(from * second), Timestamp(to * second));
            let mut seen: Vec<u64> = edges.map(|edge| edge.at.0 / second).collect();
            seen.sort_unstable();
            seen
        };
        assert_eq!(
            seen(&timeline, 0, 5_000),
            [20, 99, 100, 101, 130, 160, 4_000]
        );
        assert_eq!(seen(&timeline, 99, 130), [100, 101, 130]);
        assert!(seen(&timeline, 160, 3_999).is_empty());
        timeline.forget(Timestamp(131 * second));
        assert_eq!(seen(&timeline, 0, 5_000), [160, 4_000]);
        timeline.insert(worker.edge(Timestamp(132 * second), Kind::Decode, Change::Point(1)));
        assert_eq!(seen(&timeline, 0, 5_000), [132, 160, 4_000]);
        timeline.forget(Timestamp(5_000 * second));
        assert!(seen(&timeline, 0, 6_000).is_empty());
    }

    #[test]
    fn an_edge_is_what_was_packed_into_it() {
        let worker = Worker {
            flight: u32::MAX,
            service: (1 << 28) - 1,
        };
        for kind in [
            Kind::Prefill,
            Kind::Decode,
            Kind::Unstreamed,
            Kind::Residency,
        ] {
            for change in [
                Change::Begin(u64::MAX),
                Change::End(RATE_ONE),
                Change::Point(3),
            ] {
                let edge = worker.edge(Timestamp(7), kind, change);
                assert_eq!((edge.at, edge.flight), (Timestamp(7), worker.flight));
                assert_eq!(edge.service(), worker.service);
                assert_eq!((edge.kind(), edge.change()), (kind, change));
            }
        }
    }
}
