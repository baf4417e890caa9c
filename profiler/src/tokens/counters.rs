//! From a server's counters, read again and again, to what was added in between.
//!
//! The first read is the base: what was counted before it belongs to nobody here. Where a counter
//! falls, or another process answers, there is a new base, and what the old one still counted
//! after its last read is lost; that is said, never estimated.

use super::engines::Reading;
use crate::clock::Timestamp;

/// What a read shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The first read.
    Base(Counted),
    /// What was added since the read before.
    Added(Counted),
    /// The counters began anew.
    Reset(Counted),
}

/// Tokens counted between two reads; `None` for a counter that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
}

/// One server's counters at their latest read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    latest: Option<Latest>,
}

#[derive(Debug, Clone)]
struct Latest {
    at: Timestamp,
    /// The listening socket and, as far as told, the process behind it.
    source: Source,
    input: Option<u64>,
    output: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Source {
    engine: &'static str,
    listener: u64,
    process_start: Option<f64>,
}

impl Counters {
    /// The listening socket behind the latest read.
    pub(super) fn listener(&self) -> Option<u64> {
        self.latest.as_ref().map(|latest| latest.source.listener)
    }

    /// Takes a read that was complete at `at`; `listener` tells one listening socket from another.
    pub(super) fn read(&mut self, at: Timestamp, listener: u64, reading: &Reading) -> Step {
        let source = Source {
            engine: reading.engine,
            listener,
            process_start: reading.process_start,
        };
        let before = self.latest.take();
        let base = Counted {
            from: at,
            to: at,
            input: reading.input.map(|_| 0),
            output: reading.output.map(|_| 0),
        };
        let (step, kept) = match before {
            None => (Step::Base(base), (None, None)),
            Some(before) => {
                let fell = |new: Option<u64>, old: Option<u64>| {
                    new.zip(old).is_some_and(|(new, old)| new < old)
                };
                if before.source != source
                    || fell(reading.input, before.input)
                    || fell(reading.output, before.output)
                {
                    (Step::Reset(base), (None, None))
                } else {
                    let added = |new: Option<u64>, old: Option<u64>| {
                        new.map(|new| old.map_or(0, |old| new - old))
                    };
                    let counted = Counted {
                        from: before.at,
                        to: at,
                        input: added(reading.input, before.input),
                        output: added(reading.output, before.output),
                    };
                    (Step::Added(counted), (before.input, before.output))
                }
            }
        };
        self.latest = Some(Latest {
            at,
            source,
            input: reading.input.or(kept.0),
            output: reading.output.or(kept.1),
        });
        step
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Counts;

    fn reading(input: Option<u64>, output: Option<u64>) -> Reading {
        Reading {
            engine: "vllm",
            counts: Counts::Step,
            input,
            output,
            requests: None,
            running: None,
            waiting: None,
            model: None,
            version_path: None,
            process_start: None,
        }
    }

    fn counted(from: u64, to: u64, input: Option<u64>, output: Option<u64>) -> Counted {
        Counted {
            from: Timestamp(from),
            to: Timestamp(to),
            input,
            output,
        }
    }

    #[test]
    fn the_first_read_is_the_base_and_a_fall_begins_anew() {
        let mut counters = Counters::default();
        let mut read =
            |at, input, output| counters.read(Timestamp(at), 1, &reading(Some(input), output));
        assert_eq!(
            read(1, 1_000, None),
            Step::Base(counted(1, 1, Some(0), None))
        );
        assert_eq!(
            read(2, 1_010, Some(7)),
            Step::Added(counted(1, 2, Some(10), Some(0))),
            "a counter that appears late has its own base"
        );
        assert_eq!(
            read(3, 1_010, None),
            Step::Added(counted(2, 3, Some(0), None))
        );
        assert_eq!(
            read(4, 1_011, Some(9)),
            Step::Added(counted(3, 4, Some(1), Some(2))),
            "a counter that was away goes on from where it was"
        );
        assert_eq!(
            read(5, 4, Some(9)),
            Step::Reset(counted(5, 5, Some(0), Some(0)))
        );
        assert_eq!(
            read(6, 6, Some(9)),
            Step::Added(counted(5, 6, Some(2), Some(0)))
        );
    }

    #[test]
    fn another_listener_or_process_has_its_own_base_however_high_it_counts() {
        let mut counters = Counters::default();
        counters.read(Timestamp(1), 1, &reading(Some(5), Some(5)));
        let step = counters.read(Timestamp(2), 2, &reading(Some(500), Some(500)));
        assert!(matches!(step, Step::Reset(_)), "{step:?}");
        let mut restarted = reading(Some(900), Some(900));
        restarted.process_start = Some(1.7e9);
        let step = counters.read(Timestamp(3), 2, &restarted);
        assert!(matches!(step, Step::Reset(_)), "{step:?}");
        restarted.output = Some(901);
        let step = counters.read(Timestamp(4), 2, &restarted);
        assert_eq!(step, Step::Added(counted(3, 4, Some(0), Some(1))));
    }

    proptest! {
        /// Whatever is counted in pieces: the sum of all that was told never exceeds what the
        /// server counted, and is equal to it without a restart.
        #[test]
        fn sums_are_exact(pieces in prop::collection::vec((0_u64..1_000, prop::bool::weighted(0.1)), 1..60)) {
            let mut counters = Counters::default();
            let (mut value, mut sum, mut truth, mut restarts) = (0, 0, 0, 0);
            counters.read(Timestamp(0), 1, &reading(None, Some(0)));
            for (at, (piece, restart)) in (1..).zip(pieces) {
                truth += piece;
                value += piece;
                if restart {
                    restarts += 1;
                    value = 0;
                }
                match counters.read(Timestamp(at), 1, &reading(None, Some(value))) {
                    Step::Added(counted) => sum += counted.output.unwrap_or(0),
                    Step::Base(_) | Step::Reset(_) => {}
                }
            }
            prop_assert!(sum <= truth);
            prop_assert!(restarts > 0 || sum == truth);
        }
    }
}
