//! Does the counter see all of a load that comes and goes, and do the power readings? Full load
//! for the first half of each period; over whole periods it does not matter how late a reading is.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use super::check::Check;
use super::trace::{Power, Trace};

const PERIODS_MS: [u32; 4] = [20, 100, 250, 1_000];
/// Each wave is followed for so long, but for three of the longest periods at the least; the
/// averaged reading needs a second before.
const WAVE_S: f64 = 10.0;
const LEAST_S: f64 = 3.0;
const RISE: Duration = Duration::from_millis(1_500);

/// The section's text.
pub(super) fn measure(check: &Check<'_>) -> Result<String> {
    let load = check.load()?;
    let mut text = String::new();
    writeln!(
        text,
        "| period, ms | periods | over, s | counter, W | average power, W | off, % | instant power, W | off, % | on, % of the time |"
    )?;
    writeln!(text, "|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    for period_ms in PERIODS_MS {
        let period_s = f64::from(period_ms) * 1e-3;
        let mut running = load.wave(period_s)?;
        std::thread::sleep(RISE);
        let seconds = check.seconds(WAVE_S).max(LEAST_S);
        let trace = Trace::look_for(check.device, Duration::from_secs_f64(seconds))?;
        running.still_up()?;
        let duty = load.told_duty().map(|duty| format!("{:.1}", duty * 100.0));
        drop(running);
        let row = Row::of(&trace, period_s)?;
        writeln!(
            text,
            "| {period_ms} | {row} | {} |",
            duty.unwrap_or_default()
        )?;
    }
    Ok(text)
}

/// One wave.
#[derive(Debug)]
struct Row {
    periods: f64,
    seconds: f64,
    counter_w: f64,
    average_w: Option<f64>,
    instant_w: Option<f64>,
}

impl Row {
    fn of(trace: &Trace, period_s: f64) -> Result<Self> {
        let (span, periods) = trace.whole_periods(period_s)?;
        let seconds = span.seconds();
        let mean = |power: Power| Some(trace.integral(&span, power)? / seconds);
        Ok(Self {
            periods,
            seconds,
            counter_w: span.watts(),
            average_w: mean(|look| look.average_mw),
            instant_w: mean(|look| look.instant_mw),
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            periods,
            seconds,
            counter_w,
            average_w,
            instant_w,
        } = *self;
        write!(out, "{periods:.2} | {seconds:.2} | {counter_w:.1}")?;
        for watts in [average_w, instant_w] {
            match watts {
                Some(watts) => {
                    let off = (watts / counter_w - 1.0) * 100.0;
                    write!(out, " | {watts:.1} | {off:+.2}")?;
                }
                None => write!(out, " | not supported | ")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu_check::trace::Look;

    #[test]
    fn each_reading_is_held_against_the_counter_and_an_absent_one_is_no_zero() {
        // The counter rises by 20 J each 100 ms; the instant reading sees 190 of its 200 W.
        let looks = (0..1_050_u32).map(|millisecond| Look {
            at_s: f64::from(millisecond) * 1e-3,
            counter_mj: Some(u64::from(millisecond / 100) * 20_000),
            average_mw: None,
            instant_mw: Some(190_000),
        });
        let trace = Trace {
            looks: looks.collect(),
        };
        let row = Row::of(&trace, 0.1).unwrap().to_string();
        assert!(
            row.contains("| 200.0 | not supported |  | 190.0 | -5.00"),
            "{row}"
        );
    }
}
