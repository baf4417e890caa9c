//! A GPU's power as it is shown: the mean over a second or more. What a GPU draws from one moment to
//! the next tells others what is computed on it.

use crate::clock::Timestamp;
use crate::units::Watts;

/// The shortest time whose mean is shown, in nanoseconds.
const SHORTEST: u64 = 1_000_000_000;

/// Readings, and their mean.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SmoothedPower {
    shown: Option<Watts>,
    since: Timestamp,
    sum: f64,
    count: u32,
}

impl SmoothedPower {
    /// Readings come evenly, so that their mean is the power's.
    pub(super) fn add(&mut self, power: Watts) {
        self.sum += power.0;
        self.count += 1;
    }

    /// Nobody reads it any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Shows the mean of what has come since the last change, if that is a second ago. The first
    /// readings are shown at once.
    pub(super) fn settle(&mut self, now: Timestamp) {
        let due = self.shown.is_none() || now.since(self.since) >= SHORTEST;
        if due && self.count > 0 {
            *self = Self {
                shown: Some(Watts(self.sum / f64::from(self.count))),
                since: now,
                ..Self::default()
            };
        }
    }

    pub(super) const fn shown(&self) -> Option<Watts> {
        self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_changes_once_a_second_and_is_the_mean_since() {
        let mut power = SmoothedPower::default();
        let tenth = |tenths: u64| Timestamp((100 + tenths) * 100_000_000);
        power.settle(tenth(0));
        assert_eq!(power.shown(), None);
        power.add(Watts(100.0));
        power.settle(tenth(0));
        assert_eq!(power.shown(), Some(Watts(100.0)));
        for (tenths, watts) in (1..10).zip([700.0, 100.0, 700.0, 100.0].into_iter().cycle()) {
            power.add(Watts(watts));
            power.settle(tenth(tenths));
            assert_eq!(power.shown(), Some(Watts(100.0)), "a peak is not seen");
        }
        power.add(Watts(100.0));
        power.settle(tenth(10));
        assert_eq!(power.shown(), Some(Watts(400.0)));
        power.end();
        assert_eq!(power.shown(), None);
    }
}
