//! κ: how much more power above idle a GPU draws in prefill than in decode.
//!
//! In: seconds of prefill, seconds of decode and energy above idle of busy intervals. Out: the
//! ratio. Least squares through the origin with exponential forgetting, E = α·p + β·d and
//! κ = α ⁄ β, drawn to the starting ratio by as much evidence as a few prompts give, so
//! that κ moves only as far as the data carry it.

/// What the draw to the starting ratio weighs, seconds²: about six prompts of 60 ms.
const PRIOR_WEIGHT: f64 = 0.02;
/// What an old interval counts for when the next one comes: a memory of 2,000 busy intervals.
const FORGETTING: f64 = 1.0 - 1.0 / 2_000.0;
/// A prefill step draws no less than a decode step, and no GPU's range allows more than this.
const RANGE: (f64, f64) = (1.0, 5.0);

/// Learns κ for one meter.
#[derive(Debug)]
pub(super) struct PhasePower {
    start: f64,
    prefill_squared: f64,
    prefill_decode: f64,
    decode_squared: f64,
    prefill_energy: f64,
    decode_energy: f64,
}

impl PhasePower {
    /// Begins with the ratio `start`.
    pub(super) fn new(start: f64) -> Self {
        let start = if start.is_finite() {
            start.clamp(RANGE.0, RANGE.1)
        } else {
            RANGE.0
        };
        Self {
            start,
            prefill_squared: 0.0,
            prefill_decode: 0.0,
            decode_squared: 0.0,
            prefill_energy: 0.0,
            decode_energy: 0.0,
        }
    }

    /// Learns from an interval: seconds of each phase, joules above idle.
    pub(super) fn learn(&mut self, prefill: f64, decode: f64, joules: f64) {
        let keep = |sum: &mut f64, new: f64| *sum = *sum * FORGETTING + new;
        keep(&mut self.prefill_squared, prefill * prefill);
        keep(&mut self.prefill_decode, prefill * decode);
        keep(&mut self.decode_squared, decode * decode);
        keep(&mut self.prefill_energy, prefill * joules);
        keep(&mut self.decode_energy, decode * joules);
    }

    /// κ as far as it is known.
    pub(super) fn ratio(&self) -> f64 {
        let a = self.prefill_squared + PRIOR_WEIGHT;
        let b = self.prefill_decode - PRIOR_WEIGHT * self.start;
        let c = self.decode_squared + PRIOR_WEIGHT * self.start * self.start;
        // Cramer's rule; the determinant is the same for both and cancels in the ratio.
        let alpha = self.prefill_energy * c - self.decode_energy * b;
        let beta = self.decode_energy * a - self.prefill_energy * b;
        if alpha > 0.0 && beta > 0.0 {
            (alpha / beta).clamp(RANGE.0, RANGE.1)
        } else {
            self.start
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_data_the_ratio_is_the_one_it_began_with() {
        assert_eq!(PhasePower::new(1.9).ratio(), 1.9);
    }

    #[test]
    fn a_ratio_that_differs_is_learned() {
        let mut phases = PhasePower::new(1.9);
        for step in 0..2_000 {
            let prefill = f64::from(step % 5) * 0.02;
            phases.learn(
                prefill,
                0.1 - prefill,
                600.0 * prefill + 200.0 * (0.1 - prefill),
            );
        }
        assert!((phases.ratio() - 3.0).abs() < 0.1, "{}", phases.ratio());
    }

    #[test]
    fn intervals_without_prefill_do_not_move_the_ratio() {
        let mut phases = PhasePower::new(1.9);
        for _ in 0..1_000 {
            phases.learn(0.0, 0.1, 20.0);
        }
        assert!((phases.ratio() - 1.9).abs() < 0.01, "{}", phases.ratio());
    }
}
