//! A GPU's counter and power readings as they were polled, and what they add up to.
//!
//! In: looks, a millisecond apart. Out: the counter's steps with their times, and the integrals of
//! the power readings over the same time. Between two steps nothing is known of the counter, so
//! everything is compared from one step to another. Times are seconds of `CLOCK_BOOTTIME`.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nvml_wrapper::Device;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;

/// The counter (mJ), power over the last second and at present (mW).
const FIELDS: [FieldId; 3] = [FieldId(83), FieldId(185), FieldId(186)];
/// Between two looks.
const POLL: Duration = Duration::from_millis(1);
/// Parts of a period that are taken for none.
const SAME_PHASE: f64 = 0.03;
/// A step that is meant by another clock's time lies within half a tick of it.
const NEAR_S: f64 = 0.05;

/// A power reading of a look, milliwatts.
pub(super) type Power = fn(&Look) -> Option<u64>;

/// One look; `None` is what the board does not have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Look {
    pub(super) at_s: f64,
    pub(super) counter_mj: Option<u64>,
    pub(super) average_mw: Option<u64>,
    pub(super) instant_mw: Option<u64>,
}

/// The counter's value from a moment on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    /// Between the last look that saw the old value and the first that saw this one.
    pub(super) at_s: f64,
    pub(super) counter_mj: u64,
}

/// From one step to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) from: Step,
    pub(super) to: Step,
}

/// Looks in the order of their times.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub(super) looks: Vec<Look>,
}

/// The present, in seconds of `CLOCK_BOOTTIME`.
pub(super) fn boottime_s() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid to write for the call; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Counter and power in one call.
pub(super) fn fields(device: &Device<'_>) -> Result<[Option<u64>; 3], NvmlError> {
    let mut values = [None; 3];
    let samples = device.field_values_for(&FIELDS)?;
    for (value, sample) in values.iter_mut().zip(samples) {
        *value = match sample.and_then(|sample| sample.value) {
            Ok(SampleValue::U64(number)) => Some(number),
            Ok(SampleValue::U32(number)) => Some(u64::from(number)),
            Ok(SampleValue::I64(number)) => u64::try_from(number).ok(),
            Ok(SampleValue::F64(number)) => Some(number as u64),
            Err(_) => None,
        };
    }
    Ok(values)
}

impl Trace {
    /// Looks until `done` says so.
    pub(super) fn look_until(
        &mut self,
        device: &Device<'_>,
        mut done: impl FnMut(f64) -> Result<bool>,
    ) -> Result<()> {
        loop {
            let before = boottime_s();
            let [counter_mj, average_mw, instant_mw] = fields(device)?;
            // The call may take a while; what it says was true somewhere in it.
            let at_s = f64::midpoint(before, boottime_s());
            self.looks.push(Look {
                at_s,
                counter_mj,
                average_mw,
                instant_mw,
            });
            if done(at_s)? {
                return Ok(());
            }
            sleep(POLL);
        }
    }

    /// Looks for so long.
    pub(super) fn look_for(device: &Device<'_>, time: Duration) -> Result<Self> {
        let end = boottime_s() + time.as_secs_f64();
        let mut trace = Self::default();
        trace.look_until(device, |at_s| Ok(at_s >= end))?;
        Ok(trace)
    }

    /// The counter's changes; the first look is none.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut known: Option<(f64, u64)> = None;
        for look in &self.looks {
            let Some(counter_mj) = look.counter_mj else {
                continue;
            };
            if let Some((before, value)) = known
                && value != counter_mj
            {
                steps.push(Step {
                    at_s: f64::midpoint(before, look.at_s),
                    counter_mj,
                });
            }
            known = Some((look.at_s, counter_mj));
        }
        steps
    }

    /// From the first step to the last.
    pub(super) fn span(&self) -> Result<Span> {
        self.span_within(f64::NEG_INFINITY, f64::INFINITY)
    }

    /// From the first step in this time to the last.
    pub(super) fn span_within(&self, from_s: f64, to_s: f64) -> Result<Span> {
        let steps = self.steps();
        let mut inside = steps
            .iter()
            .filter(|step| step.at_s >= from_s && step.at_s <= to_s);
        let from = inside.next().copied();
        from.zip(inside.next_back().copied())
            .map(|(from, to)| Span { from, to })
            .context("the energy counter did not change twice")
    }

    /// From the last step before something to the first after it.
    pub(super) fn span_around(&self, from_s: f64, to_s: f64) -> Result<Span> {
        let steps = self.steps();
        let from = steps.iter().rev().find(|step| step.at_s <= from_s);
        let to = steps.iter().find(|step| step.at_s >= to_s);
        from.zip(to)
            .map(|(from, to)| Span {
                from: *from,
                to: *to,
            })
            .context("the energy counter was not seen before and after it")
    }

    /// From the first step to the latest that is a whole number of periods later, or as nearly so
    /// as any of the trace's second half; and that number.
    pub(super) fn whole_periods(&self, period_s: f64) -> Result<(Span, f64)> {
        let Span { from, to } = self.span()?;
        let least = f64::midpoint(from.at_s, to.at_s);
        let off = |step: &Step| {
            let periods = (step.at_s - from.at_s) / period_s;
            ((periods - periods.round()).abs() / SAME_PHASE) as u64
        };
        let steps = self.steps();
        let to = steps
            .iter()
            .rev()
            .filter(|step| step.at_s >= least && step.at_s - from.at_s > period_s / 2.0)
            .min_by_key(|step| off(step))
            .context("the energy counter was not followed for a period")?;
        let span = Span { from, to: *to };
        Ok((span, span.seconds() / period_s))
    }

    /// What was counted at the step nearest to a moment that somebody else gives.
    pub(super) fn counted_at(&self, at_s: f64) -> Option<u64> {
        let steps = self.steps();
        let nearest = steps.iter().min_by(|a, b| {
            let apart = |step: &Step| (step.at_s - at_s).abs();
            apart(a).total_cmp(&apart(b))
        })?;
        ((nearest.at_s - at_s).abs() < NEAR_S).then_some(nearest.counter_mj)
    }

    /// Joules over a span by a power reading that holds until the next look; `None` where a
    /// reading is missing.
    pub(super) fn integral(&self, span: &Span, power_mw: Power) -> Option<f64> {
        let (from, to) = (span.from.at_s, span.to.at_s);
        let ends = self.looks.iter().skip(1).map(|look| look.at_s);
        let mut joules = 0.0;
        for (look, end) in self.looks.iter().zip(ends) {
            let seconds = end.min(to) - look.at_s.max(from);
            if seconds > 0.0 {
                joules += seconds * power_mw(look)? as f64 * 1e-3;
            }
        }
        Some(joules)
    }

    /// For people: the integrals of both power readings over a span, beside the counter.
    pub(super) fn integrals(&self, span: &Span) -> String {
        let readings: [(&str, Power); 2] = [
            ("Average", |look| look.average_mw),
            ("Instant", |look| look.instant_mw),
        ];
        let mut text = String::new();
        for (name, power) in readings {
            if let Some(integral) = self.integral(span, power) {
                let off = (integral / span.joules() - 1.0) * 100.0;
                text +=
                    &format!("{name} power over the same time: {integral:.1} J ({off:+.2} %).\n");
            }
        }
        text
    }
}

impl Span {
    pub(super) fn seconds(&self) -> f64 {
        self.to.at_s - self.from.at_s
    }

    /// By the counter; a counter that was reset in between has none.
    pub(super) fn joules(&self) -> f64 {
        let millijoules = self.to.counter_mj.checked_sub(self.from.counter_mj);
        millijoules.map_or(f64::NAN, |millijoules| millijoules as f64 * 1e-3)
    }

    pub(super) fn watts(&self) -> f64 {
        self.joules() / self.seconds()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks each millisecond at a counter that shows `joules(t)` as it was at the last tick of
    /// 100 ms, while the instant power is 100 W, then 300 W, by turns of 125 ms.
    fn square_wave(seconds: f64) -> Trace {
        let watts = |at: f64| {
            if ((at / 0.125).floor() as u64).is_multiple_of(2) {
                100
            } else {
                300
            }
        };
        let joules = |at: f64| {
            let pairs = (at / 0.25).floor();
            let rest = at - pairs * 0.25;
            pairs * 50.0 + rest.min(0.125) * 100.0 + (rest - 0.125).max(0.0) * 300.0
        };
        let looks = (0..(seconds * 1e3) as u64).map(|millisecond| {
            let at_s = millisecond as f64 * 1e-3;
            let tick = (millisecond / 100) as f64 * 0.1;
            Look {
                at_s,
                counter_mj: Some((joules(tick) * 1e3).round() as u64),
                average_mw: None,
                instant_mw: Some(watts(at_s) * 1_000),
            }
        });
        Trace {
            looks: looks.collect(),
        }
    }

    #[test]
    fn a_step_lies_between_the_looks_that_saw_it() {
        let trace = square_wave(1.05);
        let steps = trace.steps();
        assert_eq!(steps.len(), 10);
        assert!((steps[0].at_s - 0.0995).abs() < 1e-9, "{:?}", steps[0]);
        assert!((trace.span().unwrap().seconds() - 0.9).abs() < 1e-9);
    }

    #[test]
    fn counter_and_integral_agree_over_whole_periods_and_only_there() {
        let trace = square_wave(10.0);
        let (span, periods) = trace.whole_periods(0.25).unwrap();
        assert!((periods - periods.round()).abs() < 0.03, "{periods}");
        assert!(span.seconds() > 9.4, "{span:?}");
        assert!((span.watts() - 200.0).abs() < 0.5, "{}", span.watts());
        let integral = trace.integral(&span, |look| look.instant_mw).unwrap();
        assert!((integral / span.joules() - 1.0).abs() < 2e-3, "{integral}");
        assert_eq!(trace.integral(&span, |look| look.average_mw), None);
    }

    #[test]
    fn a_span_around_a_time_holds_all_of_it() {
        let trace = square_wave(2.0);
        let span = trace.span_around(0.55, 0.61).unwrap();
        assert!(span.from.at_s <= 0.55 && span.to.at_s >= 0.61, "{span:?}");
        assert!((span.seconds() - 0.2).abs() < 1e-9, "{span:?}");
        assert!(trace.span_around(0.01, 1.0).is_err());
        assert!(trace.span_within(0.55, 0.65).is_err());
    }

    #[test]
    fn what_was_counted_is_known_at_steps_alone() {
        let trace = square_wave(1.0);
        let step = trace.steps()[4];
        assert_eq!(trace.counted_at(step.at_s + 0.02), Some(step.counter_mj));
        assert_eq!(trace.counted_at(5.0), None);
    }

    #[test]
    fn a_counter_that_falls_gives_no_energy() {
        let step = |at_s, counter_mj| Step { at_s, counter_mj };
        let span = Span {
            from: step(0.0, 9),
            to: step(1.0, 3),
        };
        assert!(span.joules().is_nan());
    }
}
