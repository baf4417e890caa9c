//! Times as the kernel side keeps them: a sum, and counts between powers of two. Everything here
//! only grows.

use profiler_ebpf::syscalls::{BUCKETS, FIRST_BOUND_BITS};

/// How long things took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durations {
    /// Their sum, nanoseconds.
    pub nanos: u64,
    /// How many took at most each of [`Self::bounds`]' and more than the bound before.
    pub counts: [u64; BUCKETS],
}

impl Durations {
    /// The upper bound of each count in nanoseconds; `None` for the last, which has none.
    pub fn bounds() -> impl Iterator<Item = Option<u64>> {
        let last = BUCKETS as u32 - 1;
        (0..=last).map(move |bucket| (bucket < last).then(|| 1 << (FIRST_BOUND_BITS + bucket)))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        since.nanos = since.nanos.wrapping_sub(earlier.nanos);
        for (count, before) in since.counts.iter_mut().zip(earlier.counts) {
            *count = count.wrapping_sub(before);
        }
        since
    }

    /// Takes these in.
    pub fn add(&mut self, more: &Self) {
        self.nanos = self.nanos.saturating_add(more.nanos);
        for (count, more) in self.counts.iter_mut().zip(more.counts) {
            *count += more;
        }
    }

    /// A quantile in nanoseconds, at a place between the bounds of its count in proportion: it is
    /// never off by more than a factor of two. `None` without any, or above the last bound.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let all = self.count();
        if all == 0 {
            return None;
        }
        let wanted = quantile * all as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (count, bound) in self.counts.iter().zip(Self::bounds()) {
            let count = *count as f64;
            let upper = bound? as f64;
            if count > 0.0 && below + count >= wanted {
                return Some(lower + (upper - lower) * (wanted - below) / count);
            }
            below += count;
            lower = upper;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durations(counted: &[(usize, u64)]) -> Durations {
        let mut durations = Durations::default();
        for (bucket, count) in counted {
            durations.counts[*bucket] = *count;
        }
        durations
    }

    #[test]
    fn a_quantile_lies_between_the_bounds_of_its_count() {
        // 98 up to 1,024 ns, two between 524,288 and 1,048,576 ns.
        let durations = durations(&[(3, 98), (13, 2)]);
        assert_eq!(durations.quantile(0.99), Some(786_432.0));
        assert!((512.0..=1_024.0).contains(&durations.quantile(0.5).unwrap()));
        assert_eq!(Durations::default().quantile(0.99), None);
    }

    #[test]
    fn what_took_longer_than_the_last_bound_has_no_quantile() {
        assert_eq!(durations(&[(BUCKETS - 1, 1)]).quantile(0.5), None);
    }

    #[test]
    fn the_difference_of_two_readings_and_the_first_make_the_second() {
        let (mut one, mut two) = (durations(&[(1, 3)]), durations(&[(1, 5), (9, 1)]));
        (one.nanos, two.nanos) = (400, 70_000);
        let since = two.since(&one);
        assert_eq!((since.count(), since.nanos), (3, 69_600));
        one.add(&since);
        assert_eq!(one, two);
    }
}
