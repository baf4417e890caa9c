//! One service as the ledger knows it: which of its requests wait for first data, what its
//! responses mostly are, its prefill speed, and what has been given to its requests so far.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::ServiceId;
use super::prefill::PrefillSpeed;
use crate::clock::Timestamp;

/// Outputs closer together than this are one step's.
const ONE_STEP: Duration = Duration::from_millis(1);
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
    /// Its engine says how many requests wait in its queue.
    pub(super) tells_queue: bool,
    /// When its responses last put something out; kept only for a queue that is told.
    outputs: VecDeque<Timestamp>,
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
            tells_queue: false,
            outputs: VecDeque::new(),
        }
    }

    /// One of its responses put something out.
    pub(super) fn put_out(&mut self, at: Timestamp) {
        let is_later = |last: &Timestamp| at > last.plus(ONE_STEP);
        if self.tells_queue && self.outputs.back().is_none_or(is_later) {
            if self.outputs.len() == STEPS {
                self.outputs.pop_front();
            }
            self.outputs.push_back(at);
        }
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
