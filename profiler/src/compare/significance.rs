//! Whether two ratios differ by more than chance: block means, and Student's t of their difference.
//!
//! In: sums by block of two runs. Out: an [`Estimate`]. The method, its formulas and the simulation that
//! chose it are in `docs/compare.md`.

use crate::student::{critical, two_sided};

/// Blocks of equal time that a service's window is cut into.
pub(super) const BLOCKS: usize = 10;

/// Blocks of each run that must hold something.
const LEAST_FILLED: usize = 8;

/// What runs of the same thing differ by and no block shows, as its temperature and clocks do: a standard
/// deviation, as part of the figure. Changes of two per cent are not told from it.
const REPEATABILITY: f64 = 0.005;

/// A numerator and a denominator by block.
pub(super) type Series = [(f64, f64); BLOCKS];

/// The change from A to B, as ratios: 0.05 is 5 % more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) low: f64,
    pub(super) high: f64,
    /// How likely so large a change is by chance.
    pub(super) p: f64,
}

/// Judges the change from `a` to `b`; `None` where too few blocks hold anything. `paired`: block by
/// block, the same load was on both. `change` is B ÷ A.
pub(super) fn estimate(
    a: &Series,
    b: &Series,
    paired: bool,
    change: f64,
    alpha: f64,
) -> Option<Estimate> {
    let (a, b) = (residuals(a)?, residuals(b)?);
    let own = (BLOCKS - 1) as f64;
    let (variance, freedom) = if paired {
        let mut difference = b;
        for (b, a) in difference.iter_mut().zip(a) {
            *b -= a;
        }
        (variance(&difference), own)
    } else {
        let (a, b) = (variance(&a), variance(&b));
        // Welch and Satterthwaite; without any variance that is no number, and `max` gives the other.
        let freedom = (a + b).powi(2) / (a * a / own + b * b / own);
        (a + b, freedom.max(own))
    };
    let logarithm = change.ln();
    if !logarithm.is_finite() || !variance.is_finite() {
        return None;
    }
    let error = (variance + 2.0 * REPEATABILITY.powi(2)).sqrt();
    let p = if logarithm == 0.0 {
        1.0
    } else {
        two_sided(logarithm / error, freedom)
    };
    let half = critical(alpha, freedom) * error;
    Some(Estimate {
        low: (logarithm - half).exp_m1(),
        high: (logarithm + half).exp_m1(),
        p,
    })
}

/// What each block adds to the logarithm of Σ numerator ⁄ Σ denominator, to first order.
fn residuals(series: &Series) -> Option<[f64; BLOCKS]> {
    let filled = |(over, under): &&(f64, f64)| *over > 0.0 && *under > 0.0;
    if series.iter().filter(filled).count() < LEAST_FILLED {
        return None;
    }
    let (over, under) = series
        .iter()
        .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Some(series.map(|one| one.0 / over - one.1 / under))
}

/// Variance of the logarithm: that of independent blocks, times what blocks that follow each other
/// owe to the one before.
fn variance(residuals: &[f64; BLOCKS]) -> f64 {
    let count = BLOCKS as f64;
    let squares: f64 = residuals.iter().map(|one| one * one).sum();
    if squares <= 0.0 {
        return 0.0;
    }
    let products: f64 = residuals
        .iter()
        .zip(residuals.iter().skip(1))
        .map(|(one, next)| one * next)
        .sum();
    // Of so few blocks the correlation comes out too low (Marriott and Pope, 1954).
    let correlation = ((products / squares * count + 1.0) / (count - 4.0)).clamp(0.0, 0.8);
    squares * count / (count - 1.0) * (1.0 + correlation) / (1.0 - correlation)
}

/// Holm's step-down: each probability as it is when all are looked at together.
pub(super) fn holm(probabilities: &mut [&mut f64]) {
    probabilities.sort_by(|one, other| one.total_cmp(other));
    let count = probabilities.len();
    let mut least = 0.0_f64;
    for (place, p) in probabilities.iter_mut().enumerate() {
        least = least.max((**p * (count - place) as f64).min(1.0));
        **p = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some hundred joules and ten requests a block, each block's by `factors`.
    fn series(factors: [f64; BLOCKS]) -> Series {
        factors.map(|factor| (100.0 * factor, 10.0))
    }

    const UNEVEN: [f64; BLOCKS] = [1.0, 1.4, 0.7, 1.1, 0.8, 1.3, 0.9, 0.6, 1.2, 1.0];

    #[test]
    fn the_same_load_shows_a_change_that_other_loads_hide() {
        let a = series(UNEVEN);
        let mut b = series(UNEVEN.map(|factor| factor * 1.1));
        // Not exactly: a change without any noise is no test.
        for (place, block) in b.iter_mut().enumerate() {
            block.0 += if place % 2 == 0 { 1.0 } else { -1.0 };
        }
        let paired = estimate(&a, &b, true, 1.1, 0.01).unwrap();
        assert!(paired.p < 1e-6, "{paired:?}");
        assert!(paired.low > 0.07 && paired.high < 0.13, "{paired:?}");
        let apart = estimate(&a, &b, false, 1.1, 0.01).unwrap();
        assert!(apart.p > 0.1 && apart.low < 0.0, "{apart:?}");
    }

    #[test]
    fn a_run_beside_itself_has_not_changed() {
        let a = series(UNEVEN);
        let same = estimate(&a, &a, true, 1.0, 0.01).unwrap();
        assert_eq!(same.p, 1.0);
        assert!(
            same.low < -0.02 && same.high > 0.02,
            "not more certain than runs repeat: {same:?}"
        );
    }

    #[test]
    fn blocks_that_follow_each_other_count_for_less() {
        let mut sorted = UNEVEN;
        sorted.sort_by(f64::total_cmp);
        let of = |factors| residuals(&series(factors)).map(|residuals| variance(&residuals));
        assert!(of(sorted).unwrap() > 3.0 * of(UNEVEN).unwrap());
    }

    #[test]
    fn empty_blocks_are_not_enough_data() {
        let a = series(UNEVEN);
        let mut b = a;
        for block in b.iter_mut().take(3) {
            *block = (0.0, 0.0);
        }
        assert_eq!(estimate(&a, &b, false, 1.0, 0.01), None);
        assert_eq!(estimate(&b, &a, true, 1.0, 0.01), None);
    }

    #[test]
    fn what_is_looked_at_together_is_judged_together() {
        let mut p = [0.004, 0.2, 0.0001];
        holm(&mut p.iter_mut().collect::<Vec<_>>());
        let expected = [0.008, 0.2, 0.0003];
        for (found, expected) in p.into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{p:?}");
        }
    }
}
