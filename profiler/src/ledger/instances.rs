//! How much of a GPU's energy above idle each of its instances gets (MIG).
//!
//! The driver measures the board alone. Where it tells how busy each instance was, that times the
//! instance's slices is its weight, and the weights are scaled to what was measured. The driver tells
//! it of a second, which holds several intervals: within it an instance's work lies where its
//! requests were. Where the driver does not tell (before Hopper), the weight is what the instance's
//! requests did, prefill and decode, times its slices; one that is held by processes that serve
//! nothing counts as busy all the time, since of these nothing is known.
//!
//! Source of the weights: none that was measured on a split board; scaling to the measured total takes
//! the error of the sum away (arXiv 2501.17752), and the shares are class C.

use std::time::Duration;

use super::Instance;
use super::gpu::{Part, Payers, in_flight};
use super::holding::{Held, InstanceHeld};
use super::meter::{MeterState, Pending};
use super::walk::Stretch;
use super::work::Timeline;
use crate::clock::Timestamp;

/// What instances contend for may be another's by this part of it, where the driver tells how busy they
/// were, and where it does not.
const TOLD_ERROR: f64 = 0.5;
const UNTOLD_ERROR: f64 = 0.8;
/// An instance that is less busy than this does nothing.
const QUIET: f64 = 0.01;
/// Work is kept for as long as a late sample may still ask for it.
const KEPT: Duration = Duration::from_secs(5);

/// Who shares an interval.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) parts: Vec<Part>,
    /// Whether they are instances.
    pub(super) is_split: bool,
    /// Whether processes that serve nothing are known to have been at work.
    pub(super) stirs: bool,
    /// The part of what is contended for by instances that may be another's.
    pub(super) doubt: f64,
}

/// The parts of a GPU among which an interval is divided: its instances, or itself. `services` are those
/// whose requests count on it.
pub(super) fn parts(
    meter: &mut MeterState,
    pending: Pending,
    services: Vec<u32>,
    held: Option<&Held>,
    (timeline, stretch, sampled): (&Timeline, &Stretch, &mut Stretch),
) -> Shared {
    let split = meter.holding.split_at(pending.to);
    if let (Some(split), Some(held)) = (split, held) {
        let instances = split.instances.to_vec();
        let window = split.fresh.then_some((split.from, split.to));
        return divided(
            meter,
            pending,
            (&instances, window),
            held,
            (timeline, stretch, sampled),
        );
    }
    let foreign = match held {
        Some(held) if held.others > 0 => meter.holding.foreign_share(pending.to),
        _ => 0.0,
    };
    let payers = held.map(|held| Payers {
        services: held.services.clone(),
        others: held.others,
    });
    Shared {
        parts: vec![Part {
            weight: 1.0,
            services,
            payers,
            foreign,
        }],
        // Who holds which instance is not known: all share the board.
        is_split: split.is_some(),
        stirs: foreign > 0.0,
        doubt: UNTOLD_ERROR,
    }
}

/// Who is on one instance. What is on no known one may be on any.
fn members(held: &Held, instance: u32) -> Payers {
    let entry = |entry: &&InstanceHeld| entry.instance == instance;
    let of_it = held.instances.iter().find(entry);
    let mut services = of_it.map_or(Vec::new(), |of_it| of_it.services.clone());
    let placed = |service: &u32| {
        let mut all = held.instances.iter().flat_map(|held| &held.services);
        all.any(|placed| placed == service)
    };
    services.extend(held.services.iter().filter(|service| !placed(service)));
    let placed_others: u32 = held.instances.iter().map(|held| held.others).sum();
    Payers {
        services,
        others: of_it.map_or(0, |of_it| of_it.others) + held.others.saturating_sub(placed_others),
    }
}

/// The instances of a board, and for which time their activity was told, if it was.
fn divided(
    meter: &mut MeterState,
    pending: Pending,
    (instances, window): (&[Instance], Option<(Timestamp, Timestamp)>),
    held: &Held,
    (timeline, stretch, sampled): (&Timeline, &Stretch, &mut Stretch),
) -> Shared {
    let kappa = meter.phases.ratio();
    let members: Vec<Payers> = instances
        .iter()
        .map(|instance| members(held, instance.id))
        .collect();
    let work_in = |stretch: &Stretch, of: &Payers| {
        let in_flight = in_flight(stretch, timeline, &of.services);
        in_flight.map_or(0.0, |did| did.busy + (kappa - 1.0) * did.prefill)
    };
    let work: Vec<f64> = members.iter().map(|of| work_in(stretch, of)).collect();
    let seconds = pending.to.seconds_since(pending.from);
    let sample = window.map(|(from, to)| {
        let to = to.max(pending.to);
        meter.walk.look(timeline, to, sampled);
        (from, to.seconds_since(from))
    });
    let all = instances.iter().zip(&members).zip(&work);
    let placed = all.map(|((instance, of), &work)| {
        let before = |from| meter.holding.worked_since(from, instance.id);
        let (sampled_work, sampled_seconds) = match sample {
            Some((from, seconds)) => (before(from) + work_in(sampled, of), seconds),
            None => (work, seconds),
        };
        Placed {
            slices: f64::from(instance.slices),
            activity: sample.and(instance.activity),
            others: of.others > 0,
            work,
            seconds,
            sampled_work,
            sampled_seconds,
        }
    });
    let placed: Vec<Placed> = placed.collect();
    let ids = instances.iter().map(|instance| instance.id);
    meter
        .holding
        .remember_work(pending.to, ids.zip(work).collect(), KEPT);
    let told = window.is_some();
    let mut weights: Vec<f64> = placed.iter().map(Placed::weight).collect();
    if !any(&weights) {
        weights = placed.iter().map(|of| of.slices * of.work).collect();
    }
    if !any(&weights) {
        let holds = |of: &Payers| !of.services.is_empty() || of.others > 0;
        let slices = placed.iter().zip(&members);
        weights = slices
            .map(|(placed, of)| if holds(of) { placed.slices } else { 0.0 })
            .collect();
    }
    let parts = weights.into_iter().zip(members).map(|(weight, of)| Part {
        weight,
        services: of.services.clone(),
        payers: Some(of),
        foreign: 0.0,
    });
    Shared {
        parts: parts.collect(),
        is_split: true,
        stirs: placed.iter().any(Placed::stirs),
        doubt: if told { TOLD_ERROR } else { UNTOLD_ERROR },
    }
}

fn any(weights: &[f64]) -> bool {
    weights.iter().any(|weight| *weight > 0.0)
}

/// What is known of one instance in an interval.
#[derive(Debug, Clone, Copy)]
struct Placed {
    slices: f64,
    /// While it was sampled.
    activity: Option<f64>,
    /// Whether processes hold it that serve nothing.
    others: bool,
    /// What its requests did in the interval: seconds, those in prefill times κ.
    work: f64,
    /// The interval's length.
    seconds: f64,
    /// What its requests did while it was sampled, and how long that was.
    sampled_work: f64,
    sampled_seconds: f64,
}

impl Placed {
    /// Its work in the interval, in slice-seconds.
    fn weight(&self) -> f64 {
        let Some(activity) = self.activity else {
            let work = if self.others {
                self.work.max(self.seconds)
            } else {
                self.work
            };
            return self.slices * work;
        };
        let evenly = self.slices * activity.max(0.0) * self.seconds;
        if self.others || self.sampled_work <= 0.0 {
            return evenly;
        }
        let part = self.work / self.sampled_work;
        // More than all of it is not possible: then others were at work there too.
        let most = self.slices * self.seconds;
        (self.slices * activity.max(0.0) * self.sampled_seconds * part).min(most)
    }

    fn stirs(&self) -> bool {
        self.others && self.activity.is_none_or(|activity| activity > QUIET)
    }
}
