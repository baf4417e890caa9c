//! How far a mean of few values may be off: Student's t interval. Ratios are averaged as
//! logarithms, so that a ratio and its inverse weigh the same.

/// One-sided 95 % quantiles of Student's t by degrees of freedom, from 1.
const T: [f64; 12] = [
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782,
];

/// A mean, and the values below and above which it lies with 95 % confidence each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    pub(super) mean: f64,
    pub(super) lower: f64,
    pub(super) upper: f64,
}

impl Interval {
    /// Of values that are measured alike; of one value it is that value. `None` without any.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let freedom = values.len() - 1;
        let t = match freedom {
            0 => 0.0,
            _ => T[freedom.min(T.len()) - 1],
        };
        let half = if freedom == 0 {
            0.0
        } else {
            t * (squares / freedom as f64 / count).sqrt()
        };
        Some(Self {
            mean,
            lower: mean - half,
            upper: mean + half,
        })
    }

    /// Of ratios, all above 0.
    pub(super) fn of_ratios(ratios: &[f64]) -> Option<Self> {
        let logarithms: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        Self::of(&logarithms).map(|of| Self {
            mean: of.mean.exp(),
            lower: of.lower.exp(),
            upper: of.upper.exp(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        // Mean 3, standard error sqrt(2.5 / 5), t of four degrees 2.132.
        let of = Interval::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert!((of.lower - (3.0 - 2.132 * 0.5_f64.sqrt())).abs() < 1e-9);
        assert!((of.upper + of.lower - 6.0).abs() < 1e-9);
    }

    #[test]
    fn one_value_has_no_width() {
        let of = Interval::of(&[2.5]).unwrap();
        assert_eq!((of.lower, of.mean, of.upper), (2.5, 2.5, 2.5));
        assert_eq!(Interval::of(&[]), None);
    }

    #[test]
    fn a_ratio_and_its_inverse_cancel() {
        let of = Interval::of_ratios(&[0.5, 2.0]).unwrap();
        assert!((of.mean - 1.0).abs() < 1e-12);
    }
}
