//! When a polled value changes, and what a power reading that holds until its next change adds up to.

/// A value at `part` of a sorted list.
pub(super) fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}

/// The changes of one value.
#[derive(Debug, Default)]
pub(super) struct Changes {
    value: Option<u64>,
    /// Seconds; the first is the first change, not the first look.
    at: Vec<f64>,
}

impl Changes {
    /// Takes the value as seen at a moment.
    pub(super) fn see(&mut self, at: f64, value: u64) {
        let known = self.value.replace(value);
        if known.is_some_and(|known| known != value) {
            self.at.push(at);
        }
    }

    /// When it last changed.
    pub(super) fn latest_at(&self) -> Option<f64> {
        self.at.last().copied()
    }

    /// Milliseconds between two changes, sorted.
    pub(super) fn gaps_ms(&self) -> Vec<f64> {
        let mut gaps: Vec<f64> = self
            .at
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) * 1e3)
            .collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }
}

/// Joules between the first and the last mark.
#[derive(Debug, Default)]
pub(super) struct Integral {
    held: Option<(f64, f64)>,
    sum: f64,
    marks: Option<(f64, f64)>,
}

impl Integral {
    /// Power from now on; until now it was what was told before.
    pub(super) fn hold(&mut self, at: f64, watts: f64) {
        if let Some((since, before)) = self.held.replace((at, watts)) {
            self.sum += (at - since) * before;
        }
    }

    /// A counter's own sum.
    pub(super) fn count(&mut self, joules: f64) {
        self.sum = joules;
        self.mark();
    }

    /// Begins here, or ends here.
    pub(super) fn mark(&mut self) {
        let first = self.marks.map_or(self.sum, |(first, _)| first);
        self.marks = Some((first, self.sum));
    }

    /// Joules between the marks; `None` if there were not two that differ.
    pub(super) fn total(&self) -> Option<f64> {
        let (first, last) = self.marks?;
        (last > first).then_some(last - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_lie_between_changes_and_the_first_look_is_none() {
        let mut changes = Changes::default();
        for millisecond in 0_u32..=450 {
            let tick = u64::from((millisecond + 30) / 100);
            changes.see(f64::from(millisecond) * 1e-3, tick);
        }
        let gaps = changes.gaps_ms();
        assert_eq!(gaps.len(), 3);
        assert!(
            gaps.iter().all(|gap| (gap - 100.0).abs() < 1e-6),
            "{gaps:?}"
        );
    }

    #[test]
    fn an_integral_runs_between_its_first_and_its_last_mark() {
        let mut integral = Integral::default();
        integral.hold(0.0, 100.0);
        integral.hold(1.0, 200.0);
        integral.mark();
        assert_eq!(integral.total(), None);
        integral.hold(3.0, 50.0);
        integral.mark();
        integral.hold(9.0, 50.0);
        assert_eq!(integral.total(), Some(400.0));
        let mut counted = Integral::default();
        counted.count(1_000.0);
        counted.count(1_250.0);
        assert_eq!(counted.total(), Some(250.0));
    }

    #[test]
    fn percentiles_of_nothing_are_unknown() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 0.5), Some(2.0));
    }
}
