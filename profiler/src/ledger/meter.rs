//! One meter: its counter's readings become intervals that wait to be closed.
//!
//! In: [`Reading`]s. Out: intervals, holes, and totals from which the residual is computed.
//!
//! The change of the counter lies somewhere between the last look at the old value and the first
//! look at the new one; the middle is taken as the interval's edge and half the distance enters
//! the bound. A counter that fell has been reset: a new epoch begins and nobody knows what ran in
//! between. A delta beyond what the board can draw is refused the same way.

use std::collections::VecDeque;

use super::floor::Levels;
use super::phases::PhasePower;
use super::walk::Walk;
use super::{Accounts, Booked, Component, Meter, MeterId, Reading};
use crate::clock::Timestamp;
use crate::units::Microjoules;

/// A delta above this × the board's limit is refused.
const BEYOND_LIMIT: f64 = 1.2;

/// An interval that is not closed yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) energy: Microjoules,
    /// True if nobody looked for too long.
    pub(super) gap: bool,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    edge: Timestamp,
    until: Timestamp,
    energy: Microjoules,
    half_width: f64,
}

/// Who holds a GPU from some moment on.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) at: Timestamp,
    /// Services, by place.
    pub(super) services: Vec<u32>,
    pub(super) others: u32,
}

impl Held {
    /// True if anybody holds it.
    pub(super) fn held(&self) -> bool {
        self.others > 0 || !self.services.is_empty()
    }
}

/// One meter's state.
#[derive(Debug)]
pub(super) struct MeterState {
    pub(super) meter: Meter,
    pub(super) walk: Walk,
    pub(super) levels: Levels,
    pub(super) phases: PhasePower,
    pub(super) pending: VecDeque<Pending>,
    /// When something was last in flight on it.
    pub(super) busy_until: Timestamp,
    /// Until when intervals were booked with no floor known.
    pub(super) floorless_until: Timestamp,
    /// Time in flight and energy of requests, and the parts of that energy that were shared by time
    /// in service, and contended for by services; decayed: seconds, joules, joules, joules.
    busy: [f64; 4],
    /// Mean error of an interval's edge, seconds.
    pub(super) edge_error: f64,
    /// The latest stretch whose energy nobody knows or could place.
    pub(super) hole: Option<(Timestamp, Timestamp)>,
    pub(super) refused: u64,
    held: VecDeque<Held>,
    last: Option<Last>,
    /// Σ over the epochs before this one of what the counter ran, µJ.
    earlier: i128,
    epoch_start: Microjoules,
    accounted: i128,
}

impl MeterState {
    pub(super) fn new(meter: Meter, kappa: f64) -> Self {
        Self {
            walk: Walk::default(),
            levels: Levels::new(meter.idle),
            phases: PhasePower::new(kappa),
            pending: VecDeque::new(),
            busy_until: Timestamp(0),
            floorless_until: Timestamp(0),
            busy: [0.0; 4],
            edge_error: 0.0,
            hole: None,
            refused: 0,
            held: VecDeque::new(),
            last: None,
            earlier: 0,
            epoch_start: Microjoules::ZERO,
            accounted: 0,
            meter,
        }
    }

    /// Place of its component among a request's sums.
    pub(super) fn component(&self) -> usize {
        match self.meter.component {
            Component::Gpu => 0,
            Component::Cpu => 1,
            Component::Dram => 2,
        }
    }

    /// Takes a reading; a hole comes out where the counter cannot be followed.
    pub(super) fn read(&mut self, id: MeterId, reading: Reading) -> Option<Booked> {
        let after = reading.after.min(reading.until);
        let half = reading.until.since(after) / 2;
        let edge = Timestamp(after.0 + half);
        let half_width = half as f64 * 1e-9;
        let new = Last {
            edge,
            until: reading.until,
            energy: reading.energy,
            half_width,
        };
        let Some(last) = self.last else {
            self.last = Some(new);
            self.epoch_start = new.energy;
            return None;
        };
        if reading.until <= last.until || edge <= last.edge {
            return None;
        }
        self.last = Some(new);
        let Some(energy) = reading.energy.checked_sub(last.energy) else {
            return Some(self.begin_epoch(id, last, new, "reset"));
        };
        let length = edge.since(last.edge);
        if let Some(limit) = self.meter.limit {
            let most = limit.over(length.saturating_add(self.meter.tick));
            if energy.0 as f64 > BEYOND_LIMIT * most.0 as f64 {
                self.refused += 1;
                return Some(self.begin_epoch(id, last, new, "refused"));
            }
        }
        let edge_error = 0.5 * (last.half_width + half_width);
        self.edge_error +=
            if self.edge_error == 0.0 { 1.0 } else { 0.05 } * (edge_error - self.edge_error);
        self.pending.push_back(Pending {
            from: last.edge,
            to: edge,
            energy,
            gap: length > self.meter.stale_after,
        });
        None
    }

    fn begin_epoch(
        &mut self,
        meter: MeterId,
        last: Last,
        new: Last,
        reason: &'static str,
    ) -> Booked {
        self.earlier += i128::from(last.energy.0) - i128::from(self.epoch_start.0);
        self.epoch_start = new.energy;
        self.hole = Some((last.edge, new.edge));
        Booked::Hole {
            meter,
            from: last.edge,
            to: new.edge,
            reason,
        }
    }

    /// Takes who holds it.
    pub(super) fn hold(&mut self, held: Held) {
        let place = self.held.partition_point(|earlier| earlier.at <= held.at);
        self.held.insert(place, held);
    }

    /// Who held it at `at`, if that is known.
    pub(super) fn held_at(&self, at: Timestamp) -> Option<&Held> {
        let place = self.held.partition_point(|held| held.at <= at);
        self.held.get(place.checked_sub(1)?)
    }

    /// Forgets who held it before what it has booked.
    pub(super) fn forget_holders(&mut self) {
        let until = self.walk.until();
        while self.held.get(1).is_some_and(|next| next.at <= until) {
            self.held.pop_front();
        }
    }

    /// Counts what an interval's energy went to.
    pub(super) fn account(&mut self, accounts: &Accounts) {
        self.accounted += i128::from(accounts.total().0);
    }

    /// Σ counter deltas − Σ accounts − what still waits, µJ: 0, always.
    pub(super) fn residual(&self) -> i128 {
        let waiting: i128 = self
            .pending
            .iter()
            .map(|pending| i128::from(pending.energy.0))
            .sum();
        let epoch = self.last.map_or(0, |last| {
            i128::from(last.energy.0) - i128::from(self.epoch_start.0)
        });
        self.earlier + epoch - self.accounted - waiting
    }

    /// Learns from a busy interval: seconds with anything in flight, joules of requests, those of
    /// them that were shared by time in service, and those over which services contended.
    pub(super) fn learn_busy(&mut self, of_interval: [f64; 4]) {
        const KEEP: f64 = 0.99;
        for (all, more) in self.busy.iter_mut().zip(of_interval) {
            *all = *all * KEEP + more;
        }
    }

    fn part_of_requests(&self, joules: f64) -> f64 {
        let [_, all, ..] = self.busy;
        if all > 0.0 { joules / all } else { 0.0 }
    }

    /// The part of its requests' energy that is shared by time in service.
    pub(super) fn by_time_part(&self) -> f64 {
        self.part_of_requests(self.busy[2])
    }

    /// The part of its requests' energy over which services contend.
    pub(super) fn contended_part(&self) -> f64 {
        self.part_of_requests(self.busy[3])
    }

    /// Mean power above idle while something is in flight, watts.
    pub(super) fn busy_watts(&self) -> Option<f64> {
        let [seconds, joules, ..] = self.busy;
        (seconds > 0.0 && joules > 0.0).then(|| joules / seconds)
    }
}
