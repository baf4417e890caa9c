//! Divides an integer by weights so that the parts add up to it exactly: the method of largest
//! remainders (Hamilton).

/// Parts of `total` in proportion to `weights`; they sum to `total` if any weight is positive,
/// else all are 0. A weight that is not positive and finite gets nothing.
pub(crate) fn split(total: u64, weights: &[f64]) -> Vec<u64> {
    let counts = |weight: f64| weight > 0.0 && weight.is_finite();
    let largest = weights
        .iter()
        .copied()
        .filter(|&weight| counts(weight))
        .fold(0.0, f64::max);
    let mut parts = vec![0; weights.len()];
    if largest <= 0.0 {
        return parts;
    }
    // Scaled to the largest, so that a sum of huge weights stays finite.
    let scaled = |weight: f64| {
        if counts(weight) {
            weight / largest
        } else {
            0.0
        }
    };
    let sum: f64 = weights.iter().map(|&weight| scaled(weight)).sum();
    let mut remainders = Vec::with_capacity(weights.len());
    let mut left = total;
    for (place, &weight) in weights.iter().enumerate() {
        if !counts(weight) {
            continue;
        }
        let exact = total as f64 * (scaled(weight) / sum);
        let part = (exact.floor() as u64).min(left);
        parts[place] = part;
        left -= part;
        remainders.push((exact - part as f64, place));
    }
    remainders.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    // Totals beyond 2⁵³ leave more than one unit each.
    let each = left / remainders.len() as u64;
    let ones = left % remainders.len() as u64;
    for (rank, (_, place)) in remainders.into_iter().enumerate() {
        parts[place] += each + u64::from((rank as u64) < ones);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_add_up_and_follow_the_weights(
            total in prop_oneof![Just(u64::MAX), 0..10_000_000_000_u64, 0..10_u64],
            weights in prop::collection::vec(
                prop_oneof![Just(0.0), Just(f64::NAN), Just(f64::MAX), 1e-9..1e9_f64], 0..20),
        ) {
            let parts = split(total, &weights);
            let any = weights.iter().any(|weight| *weight > 0.0);
            prop_assert_eq!(parts.iter().map(|&part| u128::from(part)).sum::<u128>(),
                            if any { u128::from(total) } else { 0 });
            for (part, weight) in parts.iter().zip(&weights) {
                prop_assert!(*part == 0 || *weight > 0.0);
            }
        }

        #[test]
        fn equal_weights_differ_by_one_at_most(total in 0..10_000_000_000_u64, count in 1..50_usize) {
            let parts = split(total, &vec![0.1; count]);
            let (least, most) = (parts.iter().min(), parts.iter().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1));
        }
    }
}
