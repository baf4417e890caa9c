//! The period of a counter's changes, from changes that polling has bracketed coarsely.

use super::Edge;

/// Fewer changes than this say nothing about a period.
const ENOUGH_EDGES: usize = 5;

/// Least-squares period of changes seen in wide brackets; `None` with too few of them.
pub(super) fn fit_period(edges: &[Edge]) -> Option<f64> {
    let first = edges.first()?.middle();
    if edges.len() < ENOUGH_EDGES {
        return None;
    }
    let times: Vec<f64> = edges
        .iter()
        .map(|edge| (edge.middle() - first) as f64)
        .collect();
    let mut distances: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    distances.sort_by(f64::total_cmp);
    // Polling rounds every distance to a multiple of its own; the mean of those that are one
    // period long is closer to it than the median. A change that was missed makes a longer one.
    let median = *distances.get(distances.len() / 2)?;
    let (sum, count) = distances
        .iter()
        .filter(|distance| **distance <= 1.6 * median)
        .fold((0.0, 0.0), |(sum, count), distance| {
            (sum + distance, count + 1.0)
        });
    let typical: f64 = sum / count;
    if typical.is_nan() || typical <= 0.0 {
        return None;
    }
    // Counting periods from one change to the next keeps an error of `typical` from adding up.
    let mut count = 0.0;
    let mut counts = vec![0.0];
    for pair in times.windows(2) {
        count += ((pair[1] - pair[0]) / typical).round().max(1.0);
        counts.push(count);
    }
    let n = times.len() as f64;
    let mean_count = counts.iter().sum::<f64>() / n;
    let mean_time = times.iter().sum::<f64>() / n;
    let spread: f64 = counts.iter().map(|c| (c - mean_count).powi(2)).sum();
    let together: f64 = counts
        .iter()
        .zip(&times)
        .map(|(c, t)| (c - mean_count) * (t - mean_time))
        .sum();
    (spread > 0.0).then(|| together / spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::units::Microjoules;

    /// Changes every `period` as polls every `poll` see them; `missed` ones are not seen.
    fn polled(period: u64, poll: u64, missed: &[u64]) -> Vec<Edge> {
        let seen_after = |change: u64| change.div_ceil(poll) * poll;
        (1..25)
            .filter(|k| !missed.contains(k))
            .map(|k| {
                let until = seen_after(k * period + 7);
                let (after, until) = (Timestamp(until - poll), Timestamp(until));
                Edge {
                    after,
                    until,
                    energy: Microjoules(k),
                }
            })
            .collect()
    }

    #[test]
    fn the_period_comes_out_far_finer_than_the_polls() {
        for period in [97_000, 100_000, 104_000, 130_000, 500_000] {
            for poll in [20_000, 40_000] {
                let fitted = fit_period(&polled(period, poll, &[])).unwrap_or_default();
                let error = (fitted - period as f64).abs() / period as f64;
                assert!(error < 0.01, "{period} polled at {poll}: {fitted}");
            }
        }
    }

    #[test]
    fn missed_changes_do_not_lengthen_it() {
        let fitted = fit_period(&polled(100_000, 20_000, &[3, 9, 10, 17])).unwrap_or_default();
        assert!((fitted - 100_000.0).abs() < 1_000.0, "{fitted}");
    }

    #[test]
    fn a_handful_of_changes_says_nothing() {
        assert_eq!(fit_period(&polled(100_000, 20_000, &[])[..4]), None);
        assert_eq!(fit_period(&[]), None);
    }
}
