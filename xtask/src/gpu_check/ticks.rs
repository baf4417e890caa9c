//! How often the counter and the power readings change, and what they say of the same time.

use std::fmt::Write as _;

use anyhow::Result;

use super::check::Check;
use super::trace::{Look, Power, Trace};

const POLLED_S: f64 = 20.0;

const VALUES: [(&str, Power); 3] = [
    ("energy counter", |look| look.counter_mj),
    ("average power", |look| look.average_mw),
    ("instant power", |look| look.instant_mw),
];

/// The section's text, under a load of the user's.
pub(super) fn measure(check: &Check<'_>, load: &str) -> Result<String> {
    let trace = Trace::look_for(check.device, check.time(POLLED_S))?;
    text(&trace, load)
}

fn text(trace: &Trace, load: &str) -> Result<String> {
    let looks = trace.looks.len();
    let mut text = format!("{looks} looks, a millisecond apart, under {load}.\n\n");
    writeln!(text, "| | changes | between two, ms: p5 | p50 | p95 |")?;
    writeln!(text, "|---|--:|--:|--:|--:|")?;
    for (name, value) in VALUES {
        if trace.looks.iter().all(|look| value(look).is_none()) {
            writeln!(text, "| {name} | not supported | | | |")?;
            continue;
        }
        let gaps = gaps_ms(&trace.looks, value);
        let at = |part| percentile(&gaps, part).map_or_else(String::new, |gap| format!("{gap:.1}"));
        let (p5, p50, p95) = (at(0.05), at(0.5), at(0.95));
        let changes = gaps.len();
        writeln!(text, "| {name} | {changes} | {p5} | {p50} | {p95} |")?;
    }
    // A counter that is not there, or stands still, has no span.
    if let Ok(span) = trace.span() {
        writeln!(
            text,
            "\nThe counter rose by {:.1} J in {:.1} s.",
            span.joules(),
            span.seconds()
        )?;
        text += &trace.integrals(&span);
    }
    Ok(text)
}

/// Milliseconds between two changes of a value, sorted. The first look is no change.
fn gaps_ms(looks: &[Look], value: Power) -> Vec<f64> {
    let mut known = None;
    let mut changed: Option<f64> = None;
    let mut gaps = Vec::new();
    for look in looks {
        let Some(value) = value(look) else { continue };
        if known.replace(value).is_some_and(|known| known != value)
            && let Some(before) = changed.replace(look.at_s)
        {
            gaps.push((look.at_s - before) * 1e3);
        }
    }
    gaps.sort_by(f64::total_cmp);
    gaps
}

/// A value at `part` of a sorted list.
pub(super) fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter that ticks each 100 ms, first after 70, and an instant power of 99 W.
    fn ticking(milliseconds: u32) -> Trace {
        let looks = (0..=milliseconds).map(|millisecond| Look {
            at_s: f64::from(millisecond) * 1e-3,
            counter_mj: Some(u64::from((millisecond + 30) / 100) * 10_000),
            average_mw: None,
            instant_mw: Some(99_000),
        });
        Trace {
            looks: looks.collect(),
        }
    }

    #[test]
    fn gaps_lie_between_changes_and_the_first_look_is_none() {
        let gaps = gaps_ms(&ticking(450).looks, |look| look.counter_mj);
        assert_eq!(gaps.len(), 3);
        assert!(
            gaps.iter().all(|gap| (gap - 100.0).abs() < 1e-6),
            "{gaps:?}"
        );
    }

    #[test]
    fn a_reading_that_is_missing_is_named_and_one_that_is_there_is_compared() {
        let text = text(&ticking(1_050), "nothing").unwrap();
        assert!(text.contains("| average power | not supported |"), "{text}");
        assert!(
            text.contains("Instant power over the same time: 89.1 J (-1.00 %)"),
            "{text}"
        );
        assert!(!text.contains("Average power over"), "{text}");
    }

    #[test]
    fn percentiles_of_nothing_are_unknown() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 0.5), Some(2.0));
    }
}
