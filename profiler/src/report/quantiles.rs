//! Quantiles of any number of values in bounded memory, within 0.5 %.
//!
//! Buckets grow by 1 %, so that a bucket's middle is within 0.5 % of every value in it (DDSketch:
//! Masson, Rim, Lee, VLDB 2019). 2⁶⁴ values fill at most 4,460 buckets.

use std::collections::VecDeque;

const GROWTH: f64 = 1.01;

/// A sketch of a set of integers.
#[derive(Debug, Clone, Default)]
pub struct Quantiles {
    zeros: u64,
    /// How many values lie in (GROWTHⁱ⁻¹, GROWTHⁱ], from `first` on without holes: a request
    /// finds its bucket at once.
    buckets: VecDeque<u64>,
    first: i32,
    count: u64,
    min: u64,
    max: u64,
}

impl Quantiles {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        if value == 0 {
            self.zeros += 1;
        } else {
            let bucket = ((value as f64).ln() / GROWTH.ln()).ceil() as i32;
            if let Some(count) = self.bucket(bucket) {
                *count += 1;
            }
        }
        self.min = if self.count == 0 {
            value
        } else {
            self.min.min(value)
        };
        self.max = self.max.max(value);
        self.count += 1;
    }

    /// The bucket `number`, made if it is not there; there are at most 4,460.
    fn bucket(&mut self, number: i32) -> Option<&mut u64> {
        if self.buckets.is_empty() {
            self.first = number;
        }
        while number < self.first {
            self.buckets.push_front(0);
            self.first -= 1;
        }
        let place = usize::try_from(number - self.first).ok()?;
        if place >= self.buckets.len() {
            self.buckets.resize(place + 1, 0);
        }
        self.buckets.get_mut(place)
    }

    /// How many values were added.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The quantile `q` in 0..=1, interpolated between neighbours as most tools do; `None`
    /// without values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.count.checked_sub(1)?;
        let place = q.clamp(0.0, 1.0) * last as f64;
        let low = self.nth(place.floor() as u64);
        let high = self.nth(place.ceil() as u64);
        Some(low + (high - low) * place.fract())
    }

    /// The value at a rank from 0, within 0.5 %; the first and the last are exact.
    fn nth(&self, rank: u64) -> f64 {
        if rank == 0 {
            return self.min as f64;
        }
        if rank + 1 >= self.count {
            return self.max as f64;
        }
        let mut seen = self.zeros;
        if seen > rank {
            return 0.0;
        }
        for (bucket, &count) in (self.first..).zip(&self.buckets) {
            seen += count;
            if seen > rank {
                let middle = 2.0 * GROWTH.powi(bucket) / (GROWTH + 1.0);
                return middle.clamp(self.min as f64, self.max as f64);
            }
        }
        self.max as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(values: &[u64], q: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let place = q * (sorted.len() - 1) as f64;
        let (low, high) = (
            sorted[place.floor() as usize] as f64,
            sorted[place.ceil() as usize] as f64,
        );
        low + (high - low) * place.fract()
    }

    proptest! {
        #[test]
        fn any_quantile_is_within_half_a_per_cent(
            values in prop::collection::vec(0u64..1_000_000_000_000, 1..400),
            q in 0.0f64..=1.0,
        ) {
            let mut sketch = Quantiles::default();
            values.iter().for_each(|&value| sketch.add(value));
            let exact = exact(&values, q);
            let seen = sketch.quantile(q).unwrap();
            prop_assert!((seen - exact).abs() <= exact * 0.0051 + 1e-6, "{seen} {exact}");
        }
    }

    #[test]
    fn one_value_is_exact_and_none_is_none() {
        let mut sketch = Quantiles::default();
        assert_eq!(sketch.quantile(0.5), None);
        sketch.add(41_300_001);
        assert_eq!(sketch.quantile(0.95), Some(41_300_001.0));
    }

    #[test]
    fn memory_is_bounded_by_the_range_and_not_by_the_count() {
        let mut sketch = Quantiles::default();
        for value in 0..1_000_000 {
            sketch.add(value);
        }
        assert!(sketch.buckets.len() < 1_500);
        assert_eq!(sketch.count(), 1_000_000);
    }
}
