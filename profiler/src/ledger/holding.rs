//! Who holds a GPU, and how busy they kept it.
//!
//! In: what sources tell of it, at most once a second. Out: what held at some moment.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Busy, Instance, Shares};
use crate::clock::Timestamp;

/// So long the last that was told of how busy a GPU was kept still holds.
const SHARES_HOLD: Duration = Duration::from_secs(3);

/// Who holds a GPU from some moment on.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) at: Timestamp,
    /// Services, by place.
    pub(super) services: Vec<u32>,
    pub(super) others: u32,
    pub(super) instances: Vec<InstanceHeld>,
}

/// Who of them holds one instance of it.
#[derive(Debug, Clone)]
pub(super) struct InstanceHeld {
    pub(super) instance: u32,
    /// Services, by place.
    pub(super) services: Vec<u32>,
    pub(super) others: u32,
}

/// A GPU's instances, as they were told for some moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split<'a> {
    /// The time over which they were sampled.
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) instances: &'a [Instance],
    /// Whether the sample still says how busy they were at that moment.
    pub(super) fresh: bool,
}

impl Held {
    /// True if anybody holds it.
    pub(super) fn held(&self) -> bool {
        self.holders() > 0
    }

    /// How many hold it: services and other processes.
    pub(super) fn holders(&self) -> u32 {
        self.others.saturating_add(self.services.len() as u32)
    }
}

/// What was told of one GPU, in order of time.
#[derive(Debug, Default)]
pub(super) struct Holding {
    held: VecDeque<Held>,
    shares: VecDeque<Shares>,
    /// What its instances' requests did in the intervals of late, by the ends of these.
    work: VecDeque<(Timestamp, Vec<(u32, f64)>)>,
}

impl Holding {
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

    /// The same, or who held it first that is still known.
    pub(super) fn held_about(&self, at: Timestamp) -> Option<&Held> {
        self.held_at(at).or_else(|| self.held.front())
    }

    /// The places of services that it speaks of.
    pub(super) fn places(&self) -> impl Iterator<Item = u32> {
        let held = self.held.iter();
        held.flat_map(|held| {
            let placed = held.instances.iter().flat_map(|held| &held.services);
            held.services.iter().chain(placed).copied()
        })
    }

    /// Takes how busy it was kept.
    pub(super) fn share(&mut self, shares: Shares) {
        if self.shares.back().is_none_or(|last| last.at < shares.at) {
            self.shares.push_back(shares);
        }
    }

    /// Whether what tells how busy it was kept up to `at` is still to come: it was told lately, and
    /// is needed.
    pub(super) fn awaits_shares(&self, at: Timestamp) -> bool {
        let Some(last) = self.shares.back() else {
            return false;
        };
        let needed = match &last.busy {
            Busy::Processes { .. } => self.held_at(at).is_some_and(|held| held.others > 0),
            Busy::Instances { instances, .. } => is_told(instances),
        };
        needed && last.at < at && at <= last.at.plus(SHARES_HOLD)
    }

    /// What was told for `at`: at or first after it, else last before it.
    fn shares_at(&self, at: Timestamp) -> Option<&Shares> {
        let place = self.shares.partition_point(|shares| shares.at < at);
        let before = || self.shares.get(place.checked_sub(1)?);
        self.shares.get(place).or_else(before)
    }

    /// The part of its work that processes did which serve nothing, as far as it was told at or
    /// before `at`, or first thereafter.
    pub(super) fn foreign_share(&self, at: Timestamp) -> f64 {
        let told = self.shares_at(at).filter(|shares| is_fresh(shares, at));
        match told.map(|shares| &shares.busy) {
            Some(&Busy::Processes { services, others }) if others > 0.0 => {
                others / (others + services.max(0.0))
            }
            _ => 0.0,
        }
    }

    /// Its instances at `at`, if it was split then.
    pub(super) fn split_at(&self, at: Timestamp) -> Option<Split<'_>> {
        let shares = self.shares_at(at)?;
        match &shares.busy {
            Busy::Instances { from, instances } if !instances.is_empty() => Some(Split {
                from: *from,
                to: shares.at,
                instances,
                fresh: is_fresh(shares, at) && is_told(instances),
            }),
            _ => None,
        }
    }

    /// What the requests of one of its instances did in the intervals that ended after `from`.
    pub(super) fn worked_since(&self, from: Timestamp, instance: u32) -> f64 {
        let late = self.work.iter().rev().take_while(|(to, _)| *to > from);
        let of_it = late.flat_map(|(_, work)| work.iter().filter(|(id, _)| *id == instance));
        of_it.map(|(_, work)| work).sum()
    }

    /// Keeps what they did in the interval that ends at `to`, for as long as that may be asked.
    pub(super) fn remember_work(&mut self, to: Timestamp, work: Vec<(u32, f64)>, kept: Duration) {
        self.work.push_back((to, work));
        let from = to.minus(kept);
        while self.work.front().is_some_and(|(to, _)| *to <= from) {
            self.work.pop_front();
        }
    }

    /// Forgets who held it, and how busy it was kept, before what is booked by `until`.
    pub(super) fn forget(&mut self, until: Timestamp) {
        while self.held.get(1).is_some_and(|next| next.at <= until) {
            self.held.pop_front();
        }
        while self.shares.get(1).is_some_and(|next| next.at <= until) {
            self.shares.pop_front();
        }
    }
}

/// Whether all of them say how busy they were.
fn is_told(instances: &[Instance]) -> bool {
    !instances.is_empty() && instances.iter().all(|instance| instance.activity.is_some())
}

fn is_fresh(shares: &Shares, at: Timestamp) -> bool {
    at <= shares.at.plus(SHARES_HOLD)
}
