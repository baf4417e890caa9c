//! Student's t distribution: how likely a difference as large as this one is where there is none.
//!
//! The tail is the regularised incomplete beta function, by its continued fraction (Lentz's method;
//! Abramowitz and Stegun, 26.5.8 and 26.7.1). Right to 10 digits for what is asked here.

/// The probability that |t| or more comes by chance, with `freedom` degrees of freedom.
pub(crate) fn two_sided(t: f64, freedom: f64) -> f64 {
    if !t.is_finite() {
        return 0.0;
    }
    beta_ratio(freedom / (freedom + t * t), freedom / 2.0)
}

/// The |t| that chance exceeds with probability `alpha`.
pub(crate) fn critical(alpha: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while two_sided(high, freedom) > alpha && high < 1e9 {
        high *= 2.0;
    }
    // A double has 53 bits.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if two_sided(middle, freedom) > alpha {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The regularised incomplete beta function I_x(a, 1/2).
fn beta_ratio(x: f64, a: f64) -> f64 {
    const B: f64 = 0.5;
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front =
        (ln_gamma(a + B) - ln_gamma(a) - ln_gamma(B) + a * x.ln() + B * (1.0 - x).ln()).exp();
    // The fraction converges fast on this side of the distribution's bulk.
    if x < (a + 1.0) / (a + B + 2.0) {
        front * fraction(x, a, B) / a
    } else {
        1.0 - front * fraction(1.0 - x, B, a) / B
    }
}

fn fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut sum = d;
    for step in 1..500 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            change = c * d;
            sum *= change;
        }
        if (change - 1.0).abs() < 1e-14 {
            break;
        }
    }
    sum
}

/// ln Γ(x) for x > 0 (Lanczos, SIAM J. Numer. Anal. 1, 1964; the coefficients for g = 7, n = 9).
fn ln_gamma(x: f64) -> f64 {
    const FIRST: f64 = 0.999_999_999_999_809_9;
    const REST: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        let reflected = (std::f64::consts::PI * x).sin();
        return (std::f64::consts::PI / reflected).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let sum: f64 = (1..)
        .zip(REST)
        .map(|(place, coefficient)| coefficient / (x + f64::from(place)))
        .sum();
    let base = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * base.ln() - base + (FIRST + sum).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_textbooks_come_out() {
        for (alpha, freedom, t) in [
            (0.01, 1.0, 63.657),
            (0.01, 5.0, 4.032),
            (0.01, 9.0, 3.250),
            (0.05, 9.0, 2.262),
            (0.01, 18.0, 2.878),
            (0.05, 1e6, 1.960),
        ] {
            let found = critical(alpha, freedom);
            assert!((found - t).abs() < 5e-4 * t, "{alpha} {freedom}: {found}");
            assert!((two_sided(found, freedom) - alpha).abs() < 1e-9);
        }
    }

    #[test]
    fn no_difference_is_certain_to_come_by_chance_and_an_endless_one_is_not() {
        assert_eq!(two_sided(0.0, 9.0), 1.0);
        assert_eq!(two_sided(f64::INFINITY, 9.0), 0.0);
        assert!(two_sided(-3.0, 9.0) < two_sided(2.0, 9.0));
        assert!(two_sided(200.0, 9.0) > 0.0);
    }
}
