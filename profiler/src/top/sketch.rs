//! Durations of one second, so that quantiles of any window can be had: counts by size, within 2.5 %.
//!
//! As `report::Quantiles`, but sparse and coarser: a service has one for each of 300 seconds.

/// From one size to the next.
const GROWTH: f64 = 1.05;

/// How many of each size, by size.
#[derive(Debug, Clone, Default)]
pub(super) struct Sketch {
    counts: Vec<(i16, u32)>,
}

impl Sketch {
    /// Adds a duration, nanoseconds.
    pub(super) fn add(&mut self, nanos: u64) {
        let size = ((nanos.max(1) as f64).ln() / GROWTH.ln()).ceil() as i16;
        self.count(size, 1);
    }

    /// Adds what another holds.
    pub(super) fn merge(&mut self, other: &Self) {
        for (size, count) in &other.counts {
            self.count(*size, *count);
        }
    }

    fn count(&mut self, size: i16, more: u32) {
        match self.counts.binary_search_by_key(&size, |(size, _)| *size) {
            Ok(place) => {
                if let Some((_, count)) = self.counts.get_mut(place) {
                    *count = count.saturating_add(more);
                }
            }
            Err(place) => self.counts.insert(place, (size, more)),
        }
    }

    /// The quantile `q` in 0..=1, seconds; `None` without durations.
    pub(super) fn quantile(&self, q: f64) -> Option<f64> {
        let all: u64 = self.counts.iter().map(|(_, count)| u64::from(*count)).sum();
        let rank = (q * all as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (size, count) in &self.counts {
            seen += u64::from(*count);
            if seen >= rank {
                let middle = 2.0 * GROWTH.powi(i32::from(*size)) / (GROWTH + 1.0);
                return Some(middle * 1e-9);
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_fortieth_also_of_what_was_put_together() {
        let (mut one, mut other) = (Sketch::default(), Sketch::default());
        assert_eq!(one.quantile(0.5), None);
        for millis in 1..=1_000 {
            let half = if millis % 2 == 0 {
                &mut one
            } else {
                &mut other
            };
            half.add(millis * 1_000_000);
        }
        one.merge(&other);
        for (q, seconds) in [(0.0, 0.001), (0.5, 0.5), (0.99, 0.99), (1.0, 1.0)] {
            let seen = one.quantile(q).unwrap();
            assert!((seen / seconds - 1.0).abs() <= 0.026, "{q}: {seen}");
        }
    }

    #[test]
    fn memory_is_bounded_by_the_range() {
        let mut sketch = Sketch::default();
        for power in 0..64 {
            for part in 0..100 {
                sketch.add((1u64 << power).saturating_add((1 << power) / 100 * part));
            }
        }
        assert!(sketch.len() <= 911, "{}", sketch.len());
    }
}
