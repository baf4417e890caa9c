//! A user's correction of one meter against a better one: true power = slope × shown + offset.
//! Pure.
//!
//! In: readings as the device gives them. Out: readings for the ledger, still cumulative: the offset
//! adds up over time. A reset of the device's counter stays a reset.
//!
//! Sensors of one GPU model differ by up to ±5 %, and each keeps its own slope and offset (Yang et
//! al., "Part-time Power Measurements", SC24, arXiv:2312.02741).

use serde::Deserialize;
use thiserror::Error;

use crate::clock::Timestamp;
use crate::ledger::{Meter, Reading};
use crate::units::{Microjoules, Watts};

/// What correcting slope and offset leaves of a sensor's error, unless the user states it: in the
/// paper above it took 35 % off the mean error.
const LEFT: f64 = 0.65;

/// A meter's correction.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Calibration {
    slope: f64,
    offset: Watts,
    gain_error_ratio: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    slope: Option<f64>,
    offset_watts: Option<f64>,
    gain_error_ratio: Option<f64>,
}

/// Why a correction cannot be meant.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum CalibrationError {
    /// Out of range.
    #[error("a slope of {0} is no correction; it lies between 0.5 and 2")]
    Slope(f64),
    /// Out of range.
    #[error("an offset of {0} W is no correction; it lies between -1000 and 1000")]
    Offset(f64),
    /// Out of range.
    #[error("an error of {0} is not between 0 and 1")]
    Error(f64),
}

impl TryFrom<Written> for Calibration {
    type Error = CalibrationError;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let slope = written.slope.unwrap_or(1.0);
        if !(0.5..=2.0).contains(&slope) {
            return Err(CalibrationError::Slope(slope));
        }
        let offset = written.offset_watts.unwrap_or(0.0);
        if !(-1_000.0..=1_000.0).contains(&offset) {
            return Err(CalibrationError::Offset(offset));
        }
        if let Some(error) = written.gain_error_ratio
            && !(0.0..=1.0).contains(&error)
        {
            return Err(CalibrationError::Error(error));
        }
        Ok(Self {
            slope,
            offset: Watts(offset),
            gain_error_ratio: written.gain_error_ratio,
        })
    }
}

impl Calibration {
    /// What the ledger must know of a meter that is corrected.
    pub fn correct(&self, meter: &mut Meter) {
        let left = meter.gain_error_ratio * LEFT;
        meter.gain_error_ratio = self.gain_error_ratio.unwrap_or(left);
        // What is refused as impossible is judged on corrected readings.
        if let Some(limit) = &mut meter.limit {
            *limit = Watts(limit.0 * self.slope.max(1.0) + self.offset.0.max(0.0));
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Epoch {
    edge: Timestamp,
    shown: Microjoules,
    corrected: f64,
}

/// One meter's readings, corrected.
#[derive(Debug)]
pub struct Calibrated {
    calibration: Calibration,
    epoch: Option<Epoch>,
    shown: Microjoules,
    corrected: u64,
}

impl Calibrated {
    /// Before the first reading.
    pub fn new(calibration: Calibration) -> Self {
        Self {
            calibration,
            epoch: None,
            shown: Microjoules::ZERO,
            corrected: 0,
        }
    }

    /// The reading as it should have been.
    pub fn correct(&mut self, reading: Reading) -> Reading {
        let Calibration { slope, offset, .. } = self.calibration;
        let after = reading.after.min(reading.until);
        let edge = Timestamp(after.0 + reading.until.since(after) / 2);
        let shown = reading.energy;
        let corrected = match self.epoch.filter(|_| shown >= self.shown) {
            Some(epoch) => {
                let gained = slope * (shown.0 - epoch.shown.0) as f64;
                let added = offset.0 * edge.since(epoch.edge) as f64 * 1e-3;
                // A negative offset must not make a device that shows nothing give energy back.
                (epoch.corrected + gained + added).max(self.corrected as f64)
            }
            None => {
                let start = slope * shown.0 as f64;
                let below = self.corrected.saturating_sub(1) as f64;
                let corrected = if self.epoch.is_some() {
                    start.min(below)
                } else {
                    start
                };
                self.epoch = Some(Epoch {
                    edge,
                    shown,
                    corrected,
                });
                corrected
            }
        };
        self.shown = shown;
        self.corrected = corrected.round() as u64;
        Reading {
            energy: Microjoules(self.corrected),
            ..reading
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Component, MeterId, Source};

    fn calibration(text: &str) -> Result<Calibration, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    fn reading(seconds: u64, joules: u64) -> Reading {
        Reading {
            meter: MeterId(0),
            after: Timestamp((1_000 + seconds) * 1_000_000_000 - 1_000_000),
            until: Timestamp((1_000 + seconds) * 1_000_000_000 + 1_000_000),
            energy: Microjoules(joules * 1_000_000),
        }
    }

    /// What the ledger would take for the energy between readings; `None` for a new epoch.
    fn deltas(text: &str, readings: &[(u64, u64)]) -> Vec<Option<f64>> {
        let mut calibrated = Calibrated::new(calibration(text).unwrap());
        let energies: Vec<Microjoules> = readings
            .iter()
            .map(|(seconds, joules)| calibrated.correct(reading(*seconds, *joules)).energy)
            .collect();
        let delta = |pair: &[Microjoules]| Some(pair[1].checked_sub(pair[0])?.joules().0);
        energies.windows(2).map(delta).collect()
    }

    #[test]
    fn slope_and_offset_are_those_of_the_power() {
        // 200 W shown are 1.05 × 200 − 4 W, 100 W are 101 W.
        let seen = deltas(
            "slope = 1.05\noffset_watts = -4",
            &[(0, 5_000), (1, 5_200), (3, 5_400), (4, 5_400)],
        );
        let expected = [206.0, 202.0, 0.0];
        assert!(
            seen.iter()
                .zip(expected)
                .all(|(seen, expected)| seen.is_some_and(|seen| (seen - expected).abs() < 1e-3)),
            "{seen:?}"
        );
        let same = deltas("", &[(0, 5_000), (1, 5_200)]);
        assert_eq!(same, [Some(200.0)]);
    }

    #[test]
    fn a_reset_stays_a_reset_and_errors_do_not_add_up() {
        let seen = deltas(
            "slope = 0.9\noffset_watts = 10",
            &[(0, 100), (1, 300), (2, 40), (3, 240)],
        );
        assert_eq!(seen, [Some(190.0), None, Some(190.0)]);
        // A negative offset has taken more off than the counter will show after its reset.
        let seen = deltas(
            "offset_watts = -100",
            &[(0, 10), (1, 120), (2, 110), (4, 410)],
        );
        assert_eq!(seen, [Some(10.0), None, Some(100.0)]);
        let many: Vec<(u64, u64)> = (0..100_000).map(|second| (second, second * 7)).collect();
        let total: f64 = deltas("slope = 1.03\noffset_watts = 0.1234567", &many)
            .into_iter()
            .flatten()
            .sum();
        let expected = 99_999.0 * (7.0 * 1.03 + 0.1234567);
        assert!((total - expected).abs() < 1e-2, "{total} {expected}");
    }

    #[test]
    fn a_meter_that_is_corrected_has_a_smaller_error_or_the_one_that_is_stated() {
        let meter = Meter {
            component: Component::Gpu,
            device: "GPU-1".into(),
            source: Source::Counter,
            limit: Some(Watts(400.0)),
            tick: 100_000_000,
            stale_after: 1_000_000_000,
            gain_error_ratio: 0.05,
            idle: None,
        };
        let corrected = |text| {
            let mut meter = meter.clone();
            calibration(text).unwrap().correct(&mut meter);
            (meter.gain_error_ratio, meter.limit.map(|limit| limit.0))
        };
        assert_eq!(corrected("slope = 1.25\noffset_watts = 5").1, Some(505.0));
        assert!((corrected("slope = 0.9").0 - 0.0325).abs() < 1e-9);
        let stated = corrected("slope = 0.9\noffset_watts = -5\ngain_error_ratio = 0.01");
        assert_eq!(stated, (0.01, Some(400.0)));
    }

    #[test]
    fn what_is_no_correction_is_refused() {
        for (text, said) in [
            ("slope = 0", "a slope of 0 is no correction"),
            ("slope = nan", "a slope of NaN"),
            ("offset_watts = 5000", "an offset of 5000 W"),
            ("gain_error_ratio = 5", "an error of 5 is not between"),
            ("slop = 1", "unknown field `slop`"),
        ] {
            let error = calibration(text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
