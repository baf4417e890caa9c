//! What is added up between looks: time under each throttle reason, bytes of counters that may
//! start anew.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::telemetry::ThrottleReason;

/// Looks further apart than this leave the time between them out: nobody knows what held then.
const LONGEST: Duration = Duration::from_secs(5);

/// Time under each reason. A reason is taken to have held from half-way after the look before
/// until half-way to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Throttled {
    last: Option<(Timestamp, u64)>,
    nanos: [u64; ThrottleReason::ALL.len()],
}

impl Throttled {
    /// Takes the reasons' bits as seen at `at`; returns the times so far.
    pub(super) fn add(&mut self, at: Timestamp, bits: u64) -> [u64; ThrottleReason::ALL.len()] {
        if let Some((before, earlier)) = self.last.replace((at, bits)) {
            let nanos = at.since(before);
            if nanos <= LONGEST.as_nanos() as u64 {
                for (sum, reason) in self.nanos.iter_mut().zip(ThrottleReason::ALL) {
                    let ends = [earlier, bits].map(|seen| seen & reason.bit() != 0);
                    let holding = ends.into_iter().filter(|held| *held).count() as u64;
                    *sum += nanos * holding / 2;
                }
            }
        }
        self.nanos
    }
}

/// A counter that fell: it wraps, and how often between two looks cannot be known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fell;

/// The sum of a counter's rises since the first look.
#[derive(Debug, Clone, Default)]
pub(super) struct Rise {
    last: Option<u64>,
    sum: u64,
}

impl Rise {
    /// Takes the counter's value; returns the sum so far.
    pub(super) fn add(&mut self, value: u64) -> Result<u64, Fell> {
        let last = self.last.replace(value).unwrap_or(value);
        self.sum += value.checked_sub(last).ok_or(Fell)?;
        Ok(self.sum)
    }

    /// The counter may have started anew.
    pub(super) fn rebase(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_holds_from_half_way_to_half_way_and_not_while_nobody_looked() {
        let at = |seconds: u64| Timestamp(seconds * 1_000_000_000);
        let cap = ThrottleReason::SwPowerCap.bit();
        let mut throttled = Throttled::default();
        let seconds = |nanos: [u64; 8]| nanos[1] as f64 * 1e-9;
        assert_eq!(seconds(throttled.add(at(0), 0)), 0.0);
        assert_eq!(seconds(throttled.add(at(1), cap | 1)), 0.5);
        assert_eq!(seconds(throttled.add(at(2), cap)), 1.5);
        assert_eq!(seconds(throttled.add(at(3), 0)), 2.0);
        throttled.add(at(4), cap);
        let nanos = throttled.add(at(60), cap);
        assert_eq!(seconds(nanos), 2.5);
        assert_eq!(nanos.iter().sum::<u64>(), nanos[1], "idle is no reason");
    }

    #[test]
    fn rises_add_up_a_new_start_is_no_rise_and_a_fall_ends_it() {
        let mut rise = Rise::default();
        assert_eq!(rise.add(1_000), Ok(0));
        assert_eq!(rise.add(1_500), Ok(500));
        rise.rebase();
        assert_eq!(rise.add(7), Ok(500));
        assert_eq!(rise.add(10), Ok(503));
        assert_eq!(rise.add(9), Err(Fell));
    }
}
