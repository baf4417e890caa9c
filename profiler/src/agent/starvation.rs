//! When a GPU had work and its engine did not feed it: pure.
//!
//! In: what the engine's thread did up to each tick, whether requests were in flight, and the GPU's
//! energy interval by interval. Out: for each interval in which the GPU drew less than its base
//! while requests were in flight, the time that the thread waited in it, by reason.
//!
//! The base is learned: the median power of the latest [`KEPT`] intervals that had requests in flight
//! throughout and in which the thread hardly waited for a CPU. Below [`BELOW`] of the way from idle to it
//! a GPU is starved. Time in the run queue counts whole: a thread that is runnable would have fed the GPU.
//! Blocked time counts up to the time that the GPU's power is short of, less the run queue's: an engine
//! sleeps while its GPU computes, and that is no starvation.

use std::collections::VecDeque;

use crate::clock::Timestamp;
use crate::waits::{Reason, ThreadTimes};

/// Intervals from which the base is learned: a quarter of a minute of them, at ten a second.
const KEPT: usize = 150;
/// Before so many there is no base.
const LEAST: usize = 10;
/// Part of the base, above idle, below which a GPU is starved: what a counter's tick is off by stays above.
const BELOW: f64 = 0.9;
/// Part of an interval that a thread may wait for a CPU and still not be held up.
const HELD_UP: f64 = 0.02;
/// A longer interval had nobody looking.
const LONGEST_NS: u64 = 1_000_000_000;
/// So long the past is kept.
const HISTORY_NS: u64 = 5_000_000_000;

/// Reasons for which a GPU starves: the run queue, then those for which a thread blocks.
pub(super) const REASONS: [&str; 7] = [
    "run_queue",
    Reason::Sleep.name(),
    Reason::Disk.name(),
    Reason::Futex.name(),
    Reason::Poll.name(),
    Reason::Socket.name(),
    Reason::Other.name(),
];

const BLOCKED: [Reason; 6] = [
    Reason::Sleep,
    Reason::Disk,
    Reason::Futex,
    Reason::Poll,
    Reason::Socket,
    Reason::Other,
];

/// Nanoseconds by reason, in the order of [`REASONS`].
pub(super) type Starved = [u64; REASONS.len()];

/// Sums since some moment.
#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Timestamp,
    /// In the order of [`REASONS`].
    waited: Starved,
    in_flight: u64,
}

/// One energy interval of a GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) watts: f64,
    /// The idle floor, if it is known.
    pub(super) idle_watts: f64,
}

/// One GPU and the thread that feeds it.
#[derive(Debug, Default)]
pub(super) struct Starvation {
    tid: u32,
    moments: VecDeque<Moment>,
    /// Not yet covered by moments.
    pending: VecDeque<Interval>,
    /// Power of intervals that were not held up.
    powers: VecDeque<f64>,
}

impl Starvation {
    /// What the thread did up to `at`, and whether requests are in flight; they were since the
    /// moment before if they are now.
    pub(super) fn look(&mut self, at: Timestamp, times: &ThreadTimes, in_flight: bool) {
        if self.tid != times.tid {
            self.tid = times.tid;
            self.moments.clear();
            self.pending.clear();
        }
        let mut waited = [0; REASONS.len()];
        for (sum, nanos) in waited.iter_mut().zip(
            [times.run_queue]
                .into_iter()
                .chain(BLOCKED.map(|reason| times.off_cpu(reason))),
        ) {
            *sum = nanos;
        }
        let before = self.moments.back();
        let flown = before.map_or(0, |before| {
            before.in_flight + if in_flight { at.since(before.at) } else { 0 }
        });
        self.moments.push_back(Moment {
            at,
            waited,
            in_flight: flown,
        });
        while self
            .moments
            .front()
            .is_some_and(|first| at.since(first.at) > HISTORY_NS)
        {
            self.moments.pop_front();
        }
    }

    /// An interval has closed.
    pub(super) fn add(&mut self, interval: Interval) {
        let length = interval.to.since(interval.from);
        if length > 0 && length <= LONGEST_NS {
            self.pending.push_back(interval);
        }
        // The thread may have left its GPU: then nothing covers them any more.
        while self
            .pending
            .front()
            .is_some_and(|first| interval.to.since(first.to) > HISTORY_NS)
        {
            self.pending.pop_front();
        }
    }

    /// The starved time of all intervals that are covered by now; `None` while there is no base.
    pub(super) fn take(&mut self) -> Option<Starved> {
        let mut sum = [0; REASONS.len()];
        let mut is_known = false;
        while let (Some(interval), Some(latest)) = (self.pending.front(), self.moments.back())
            && interval.to <= latest.at
        {
            let interval = *interval;
            self.pending.pop_front();
            if let Some(starved) = self.judge(&interval) {
                is_known = true;
                for (sum, nanos) in sum.iter_mut().zip(starved) {
                    *sum += nanos;
                }
            }
        }
        is_known.then_some(sum)
    }

    fn judge(&mut self, interval: &Interval) -> Option<Starved> {
        let (from, to) = (self.at(interval.from)?, self.at(interval.to)?);
        let length = interval.to.since(interval.from) as f64;
        let flown = to.in_flight.saturating_sub(from.in_flight) as f64 / length;
        let mut waited = to.waited;
        for (nanos, before) in waited.iter_mut().zip(from.waited) {
            *nanos = nanos.saturating_sub(before);
        }
        let [run_queue, blocked @ ..] = waited;
        let base = self.base();
        if flown > 0.99 && (run_queue as f64) < HELD_UP * length {
            self.powers.push_back(interval.watts);
            if self.powers.len() > KEPT {
                self.powers.pop_front();
            }
        }
        let idle = interval.idle_watts;
        let base = base.filter(|base| *base > idle)?;
        let fed = (interval.watts - idle) / (base - idle);
        let mut starved = [0; REASONS.len()];
        if fed >= BELOW || flown <= 0.0 {
            return Some(starved);
        }
        let missing = length * (1.0 - fed).min(1.0);
        let all: u64 = blocked.iter().sum();
        let part = if all == 0 {
            0.0
        } else {
            ((missing - run_queue as f64).max(0.0) / all as f64).min(1.0)
        };
        let parts = [1.0].into_iter().chain(blocked.map(|_| part));
        for ((starved, nanos), part) in starved.iter_mut().zip(waited).zip(parts) {
            *starved = (nanos as f64 * part * flown.min(1.0)) as u64;
        }
        Some(starved)
    }

    /// The power of a GPU that computes and is not held up.
    fn base(&self) -> Option<f64> {
        if self.powers.len() < LEAST {
            return None;
        }
        let mut powers: Vec<f64> = self.powers.iter().copied().collect();
        let middle = powers.len() / 2;
        let (_, median, _) = powers.select_nth_unstable_by(middle, f64::total_cmp);
        Some(*median)
    }

    /// The sums at a moment between two looks; `None` outside of what is kept.
    fn at(&self, at: Timestamp) -> Option<Moment> {
        let after = self.moments.partition_point(|moment| moment.at < at);
        let later = self.moments.get(after)?;
        if later.at == at {
            return Some(*later);
        }
        let earlier = self.moments.get(after.checked_sub(1)?)?;
        let part = at.since(earlier.at) as f64 / later.at.since(earlier.at) as f64;
        let between = |one: u64, other: u64| one + (other.saturating_sub(one) as f64 * part) as u64;
        let mut waited = earlier.waited;
        for (nanos, later) in waited.iter_mut().zip(later.waited) {
            *nanos = between(*nanos, later);
        }
        Some(Moment {
            at,
            waited,
            in_flight: between(earlier.in_flight, later.in_flight),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 100_000_000;

    /// A GPU of 80 W idle and 280 W busy, looked at every tick.
    struct World {
        starvation: Starvation,
        tick: u64,
        times: ThreadTimes,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self {
                starvation: Starvation::default(),
                tick: 1,
                times: ThreadTimes::none(9, 9),
            };
            let at = Timestamp(TICK);
            world.starvation.look(at, &world.times, true);
            world
        }

        /// One tick; what is starved in it.
        fn tick(
            &mut self,
            watts: f64,
            run_queue: u64,
            poll: u64,
            in_flight: bool,
        ) -> Option<Starved> {
            let from = Timestamp(self.tick * TICK);
            self.tick += 1;
            let to = Timestamp(self.tick * TICK);
            self.times.run_queue += run_queue;
            self.times.add_off_cpu(Reason::Poll, poll);
            self.starvation.look(to, &self.times, in_flight);
            self.starvation.add(Interval {
                from,
                to,
                watts,
                idle_watts: 80.0,
            });
            self.starvation.take()
        }

        fn taught() -> Self {
            let mut world = Self::new();
            for _ in 0..20 {
                world.tick(280.0, 0, TICK, true);
            }
            world
        }
    }

    #[test]
    fn a_gpu_whose_base_nobody_knows_is_not_said_to_starve() {
        let mut world = World::new();
        for _ in 0..5 {
            assert_eq!(world.tick(80.0, TICK, 0, true), None);
        }
    }

    #[test]
    fn a_thread_that_waits_for_a_cpu_starves_its_gpu_for_as_long_as_it_waits() {
        let mut world = World::taught();
        let starved = world.tick(200.0, TICK / 2, TICK / 2, true).unwrap();
        assert_eq!(starved[0], TICK / 2);
        // 80 of 200 W are missing: less than the run queue's half already.
        assert_eq!(starved[4], 0);
    }

    #[test]
    fn a_blocked_thread_starves_its_gpu_only_for_what_the_gpu_is_short_of() {
        let mut world = World::taught();
        let starved = world.tick(180.0, 0, TICK, true).unwrap();
        assert_eq!((starved[0], starved[4]), (0, TICK / 2));
    }

    #[test]
    fn a_busy_gpu_and_one_without_requests_do_not_starve() {
        let mut world = World::taught();
        assert_eq!(world.tick(279.0, TICK / 2, TICK / 2, true), Some([0; 7]));
        assert_eq!(world.tick(80.0, TICK, 0, false), Some([0; 7]));
    }

    #[test]
    fn what_a_starved_gpu_draws_is_not_taken_for_its_base() {
        let mut world = World::taught();
        for _ in 0..300 {
            let starved = world.tick(150.0, TICK / 2, 0, true).unwrap();
            assert_eq!(starved[0], TICK / 2);
        }
    }

    #[test]
    fn another_thread_begins_anew() {
        let mut world = World::taught();
        world.times = ThreadTimes::none(10, 9);
        world.times.run_queue = 1_000 * TICK;
        assert_eq!(world.tick(100.0, 0, 0, true), None);
        assert_eq!(world.tick(100.0, TICK, 0, true).unwrap()[0], TICK);
    }
}
