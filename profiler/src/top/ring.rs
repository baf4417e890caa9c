//! Values second by second, the latest five minutes of them.

use std::collections::VecDeque;

use crate::clock::Timestamp;

/// Seconds that are shown.
pub(super) const SHOWN: u64 = 300;
/// Seconds that are kept: what is shown ends where the slowest meter has been booked, which is some
/// seconds ago.
const KEPT: u64 = SHOWN + 20;
const SECOND: u64 = 1_000_000_000;

/// A point for each second of `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Default)]
pub(super) struct Ring<P> {
    first: u64,
    points: VecDeque<P>,
}

impl<P: Default> Ring<P> {
    /// The point of a second, to be changed; `None` if it is longer ago than is kept.
    pub(super) fn at(&mut self, second: u64) -> Option<&mut P> {
        if self.points.is_empty() {
            self.first = second;
        }
        let end = self.first + self.points.len() as u64;
        if second < self.first {
            if end - second > KEPT {
                return None;
            }
            for _ in second..self.first {
                self.points.push_front(P::default());
            }
            self.first = second;
        } else if second >= end {
            let first = self.first.max((second + 1).saturating_sub(KEPT));
            if first >= end {
                self.points.clear();
            } else {
                self.points.drain(..(first - self.first) as usize);
            }
            self.first = first;
            let length = (second + 1 - first) as usize;
            self.points.resize_with(length, P::default);
        }
        let place = usize::try_from(second - self.first).ok()?;
        self.points.get_mut(place)
    }

    /// The points of the seconds from `from` to before `to`, as far as there are any.
    pub(super) fn between(&self, from: u64, to: u64) -> impl Iterator<Item = &P> {
        let place = |second: u64| {
            let place = second.saturating_sub(self.first);
            (place as usize).min(self.points.len())
        };
        let (from, to) = (place(from), place(to));
        self.points.range(from..to.max(from))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.points.len()
    }
}

/// The second that a moment lies in.
pub(super) const fn second(at: Timestamp) -> u64 {
    at.0 / SECOND
}

/// The part of a stretch of time that lies in one second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    pub(super) second: u64,
    /// Its length.
    pub(super) nanos: u64,
    /// From the stretch's beginning to its own, and to its end.
    before: u64,
    until: u64,
    /// The stretch's whole length, not 0.
    whole: u64,
}

impl Slice {
    /// Its part of an amount that is spread evenly over the stretch. The parts of all slices of a
    /// stretch add up to the amount.
    pub(super) fn of(&self, amount: u64) -> u64 {
        let to = |at: u64| u128::from(amount) * u128::from(at) / u128::from(self.whole);
        (to(self.until) - to(self.before)) as u64
    }
}

/// The slices of a stretch of time; of a longer one than is kept, the last ones.
pub(super) fn slices(from: Timestamp, to: Timestamp) -> impl Iterator<Item = Slice> {
    let (from, to) = (from.0, to.0.max(from.0));
    let whole = to - from;
    // A stretch without length lies in one second too.
    let last = to.saturating_sub(u64::from(whole > 0)) / SECOND;
    let first = (from / SECOND).max((last + 1).saturating_sub(KEPT));
    (first..=last).map(move |second| {
        let begin = (second * SECOND).max(from);
        let end = ((second + 1) * SECOND).min(to);
        Slice {
            second,
            nanos: end - begin,
            before: begin - from,
            until: if whole > 0 { end - from } else { 1 },
            whole: whole.max(1),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp((seconds * 1e9) as u64)
    }

    #[test]
    fn the_parts_of_an_amount_add_up_whatever_the_seconds_cut() {
        for (from, to) in [
            (0.3, 0.4),
            (0.95, 1.05),
            (0.0, 3.0),
            (2.1, 7.77),
            (5.0, 5.0),
        ] {
            for amount in [0, 1, 7, 999_999_937] {
                let parts = slices(at(from), at(to)).map(|slice| slice.of(amount));
                assert_eq!(parts.sum::<u64>(), amount, "{from} {to}");
                let nanos: u64 = slices(at(from), at(to)).map(|slice| slice.nanos).sum();
                assert_eq!(nanos, at(to).0 - at(from).0);
            }
        }
        assert_eq!(
            slices(at(1.0), at(2.0)).count(),
            1,
            "ends where the next begins"
        );
    }

    #[test]
    fn an_hour_takes_no_longer_than_what_is_kept() {
        assert_eq!(slices(at(0.0), at(3_600.0)).count() as u64, KEPT);
    }

    #[test]
    fn points_come_in_any_order_and_old_ones_go() {
        let mut ring: Ring<u64> = Ring::default();
        for second in [1_000, 998, 1_002] {
            *ring.at(second).unwrap() += second;
        }
        let seen: Vec<u64> = ring.between(998, 1_003).copied().collect();
        assert_eq!(seen, [998, 0, 1_000, 0, 1_002]);
        assert_eq!(ring.between(0, 998).count(), 0);
        assert_eq!(ring.between(1_003, 2_000).count(), 0);
        assert!(ring.at(600).is_none(), "too long ago");
        *ring.at(1_000 + KEPT).unwrap() += 1;
        assert_eq!(ring.len() as u64, KEPT);
        assert_eq!(ring.between(0, 1_002).sum::<u64>(), 0);
        assert_eq!(ring.between(0, 1_003).sum::<u64>(), 1_002);
        *ring.at(90_000).unwrap() += 1;
        assert_eq!(
            (ring.len() as u64, ring.between(0, 90_001).sum()),
            (KEPT, 1)
        );
    }
}
