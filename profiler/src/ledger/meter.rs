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
use super::holding::Holding;
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

/// One meter's state.
#[derive(Debug)]
pub(super) struct MeterState {
    pub(super) meter: Meter,
    /// The package it measures, if not the whole machine.
    pub(super) package: Option<u32>,
    pub(super) walk: Walk,
    pub(super) levels: Levels,
    pub(super) phases: PhasePower,
    pub(super) pending: VecDeque<Pending>,
    /// When something was last in flight on it.
    pub(super) busy_until: Timestamp,
    /// Until when intervals were booked with no floor known.
    pub(super) floorless_until: Timestamp,
    /// Until when intervals were divided over its instances.
    pub(super) split_until: Timestamp,
    /// Who holds it, of a GPU.
    pub(super) holding: Holding,
    busy: Tally,
    /// Mean error of an interval's edge, seconds.
    pub(super) edge_error: f64,
    /// The latest stretch whose energy nobody knows or could place.
    pub(super) hole: Option<(Timestamp, Timestamp)>,
    pub(super) refused: u64,
    last: Option<Last>,
    /// The last reading is that of an agent before this one.
    resumed: bool,
    /// Σ over the epochs before this one of what the counter ran, µJ.
    earlier: i128,
    epoch_start: Microjoules,
    accounted: i128,
}

impl MeterState {
    pub(super) fn new(meter: Meter, kappa: f64) -> Self {
        Self {
            package: None,
            walk: Walk::default(),
            levels: Levels::new(meter.idle),
            phases: PhasePower::new(kappa),
            pending: VecDeque::new(),
            busy_until: Timestamp(0),
            floorless_until: Timestamp(0),
            split_until: Timestamp(0),
            holding: Holding::default(),
            busy: Tally::default(),
            edge_error: 0.0,
            hole: None,
            refused: 0,
            last: None,
            resumed: false,
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

    /// Goes on from another agent's last reading.
    pub(super) fn resume(&mut self, latest: Reading) {
        if self.last.is_none() {
            self.read(latest.meter, latest);
            self.resumed = true;
        }
    }

    /// The reading at which the first interval that waits begins; the latest if none waits. `None`
    /// before the first one, and while what waits is of another epoch.
    pub(super) fn booked_reading(&self, meter: MeterId) -> Option<Reading> {
        let last = self.last?;
        let Some(first) = self.pending.front() else {
            return Some(Reading {
                meter,
                after: last.edge,
                until: last.until,
                energy: last.energy,
            });
        };
        let waiting: Microjoules = self.pending.iter().map(|pending| pending.energy).sum();
        let energy = last.energy.checked_sub(waiting)?;
        (energy >= self.epoch_start).then_some(Reading {
            meter,
            after: first.from,
            until: first.from,
            energy,
        })
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
        let resumed = std::mem::take(&mut self.resumed);
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
            gap: resumed || length > self.meter.stale_after,
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
        self.miss(last.edge, new.edge);
        Booked::Hole {
            meter,
            from: last.edge,
            to: new.edge,
            reason,
        }
    }

    /// Nobody knows the energy of this stretch, or could place it.
    pub(super) fn miss(&mut self, from: Timestamp, to: Timestamp) {
        self.hole = match self.hole {
            Some((begun, until)) if from <= until && begun <= to => {
                Some((begun.min(from), until.max(to)))
            }
            _ => Some((from, to)),
        };
    }

    /// Whether requests of the service may have run on it, as far as it is known who held it at
    /// `at`.
    pub(super) fn concerns(&self, service: u32, at: Timestamp) -> bool {
        let held = self.holding.held_about(at);
        self.meter.component != Component::Gpu
            || held.is_none_or(|held| held.services.contains(&service))
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

    /// Learns from a busy interval.
    pub(super) fn learn_busy(&mut self, of_interval: Tally) {
        self.busy.add(of_interval);
    }

    fn part_of_requests(&self, joules: f64) -> f64 {
        let all = self.busy.requests;
        if all > 0.0 { joules / all } else { 0.0 }
    }

    /// The part of its requests' energy that is shared by time in service.
    pub(super) fn by_time_part(&self) -> f64 {
        self.part_of_requests(self.busy.by_time)
    }

    /// The part of its requests' energy over which services contend.
    pub(super) fn contended_part(&self) -> f64 {
        self.part_of_requests(self.busy.contended)
    }

    /// What went to processes that serve nothing while requests were in flight, as part of what these
    /// got; all at most.
    pub(super) fn foreign_part(&self) -> f64 {
        self.part_of_requests(self.busy.foreign).min(1.0)
    }

    /// What may be another instance's, as part of its requests' energy; all at most.
    pub(super) fn misplaced_part(&self) -> f64 {
        self.part_of_requests(self.busy.misplaced).min(1.0)
    }

    /// Mean power above idle while something is in flight, watts.
    pub(super) fn busy_watts(&self) -> Option<f64> {
        let Tally {
            seconds, requests, ..
        } = self.busy;
        (seconds > 0.0 && requests > 0.0).then(|| requests / seconds)
    }
}

/// What a meter's busy intervals were; decayed. Seconds, and joules.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    /// With anything in flight.
    pub(super) seconds: f64,
    /// Of requests.
    pub(super) requests: f64,
    /// Those of them that were shared by time in service.
    pub(super) by_time: f64,
    /// Those over which services contended.
    pub(super) contended: f64,
    /// Of processes that serve nothing.
    pub(super) foreign: f64,
    /// What may be another instance's.
    pub(super) misplaced: f64,
}

impl Tally {
    fn add(&mut self, more: Self) {
        const KEEP: f64 = 0.99;
        for (all, more) in [
            (&mut self.seconds, more.seconds),
            (&mut self.requests, more.requests),
            (&mut self.by_time, more.by_time),
            (&mut self.contended, more.contended),
            (&mut self.foreign, more.foreign),
            (&mut self.misplaced, more.misplaced),
        ] {
            *all = *all * KEEP + more;
        }
    }
}
