//! One service as the ledger knows it: which of its requests wait for first data, what its
//! responses mostly are, its prefill speed, and what has been given to its requests so far.

use std::collections::{BTreeSet, VecDeque};

use super::ServiceId;
use super::prefill::PrefillSpeed;
use crate::clock::Timestamp;

/// Outputs closer together than this are one step's, nanoseconds.
const ONE_STEP: u64 = 1_000_000;
/// Where so many outputs come together with another's, streams put out every step.
const IN_LOCKSTEP: f64 = 0.6;
/// Steps that are remembered: more than pass while an engine's metrics are read.
const STEPS: usize = 64;

/// One service's requests.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) id: ServiceId,
    /// Requests that are not booked yet.
    pub(super) open: u64,
    /// By component: µJ put on its requests, and µJ already booked to them.
    pub(super) given: [i128; 3],
    pub(super) booked: [i128; 3],
    /// By component: what rounding has left over, 2⁻⁶⁴ µJ.
    pub(super) carry: [u64; 3],
    pub(super) speed: PrefillSpeed,
    /// No first data yet.
    pub(super) waiting: BTreeSet<(Timestamp, u32)>,
    /// The same, and some interval could not wait for it; later ones still do.
    pub(super) overdue: BTreeSet<(Timestamp, u32)>,
    /// Responses that stream, and that do not.
    pub(super) kinds: Kinds,
    /// The same of those whose first data was overdue.
    pub(super) overdue_kinds: Kinds,
    /// When its responses last put something out, in order of time.
    outputs: VecDeque<Timestamp>,
    /// The part of outputs that came together with another's, lately.
    together: f64,
}

/// How many responses streamed and how many did not, lately.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kinds {
    streamed: f64,
    unstreamed: f64,
}

impl Kinds {
    pub(super) fn count(&mut self, streamed: bool) {
        const KEEP: f64 = 0.98;
        self.streamed = self.streamed * KEEP + f64::from(u8::from(streamed));
        self.unstreamed = self.unstreamed * KEEP + f64::from(u8::from(!streamed));
    }

    pub(super) fn mostly_unstreamed(self) -> bool {
        self.unstreamed > self.streamed
    }
}

impl Service {
    pub(super) fn new(id: ServiceId, held_speed: Option<f64>) -> Self {
        Self {
            id,
            open: 0,
            given: [0; 3],
            booked: [0; 3],
            carry: [0; 3],
            speed: held_speed.map_or_else(PrefillSpeed::default, PrefillSpeed::held),
            waiting: BTreeSet::new(),
            overdue: BTreeSet::new(),
            kinds: Kinds::default(),
            overdue_kinds: Kinds::default(),
            outputs: VecDeque::new(),
            together: 0.0,
        }
    }

    /// One of its responses put something out.
    pub(super) fn put_out(&mut self, at: Timestamp) {
        let later = self.outputs.iter().rev().take_while(|known| **known > at);
        let place = self.outputs.len() - later.count();
        let is_known = |known: Option<&Timestamp>| {
            known.is_some_and(|known| at.since(*known).max(known.since(at)) <= ONE_STEP)
        };
        let before = place
            .checked_sub(1)
            .and_then(|place| self.outputs.get(place));
        let coincides = is_known(before) || is_known(self.outputs.get(place));
        self.together += 0.01 * (f64::from(u8::from(coincides)) - self.together);
        if coincides {
            return;
        }
        if let Some(before) = before {
            self.speed.output_gap(at.seconds_since(*before));
        }
        self.outputs.insert(place, at);
        if self.outputs.len() > STEPS {
            self.outputs.pop_front();
        }
    }

    /// When a response last put something out before `until`, if streams put out every step: where
    /// chunks are of several tokens, or late, the last output says little of the last step.
    pub(super) fn output_before(&self, until: Timestamp) -> Option<Timestamp> {
        if self.together < IN_LOCKSTEP {
            return None;
        }
        let earlier = self.outputs.iter().rev().find(|at| **at < until);
        earlier.copied()
    }

    /// The end of the last step but one by `until`, as far as outputs show it: they may be late,
    /// and then the latest lies in the step that follows.
    pub(super) fn step_before(&self, until: Timestamp) -> Option<Timestamp> {
        let earlier = self.outputs.iter().rev().filter(|at| **at <= until);
        earlier.copied().nth(1)
    }

    /// True if a request that started before `before` has no first data yet.
    pub(super) fn waits(&self, before: Timestamp) -> bool {
        let waits = |set: &BTreeSet<(Timestamp, u32)>| {
            set.first().is_some_and(|(start, _)| *start < before)
        };
        waits(&self.waiting) || waits(&self.overdue)
    }

    /// Of the requests that wait for first data, and are `silent`, so many of the youngest.
    pub(super) fn youngest(
        &self,
        count: usize,
        silent: impl Fn(Timestamp, u32) -> bool,
    ) -> Vec<u32> {
        let waiting = self.waiting.iter().chain(&self.overdue);
        let mut waiting: Vec<(Timestamp, u32)> = waiting
            .filter(|(start, flight)| silent(*start, *flight))
            .copied()
            .collect();
        waiting.sort_unstable_by(|one, two| two.cmp(one));
        let youngest = waiting.into_iter().take(count);
        youngest.map(|(_, flight)| flight).collect()
    }

    /// Waits no longer for this request.
    pub(super) fn forget(&mut self, start: Timestamp, flight: u32) {
        if !self.waiting.remove(&(start, flight)) {
            self.overdue.remove(&(start, flight));
        }
    }

    /// True if a response whose first data is overdue most likely does not stream: where streams
    /// are quick to begin, silence tells that it does not.
    pub(super) fn overdue_is_unstreamed(&self) -> bool {
        let Kinds {
            streamed,
            unstreamed,
        } = self.overdue_kinds;
        let known = streamed + unstreamed > 0.0;
        if known {
            self.overdue_kinds
        } else {
            self.kinds
        }
        .mostly_unstreamed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp(milliseconds * 1_000_000)
    }

    #[test]
    fn the_last_output_is_told_only_of_streams_that_put_out_together() {
        let mut together = Service::new(ServiceId(1), None);
        let mut apart = Service::new(ServiceId(2), None);
        for step in 1..=200 {
            let shared = at(20 * step);
            together.put_out(shared);
            together.put_out(shared);
            together.put_out(shared);
            together.put_out(shared);
            apart.put_out(shared);
        }
        assert_eq!(together.output_before(at(4_000)), Some(at(3_980)));
        assert_eq!(apart.output_before(at(4_000)), None);
    }

    #[test]
    fn outputs_that_are_told_late_are_put_in_their_order() {
        let mut service = Service::new(ServiceId(1), None);
        for step in [1, 3, 2, 5, 4] {
            for _ in 0..100 {
                service.put_out(at(20 * step));
            }
        }
        assert_eq!(service.output_before(at(81)), Some(at(80)));
        assert_eq!(service.output_before(at(61)), Some(at(60)));
    }
}
