//! The slowest and the costliest requests of a service's latest minutes.
//!
//! Each minute keeps its own hundred, so that those of any five minutes are among them.

use std::collections::VecDeque;

use super::ring::SHOWN;
use crate::clock::Timestamp;
use crate::ledger::{BookedRequest, Class, Outcome, RequestId, Route};
use crate::units::Microjoules;

/// Requests that are kept of a minute, and shown.
pub(super) const MOST: usize = 100;
const MINUTE: u64 = 60_000_000_000;
/// Minutes that five may touch, and one for what is told late.
const MINUTES: usize = 7;

/// By what requests are sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// By duration.
    #[default]
    Slowest,
    /// By energy.
    Costliest,
}

/// What is shown of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) id: RequestId,
    pub(super) ended: Timestamp,
    pub(super) route: Route,
    pub(super) outcome: Outcome,
    pub(super) status: u16,
    /// Nanoseconds.
    pub(super) duration: u64,
    /// Nanoseconds.
    pub(super) first_token: Option<u64>,
    pub(super) output: Option<u64>,
    /// `None` where it is no figure: unknown, or bounded by more than itself.
    pub(super) energy: Option<Microjoules>,
    pub(super) error_ratio: Option<f64>,
    pub(super) class: Class,
}

impl Shown {
    /// `None` while its end is not known.
    pub(super) fn of(booked: &BookedRequest) -> Option<Self> {
        let request = &booked.request;
        let end = request.end?;
        let error_ratio = booked.error_ratio();
        let first = request.first_data.filter(|_| request.streamed);
        Some(Self {
            id: request.id,
            ended: end.at,
            route: request.route,
            outcome: end.outcome,
            status: request.status,
            duration: end.at.since(request.start),
            first_token: first.map(|first| first.since(request.start)),
            output: booked.token_count().and_then(|count| count.output),
            energy: booked.active().filter(|_| error_ratio.is_some()),
            error_ratio,
            class: booked.class,
        })
    }

    /// What it is sorted by; `None` if that is not known.
    fn key(&self, order: Order) -> Option<u64> {
        match order {
            // When one ended that nobody saw end is not known.
            Order::Slowest => (self.outcome != Outcome::Incomplete).then_some(self.duration),
            Order::Costliest => Some(self.energy?.0),
        }
    }
}

/// The first ones in some order.
#[derive(Debug, Clone)]
pub(super) struct Worst {
    order: Order,
    /// By minute; in each, the first in order first.
    minutes: VecDeque<(u64, Vec<Shown>)>,
}

impl Worst {
    pub(super) const fn new(order: Order) -> Self {
        Self {
            order,
            minutes: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, shown: Shown) {
        let Some(key) = shown.key(self.order) else {
            return;
        };
        let minute = shown.ended.0 / MINUTE;
        let place = self.minutes.partition_point(|(known, _)| *known < minute);
        if self
            .minutes
            .get(place)
            .is_none_or(|(known, _)| *known != minute)
        {
            self.minutes.insert(place, (minute, Vec::new()));
        }
        if let Some((_, worst)) = self.minutes.get_mut(place) {
            let order = self.order;
            let place = worst.partition_point(|other| other.key(order) >= Some(key));
            if place < MOST {
                worst.insert(place, shown);
                worst.truncate(MOST);
            }
        }
        while self.minutes.len() > MINUTES {
            self.minutes.pop_front();
        }
    }

    /// Those that ended in the five minutes before `until`, at most a hundred.
    pub(super) fn list(&self, until: Timestamp) -> Vec<&Shown> {
        let from = until.0.saturating_sub(SHOWN * 1_000_000_000);
        let all = self.minutes.iter().flat_map(|(_, worst)| worst);
        let mut list: Vec<&Shown> = all
            .filter(|shown| (from..until.0).contains(&shown.ended.0))
            .collect();
        list.sort_by_key(|shown| std::cmp::Reverse(shown.key(self.order)));
        list.truncate(MOST);
        list
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.minutes.iter().map(|(_, worst)| worst.len()).sum()
    }
}
