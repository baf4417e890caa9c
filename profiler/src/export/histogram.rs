//! Cumulative histograms over integers: neither counts nor sums drift, and neither ever falls.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::durations::Durations;

/// Upper bounds of energy buckets: 0.1 J to 100 kJ in steps of 1, 2.5, 5, in microjoules.
pub(super) const ENERGY: [u64; 19] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    25_000_000_000,
    50_000_000_000,
    100_000_000_000,
];

/// Upper bounds of time buckets: 10 ms, doubling to 163.84 s, in nanoseconds.
pub(super) const DURATION: [u64; 15] = {
    let mut bounds = [10_000_000; 15];
    let mut i = 1;
    while i < bounds.len() {
        bounds[i] = bounds[i - 1] * 2;
        i += 1;
    }
    bounds
};

/// Upper bounds of system calls' times: 1.024 µs, times four each, to 17.2 s, in nanoseconds.
/// Powers of two, as the kernel side's own are.
pub(super) const SYSCALL: [u64; 13] = {
    let mut bounds = [1 << 10; 13];
    let mut i = 1;
    while i < bounds.len() {
        bounds[i] = bounds[i - 1] * 4;
        i += 1;
    }
    bounds
};

/// Upper bounds of run-queue buckets, nanoseconds: 2^10 (1 µs) to 2^33 (8.6 s), doubling, as the kernel side
/// counts them.
pub(super) const WAIT: [u64; 24] = {
    let mut bounds = [1 << FIRST_WAIT; 24];
    let mut i = 1;
    while i < bounds.len() {
        bounds[i] = bounds[i - 1] * 2;
        i += 1;
    }
    bounds
};

const FIRST_WAIT: usize = 10;

/// Counts between `N` upper bounds; what lies above the last is only in `count`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Histogram<const N: usize> {
    #[serde(serialize_with = "as_list", deserialize_with = "of_length")]
    counts: [u64; N],
    /// Sum of all values, in the bounds' unit.
    pub(super) sum: u64,
    /// How many values.
    pub(super) count: u64,
}

fn as_list<S: Serializer, const N: usize>(counts: &[u64; N], to: S) -> Result<S::Ok, S::Error> {
    counts.as_slice().serialize(to)
}

fn of_length<'de, D: Deserializer<'de>, const N: usize>(from: D) -> Result<[u64; N], D::Error> {
    let counts: Vec<u64> = Vec::deserialize(from)?;
    let length = counts.len();
    counts
        .try_into()
        .map_err(|_| Error::invalid_length(length, &"as many counts as there are bounds"))
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            counts: [0; N],
            sum: 0,
            count: 0,
        }
    }
}

impl<const N: usize> Histogram<N> {
    /// Returns the place of the value's bucket; `N` above all bounds.
    pub(super) fn observe(&mut self, bounds: &[u64; N], value: u64) -> usize {
        let bucket = bounds.partition_point(|&bound| bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(value);
        self.count += 1;
        bucket
    }

    /// Takes in all values of another one.
    pub(super) fn absorb(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.count += other.count;
    }

    /// Takes in values that were counted between powers of two.
    pub(super) fn take_in(&mut self, bounds: &[u64; N], durations: &Durations) {
        for (upper, values) in Durations::bounds().zip(durations.counts) {
            let bucket = upper.map(|upper| bounds.partition_point(|&bound| bound < upper));
            if let Some(count) = bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
                *count += values;
            }
            self.count += values;
        }
        self.sum = self.sum.saturating_add(durations.nanos);
    }

    /// Adds values that are counted by powers of two: `counts[b]` of them are of 2^b to 2^(b+1).
    pub(super) fn add_powers_of_two(&mut self, bounds: &[u64; N], counts: &[u64], sum: u64) {
        for (power, count) in counts.iter().enumerate() {
            let end = 1u64 << (power + 1).min(63);
            let bucket = bounds.partition_point(|&bound| bound < end);
            if let Some(sum) = self.counts.get_mut(bucket) {
                *sum += count;
            }
            self.count += count;
        }
        self.sum = self.sum.saturating_add(sum);
    }

    /// How many values were at most each bound.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_within_it_and_one_above_all_is_only_counted() {
        let mut histogram = Histogram::default();
        for value in [100_000, 100_001, 100_000_000_001] {
            histogram.observe(&ENERGY, value);
        }
        let cumulative: Vec<u64> = histogram.cumulative().collect();
        assert_eq!(cumulative[..2], [1, 2]);
        assert_eq!(cumulative[18], 2);
        assert_eq!(histogram.count, 3);
        assert_eq!(histogram.sum, 100_000_200_002);
    }

    #[test]
    fn values_counted_between_powers_of_two_keep_their_bounds() {
        let mut counts = [0; 31];
        // At most 128 ns, 1,024 ns, 2,048 ns; above all bounds.
        (counts[0], counts[3], counts[4], counts[30]) = (1, 2, 4, 8);
        let mut histogram = Histogram::default();
        histogram.take_in(&SYSCALL, &Durations { nanos: 99, counts });
        let cumulative: Vec<u64> = histogram.cumulative().collect();
        assert_eq!(cumulative[..2], [3, 7]);
        assert_eq!(
            (cumulative[12], histogram.count, histogram.sum),
            (7, 15, 99)
        );
    }

    #[test]
    fn waits_that_are_counted_by_powers_of_two_fall_into_buckets_that_end_with_them() {
        let mut histogram = Histogram::default();
        let mut counts = [0; 40];
        (counts[0], counts[9], counts[10], counts[32], counts[39]) = (1, 2, 4, 8, 16);
        histogram.add_powers_of_two(&WAIT, &counts, 7);
        let cumulative: Vec<u64> = histogram.cumulative().collect();
        assert_eq!((cumulative[0], cumulative[1]), (3, 7));
        assert_eq!((cumulative[22], cumulative[23]), (7, 15));
        assert_eq!((histogram.count, histogram.sum), (31, 7));
    }

    #[test]
    fn durations_double_from_10_ms_to_163_84_s() {
        assert_eq!(DURATION[0], 10_000_000);
        assert_eq!(DURATION[14], 163_840_000_000);
    }
}
