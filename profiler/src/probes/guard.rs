//! Watches what probes cost their processes, and says when that is more than they may.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Timestamp;

/// Probes may cost this part of one core, over the window.
pub const LIMIT: f64 = 0.01;

/// Long enough that a burst of connections does not count as the rule.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The cost of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// When, and nanoseconds of all runs until then.
    seen: VecDeque<(Timestamp, u64)>,
}

impl Guard {
    /// The probes have cost `total` nanoseconds so far. Returns the part of a core they took over
    /// the window, once that is more than they may.
    pub(super) fn exceeded(&mut self, now: Timestamp, total: u64) -> Option<f64> {
        let window = WINDOW.as_nanos() as u64;
        while self.seen.len() > 1
            && self
                .seen
                .get(1)
                .is_some_and(|(at, _)| now.since(*at) >= window)
        {
            self.seen.pop_front();
        }
        self.seen.push_back((now, total));
        let (_, first) = self.seen.front()?;
        // A window that has not passed yet counts as quiet where nobody looked.
        let share = total.saturating_sub(*first) as f64 / window as f64;
        (share > LIMIT).then_some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Seconds until the guard acts on `per_second` nanoseconds of cost, of 60.
    fn acts_after(per_second: u64) -> Option<u64> {
        let mut guard = Guard::default();
        (0..60).find(|second| {
            let now = Timestamp(1 + second * SECOND);
            guard.exceeded(now, second * per_second).is_some()
        })
    }

    #[test]
    fn what_stays_below_the_limit_goes_on() {
        assert_eq!(acts_after(9_900_000), None);
    }

    #[test]
    fn the_more_it_costs_the_sooner_it_ends() {
        assert_eq!(acts_after(10_500_000), Some(10));
        assert_eq!(acts_after(40_000_000), Some(3));
        assert_eq!(acts_after(SECOND), Some(1));
    }

    #[test]
    fn a_burst_that_the_window_outweighs_is_forgotten() {
        let mut guard = Guard::default();
        for second in 0..120 {
            // Half the allowance of a window at once, each fifteen seconds.
            let total = (second / 15) * 50_000_000;
            let now = Timestamp(1 + second * SECOND);
            assert_eq!(guard.exceeded(now, total), None, "{second}");
        }
    }
}
