//! Follows an energy counter that changes in steps: learns the period and phase of its changes,
//! and asks to be read just before and just after the next one.
//!
//! In: what each read showed, between which two moments. Out: when to read next, and an [`Edge`]
//! for every change seen. Pure: no clock, no device.
//!
//! NVIDIA's counter changes about every 100 ms on data-centre boards; the change's moment must be
//! known far better than that, because every interval of the ledger ends at one. Polling at
//! 20 ms learns the period, then about three reads a change keep the bracket at a few
//! milliseconds. At rest some changes are let go: the intervals get longer, their edges no worse.

mod period;

use std::time::Duration;

use crate::clock::Timestamp;
use crate::units::Microjoules;
use period::fit_period;

const MILLISECOND: u64 = 1_000_000;
/// Between two reads while nothing is known yet.
const LEARNING_POLL: u64 = 20 * MILLISECOND;
/// Between two reads once a counter has stood still for [`PATIENCE`].
const STANDING_POLL: u64 = 100 * MILLISECOND;
/// The shortest time spent learning.
const LEARNING_TIME: u64 = 2_000 * MILLISECOND;
/// A counter that did not change for so long is polled slowly until it does.
const PATIENCE: u64 = 10_000 * MILLISECOND;
/// Between two reads of a counter that changes faster than it is worth following.
const FAST_POLL: u64 = 100 * MILLISECOND;
/// What is assumed of a counter until its period is learned.
const NOMINAL_PERIOD: u64 = 100 * MILLISECOND;
/// One read so long before the others around a change keeps the bracket at this width when the
/// next one comes too late, because the thread was woken late or the change came early.
const GUARD: u64 = 10 * MILLISECOND;
/// Between two changes that are followed at rest. Those between them are let go, never more
/// coarsely seen: every edge that is told keeps its bracket.
const REST: f64 = 200.0 * MILLISECOND as f64;
/// So many changes in a row in the wrong place put the period itself in doubt.
const ENOUGH_MISSES: u32 = 4;
/// The latest change is no longer ago than so many periods.
const LATEST: f64 = 1.25;
/// The finest distance of two reads around an expected change.
const FINEST_STEP: u64 = 2_500_000;

/// A change of the counter: the old value was still shown at `after`, the new one at `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// The last moment at which the old value was certainly still shown.
    pub after: Timestamp,
    /// The first moment at which the new value was certainly shown.
    pub until: Timestamp,
    /// The new value.
    pub energy: Microjoules,
}

impl Edge {
    fn width(&self) -> u64 {
        self.until.since(self.after)
    }

    fn middle(&self) -> u64 {
        self.after.0 + self.width() / 2
    }
}

/// How well the counter's changes are known at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Nothing known yet: polling.
    Learning,
    /// The period is known, the phase is not: polling finely for one change.
    Searching,
    /// Period and phase are known.
    Locked,
    /// The counter changes too fast to be followed; each read is a change.
    Fast,
}

#[derive(Debug)]
enum Phase {
    Learning {
        since: Timestamp,
        edges: Vec<Edge>,
    },
    Searching {
        since: Timestamp,
    },
    Locked {
        expected: u64,
        /// Changes before the expected one were let go, and no read has shown them yet.
        let_go: bool,
    },
    /// Changes at least every `within` nanoseconds.
    Fast {
        within: u64,
    },
}

/// What the latest read showed.
#[derive(Debug, Clone, Copy)]
struct Shown {
    value: Microjoules,
    /// A moment at which it was certainly shown: the start of the latest call that returned it.
    at: Timestamp,
}

/// The state of following one counter.
#[derive(Debug)]
pub struct Follower {
    phase: Phase,
    shown: Option<Shown>,
    next: Timestamp,
    /// Nanoseconds between changes, as far as it is known.
    period: f64,
    /// How long before an expected change the reads begin.
    lead: u64,
    /// Changes in a row that were not where they were expected.
    misses: u32,
    /// Factor on every distance between reads; above 1 when the device is slow to answer.
    strain: u64,
    /// Nobody is served: not every change matters.
    rests: bool,
}

impl Follower {
    /// A follower that wants its first read at `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Learning {
                since: now,
                edges: Vec::new(),
            },
            shown: None,
            next: now,
            period: NOMINAL_PERIOD as f64,
            lead: 2 * FINEST_STEP,
            misses: 0,
            strain: 1,
            rests: false,
        }
    }

    /// When the counter should be read next.
    pub fn next_read(&self) -> Timestamp {
        self.next
    }

    /// Time between two changes: learned, or 100 ms until it is.
    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.period as u64)
    }

    /// How well the changes are known.
    pub fn lock(&self) -> Lock {
        match self.phase {
            Phase::Learning { .. } => Lock::Learning,
            Phase::Searching { .. } => Lock::Searching,
            Phase::Locked { .. } => Lock::Locked,
            Phase::Fast { .. } => Lock::Fast,
        }
    }

    /// Puts `factor` (1 to 16) times the usual distance between reads, for a device that answers
    /// slowly.
    pub fn set_strain(&mut self, factor: u32) {
        let strain = u64::from(factor.clamp(1, 16));
        if strain != self.strain && matches!(self.phase, Phase::Fast { .. }) {
            // What looked fast at one rate of polling may not at another.
            self.phase = Phase::Learning {
                since: self.next,
                edges: Vec::new(),
            };
        }
        self.strain = strain;
    }

    /// Follows no more changes than one every 200 ms from the next one on, or each again.
    pub const fn set_rest(&mut self, rests: bool) {
        self.rests = rests;
    }

    /// Takes what a read between `start` and `end` showed. Returns the change, if it shows one.
    pub fn observe(
        &mut self,
        start: Timestamp,
        end: Timestamp,
        value: Microjoules,
    ) -> Option<Edge> {
        let previous = self.shown.replace(Shown { value, at: start });
        let Some(previous) = previous else {
            self.phase = Phase::Learning {
                since: start,
                edges: Vec::new(),
            };
            self.next = end.plus(self.poll());
            return None;
        };
        let let_go = match &mut self.phase {
            Phase::Locked { let_go, .. } => std::mem::take(let_go),
            _ => false,
        };
        if value == previous.value {
            self.unchanged(end);
            return None;
        }
        if let_go && value > previous.value {
            self.passed(start, end);
            return None;
        }
        let edge = Edge {
            after: self.certain_after(previous.at, start),
            until: end,
            energy: value,
        };
        if value < previous.value {
            // A reset of the driver or the board: the phase is gone, the period most likely not.
            match self.phase {
                Phase::Locked { .. } | Phase::Searching { .. } => self.search_from(end),
                Phase::Learning { .. } | Phase::Fast { .. } => {
                    let (since, edges) = (end, Vec::new());
                    self.phase = Phase::Learning { since, edges };
                    self.next = end.plus(self.poll());
                }
            }
        } else {
            self.changed(edge, start);
        }
        Some(edge)
    }

    /// A counter whose pace is known changed no longer ago than that, even if the latest read was
    /// earlier: after a hole in the reads the change that shows is the last of many. Dated into
    /// the whole hole, it would put the hole's energy into a part of its time.
    fn certain_after(&self, previous: Timestamp, start: Timestamp) -> Timestamp {
        let within = match self.phase {
            Phase::Learning { .. } => return previous,
            Phase::Searching { .. } | Phase::Locked { .. } => (LATEST * self.period) as u64,
            Phase::Fast { within } => within,
        };
        previous.max(start.minus(Duration::from_nanos(within)))
    }

    fn unchanged(&mut self, end: Timestamp) {
        let step = self.step();
        match &mut self.phase {
            Phase::Learning { since, edges } => {
                let standing = end.since(*since) > PATIENCE && edges.is_empty();
                let poll = if standing {
                    STANDING_POLL
                } else {
                    LEARNING_POLL
                };
                self.next = end.plus(Duration::from_nanos(poll * self.strain));
            }
            Phase::Searching { since } => {
                if end.since(*since) as f64 > 3.0 * self.period {
                    self.phase = Phase::Learning {
                        since: end,
                        edges: Vec::new(),
                    };
                    self.next = end.plus(self.poll());
                } else {
                    self.next = end.plus(self.search_poll());
                }
            }
            Phase::Locked { expected, .. } => {
                if end.0 as f64 > *expected as f64 + self.period / 4.0 {
                    self.miss(end);
                } else {
                    // Late, or this was the guard or the read before the change.
                    let before = Timestamp(expected.saturating_sub(self.lead));
                    self.next = end.plus(Duration::from_nanos(step)).max(before);
                }
            }
            Phase::Fast { .. } => {
                // A counter that stands still at this distance is not a fast one.
                self.phase = Phase::Learning {
                    since: end,
                    edges: Vec::new(),
                };
                self.next = end.plus(self.poll());
            }
        }
    }

    /// The first read after changes that were let go shows the last of them, unless it came too
    /// late: then it may be the expected one, which has no edge for want of a read before it.
    fn passed(&mut self, start: Timestamp, end: Timestamp) {
        match self.phase {
            Phase::Locked { expected, .. } if start.0 > expected => {
                self.grow_lead(1.6);
                let passed = ((start.0 - expected) as f64 / self.period).floor();
                self.expect(expected + (passed * self.period) as u64, 1.0);
            }
            _ => self.unchanged(end),
        }
    }

    fn changed(&mut self, edge: Edge, start: Timestamp) {
        match &mut self.phase {
            Phase::Learning { since, edges } => {
                edges.push(edge);
                let learned = if edge.until.since(*since) >= LEARNING_TIME {
                    fit_period(edges)
                } else {
                    None
                };
                match learned {
                    None => {
                        // Old edges would make the fit slow to notice a new period.
                        if edges.len() > 64 {
                            edges.remove(0);
                        }
                        self.next = edge.until.plus(self.poll());
                    }
                    Some(period) if period < self.fastest() => {
                        self.period = period;
                        self.phase = Phase::Fast {
                            within: self.fastest() as u64,
                        };
                        self.next = edge.until.plus(self.fast_poll());
                    }
                    Some(period) => {
                        self.period = period;
                        self.lead = 2 * FINEST_STEP;
                        self.search_from(edge.until);
                    }
                }
            }
            Phase::Searching { .. } => {
                let narrow = (self.period / 8.0).max(1.5 * self.search_poll().as_nanos() as f64);
                if edge.width() as f64 <= narrow.min(self.period / 2.0) {
                    self.lead = self.lead.max(edge.width());
                    self.expect(edge.middle(), 1.0);
                } else {
                    self.search_from(edge.until);
                }
            }
            Phase::Locked { expected, .. } => {
                let expected = *expected;
                if edge.width() as f64 <= self.period / 4.0 {
                    if edge.width() > self.step() * 3 / 2 {
                        // Only the guard saw the old value.
                        self.grow_lead(1.25);
                    }
                    self.refine(edge, expected);
                } else {
                    // The change came before all reads around it, or the thread was woken too
                    // late to see it come.
                    self.grow_lead(1.6);
                    if start.0 > expected {
                        let passed = ((start.0 - expected) as f64 / self.period).floor();
                        self.expect(expected + (passed * self.period) as u64, 1.0);
                    } else {
                        self.miss(edge.until);
                    }
                }
            }
            Phase::Fast { .. } => self.next = edge.until.plus(self.fast_poll()),
        }
    }

    /// A change moves the expected phase and period towards it, the more the narrower its
    /// bracket is.
    fn refine(&mut self, edge: Edge, expected: u64) {
        self.misses = 0;
        let error = edge.middle() as f64 - expected as f64;
        let trust = (self.step() as f64 / edge.width().max(1) as f64)
            .min(1.0)
            .powi(2);
        self.period = (self.period + 0.02 * trust * error).max(self.fastest());
        let corrected = expected as f64 + 0.3 * trust * error;
        // The bracket is certain; the expectation is not.
        let phase = (corrected as u64).clamp(edge.after.0, edge.until.0);
        // One change in about fifteen that only the guard saw come keeps the balance of growing
        // and shrinking.
        self.lead = (self.lead * 985 / 1_000).max(FINEST_STEP * self.strain);
        let changes = if self.rests {
            (REST / self.period).round().max(1.0)
        } else {
            1.0
        };
        self.expect(phase, changes);
    }

    fn grow_lead(&mut self, factor: f64) {
        self.lead = ((self.lead as f64 * factor) as u64).min((self.period / 4.0) as u64);
    }

    /// Plans the reads around the change that comes so many `changes` after the one at `latest`.
    fn expect(&mut self, latest: u64, changes: f64) {
        let expected = latest + (changes * self.period) as u64;
        let let_go = changes > 1.0;
        self.phase = Phase::Locked { expected, let_go };
        let guard = GUARD.min(self.period as u64 / 10);
        // A device that is slow to answer is spared this read.
        let guard = if self.strain == 1 { guard } else { 0 };
        self.next = Timestamp(expected.saturating_sub(self.lead + guard));
    }

    /// A change that is not where it was expected is searched for. When that happens again and
    /// again, it is the period that is wrong.
    fn miss(&mut self, now: Timestamp) {
        self.misses += 1;
        if self.misses >= ENOUGH_MISSES {
            let (since, edges) = (now, Vec::new());
            self.phase = Phase::Learning { since, edges };
            self.next = now.plus(self.poll());
            self.misses = 0;
        } else {
            self.search_from(now);
        }
    }

    fn search_from(&mut self, now: Timestamp) {
        self.phase = Phase::Searching { since: now };
        self.next = now.plus(self.search_poll());
    }

    /// Distance of two reads around an expected change.
    fn step(&self) -> u64 {
        (self.lead / 3).max(FINEST_STEP * self.strain)
    }

    fn poll(&self) -> Duration {
        Duration::from_nanos(LEARNING_POLL * self.strain)
    }

    /// Changes closer together than this cannot be told from a continuous counter by polling.
    fn fastest(&self) -> f64 {
        1.5 * self.poll().as_nanos() as f64
    }

    fn fast_poll(&self) -> Duration {
        Duration::from_nanos(FAST_POLL).max(self.poll())
    }

    fn search_poll(&self) -> Duration {
        let finest = (self.period as u64 / 20).min(LEARNING_POLL);
        Duration::from_nanos(finest.max(FINEST_STEP) * self.strain)
    }
}

#[cfg(test)]
mod tests;
