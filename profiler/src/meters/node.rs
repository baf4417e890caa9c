//! Meters of the whole machine: what they have in common. Pure.
//!
//! In: power readings, or a counter's values. Out: [`NodeReading`]s. A node meter holds what the
//! parts' meters measure, and fans, disks and the power supply's losses beside it: it is never
//! added to them, and the ledger does not know it. It is there for the sum of the parts to be held
//! against.

use std::sync::Arc;
use std::time::Duration;

use super::integrate::between;
use crate::clock::Timestamp;
use crate::units::{Microjoules, Watts};

/// What a node meter has shown until now.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeReading {
    /// Its stable name: `acpi-0`, `dcmi`, `external`, `module-0`.
    pub device: Arc<str>,
    /// When it was read.
    pub at: Timestamp,
    /// Its power then; `None` for a counter's first value.
    pub power: Option<Watts>,
    /// A reading older than this says nothing of the present.
    pub stale_after: Duration,
    /// Energy since the first reading, less what ran in holes: never falls.
    pub energy: Microjoules,
    /// Time in holes, whose energy nobody knows.
    pub gap: Duration,
    /// Systematic gain error of the sensor (0.05 = 5 %).
    pub gain_error_ratio: f64,
}

#[derive(Debug, Clone, Copy)]
enum Shown {
    Power(Watts),
    Energy(Microjoules),
}

/// Follows one node meter.
#[derive(Debug)]
pub(super) struct NodeMeter {
    device: Arc<str>,
    longest: Duration,
    gain_error_ratio: f64,
    last: Option<(Timestamp, Shown)>,
    energy: Microjoules,
    gap: u64,
}

impl NodeMeter {
    /// Readings further apart than `longest` are not joined: nobody knows what lay between.
    pub(super) fn new(device: &str, longest: Duration, gain_error_ratio: f64) -> Self {
        Self {
            device: device.into(),
            longest,
            gain_error_ratio,
            last: None,
            energy: Microjoules::ZERO,
            gap: 0,
        }
    }

    /// Takes the power at a moment.
    pub(super) fn power(&mut self, at: Timestamp, power: Watts) -> NodeReading {
        self.take(at, Shown::Power(power))
    }

    /// Takes the value of its own energy counter.
    pub(super) fn counter(&mut self, at: Timestamp, value: Microjoules) -> NodeReading {
        self.take(at, Shown::Energy(value))
    }

    fn take(&mut self, at: Timestamp, shown: Shown) -> NodeReading {
        let mut power = match shown {
            Shown::Power(power) => Some(power),
            Shown::Energy(_) => None,
        };
        if let Some((before, earlier)) = self.last.replace((at, shown)) {
            let length = at.since(before);
            let gained = match (earlier, shown) {
                _ if length > self.longest.as_nanos() as u64 => None,
                (Shown::Power(earlier), Shown::Power(power)) => {
                    Some(between((before, earlier), (at, power)))
                }
                (Shown::Energy(earlier), Shown::Energy(value)) => {
                    let gained = value.checked_sub(earlier);
                    power = gained
                        .filter(|_| length > 0)
                        .map(|gained| Watts(gained.joules().0 / (length as f64 * 1e-9)));
                    gained
                }
                _ => None,
            };
            match gained {
                Some(gained) => self.energy += gained,
                None => self.gap += length,
            }
        }
        NodeReading {
            device: Arc::clone(&self.device),
            at,
            power,
            stale_after: self.longest,
            energy: self.energy,
            gap: Duration::from_nanos(self.gap),
            gain_error_ratio: self.gain_error_ratio,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(seconds: u64) -> Timestamp {
        Timestamp((1_000 + seconds) * 1_000_000_000)
    }

    fn meter() -> NodeMeter {
        NodeMeter::new("acpi-0", Duration::from_secs(3), 0.1)
    }

    #[test]
    fn watts_become_joules_and_a_hole_is_time_and_no_energy() {
        let mut meter = meter();
        assert_eq!(
            meter.power(second(0), Watts(400.0)).energy,
            Microjoules::ZERO
        );
        let read = meter.power(second(2), Watts(600.0));
        assert_eq!(read.energy, Microjoules(1_000_000_000));
        assert_eq!((read.power, read.gap), (Some(Watts(600.0)), Duration::ZERO));
        let read = meter.power(second(10), Watts(600.0));
        assert_eq!(read.energy, Microjoules(1_000_000_000));
        assert_eq!(read.gap, Duration::from_secs(8));
        let read = meter.power(second(11), Watts(600.0));
        assert_eq!(read.energy, Microjoules(1_600_000_000));
    }

    #[test]
    fn a_counter_gives_its_own_energy_and_a_reset_adds_none() {
        let mut meter = meter();
        let read = meter.counter(second(0), Microjoules(9_000_000_000));
        assert_eq!((read.energy, read.power), (Microjoules::ZERO, None));
        let read = meter.counter(second(1), Microjoules(9_500_000_000));
        assert_eq!(read.energy, Microjoules(500_000_000));
        assert_eq!(read.power, Some(Watts(500.0)));
        let read = meter.counter(second(2), Microjoules(100));
        assert_eq!((read.energy, read.power), (Microjoules(500_000_000), None));
        assert_eq!(read.gap, Duration::from_secs(1));
    }
}
