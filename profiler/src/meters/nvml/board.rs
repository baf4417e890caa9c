//! One GPU board: what it can show, and reading it in one call.

use std::thread;
use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;

use super::support::is_absent;
use crate::units::{Microjoules, Watts};

const TOTAL_ENERGY: FieldId = FieldId(83);
const INSTANT_POWER: FieldId = FieldId(186);
/// Longer than a counter's tick: one that still shows 0 after it does not count.
const TWO_TICKS: Duration = Duration::from_millis(250);

/// How a figure is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As a field value, together with others in one call.
    Field,
    /// By its own function.
    Function,
}

/// A GPU board, as it was found at the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Board {
    /// Its identity over reboots and renumbering.
    pub uuid: String,
    /// Its product name; `None` if the driver does not say.
    pub name: Option<String>,
    /// The driver's version; `None` if it does not say.
    pub driver: Option<String>,
    /// The power limit in force at the start.
    pub enforced_limit: Option<Watts>,
    /// The highest power limit that can be set.
    pub max_limit: Option<Watts>,
    energy: Option<Way>,
    power: Option<Way>,
}

/// What one read showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Cumulative energy, where the board has a counter.
    pub(super) energy: Option<Microjoules>,
    /// Present power.
    pub(super) power: Option<Watts>,
}

impl Board {
    /// Asks a device what it has.
    pub(super) fn probe(device: &Device<'_>, driver: Option<String>) -> Result<Self, NvmlError> {
        let mut board = Self {
            uuid: device.uuid()?,
            name: device.name().ok(),
            driver,
            enforced_limit: device.enforced_power_limit().ok().map(milliwatts),
            max_limit: device
                .power_management_limit_constraints()
                .ok()
                .map(|limits| milliwatts(limits.max_limit)),
            energy: None,
            power: None,
        };
        let (energy, power) = fields(device, &[TOTAL_ENERGY, INSTANT_POWER])
            .map(|values| {
                (
                    values.first().copied().flatten(),
                    values.get(1).copied().flatten(),
                )
            })
            .unwrap_or_default();
        board.power = match power {
            Some(_) => Some(Way::Field),
            None => device.power_usage().ok().map(|_| Way::Function),
        };
        board.energy = match energy {
            Some(_) => Some(Way::Field),
            None => device
                .total_energy_consumption()
                .ok()
                .map(|_| Way::Function),
        };
        // Some virtual GPUs answer with success and 0 for ever.
        if board.energy.is_some() && board.read(device)?.energy == Some(Microjoules::ZERO) {
            thread::sleep(TWO_TICKS);
            if board.read(device)?.energy == Some(Microjoules::ZERO) {
                board.energy = None;
            }
        }
        Ok(board)
    }

    /// Whether the board counts its energy.
    pub fn has_counter(&self) -> bool {
        self.energy.is_some()
    }

    /// Whether the board shows its power.
    pub fn has_power(&self) -> bool {
        self.power.is_some()
    }

    /// Whether the power shown is the present one. The other reading is an average over the last
    /// second on most boards: it must not place energy inside a tick.
    pub fn has_instant_power(&self) -> bool {
        self.power == Some(Way::Field)
    }

    /// Reads energy and power; one call where the board has both as fields.
    ///
    /// # Errors
    /// What the driver says when the figure to be booked cannot be read. A missing power reading
    /// beside a counter is no error.
    pub(super) fn read(&self, device: &Device<'_>) -> Result<Sample, NvmlError> {
        let mut sample = Sample {
            energy: None,
            power: None,
        };
        match (self.energy, self.power) {
            (Some(Way::Field), Some(Way::Field)) => {
                let values = fields(device, &[TOTAL_ENERGY, INSTANT_POWER])?;
                sample.energy = values.first().copied().flatten().map(energy);
                sample.power = values.get(1).copied().flatten().map(power);
            }
            (Some(Way::Field), _) => {
                let values = fields(device, &[TOTAL_ENERGY])?;
                sample.energy = values.first().copied().flatten().map(energy);
            }
            (Some(Way::Function), way) => {
                sample.energy = Some(energy(device.total_energy_consumption()?));
                if way == Some(Way::Field) {
                    let values = fields(device, &[INSTANT_POWER]).unwrap_or_default();
                    sample.power = values.first().copied().flatten().map(power);
                }
            }
            (None, Some(Way::Field)) => {
                let values = fields(device, &[INSTANT_POWER])?;
                sample.power = values.first().copied().flatten().map(power);
            }
            (None, _) => {}
        }
        if self.power == Some(Way::Function) {
            sample.power = match device.power_usage() {
                Ok(value) => Some(milliwatts(value)),
                Err(error) if self.energy.is_none() && !is_absent(&error) => return Err(error),
                Err(_) => None,
            };
        }
        let booked = if self.energy.is_some() {
            sample.energy.is_some()
        } else {
            sample.power.is_some() || self.power.is_none()
        };
        if booked {
            Ok(sample)
        } else {
            Err(NvmlError::NoData)
        }
    }
}

/// Field values by position: the id that comes back may be another than the one asked for.
fn fields(device: &Device<'_>, ids: &[FieldId]) -> Result<Vec<Option<u64>>, NvmlError> {
    let samples = device.field_values_for(ids)?;
    let value = |sample: SampleValue| match sample {
        SampleValue::U64(value) => Some(value),
        SampleValue::U32(value) => Some(u64::from(value)),
        SampleValue::I64(value) => u64::try_from(value).ok(),
        SampleValue::F64(value) => (value >= 0.0).then_some(value as u64),
    };
    let mut values = Vec::with_capacity(samples.len());
    for sample in samples {
        values.push(match sample.and_then(|sample| sample.value) {
            Ok(found) => value(found),
            // A board that is lost says so field by field.
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => return Err(error),
            Err(_) => None,
        });
    }
    Ok(values)
}

fn energy(millijoules: u64) -> Microjoules {
    Microjoules::from_millijoules(millijoules)
}

fn power(milliwatts: u64) -> Watts {
    Watts(milliwatts as f64 * 1e-3)
}

fn milliwatts(value: u32) -> Watts {
    power(u64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(energy: Option<Way>, power: Option<Way>) -> Board {
        Board {
            uuid: "GPU-1".into(),
            name: None,
            driver: None,
            enforced_limit: Some(Watts(300.0)),
            max_limit: None,
            energy,
            power,
        }
    }

    #[test]
    fn a_board_without_counter_is_integrated_and_one_that_shows_nothing_is_no_meter() {
        use crate::ledger::Source;
        let source = |energy, power| board(energy, power).meter().map(|meter| meter.source);
        assert_eq!(source(Some(Way::Function), None), Some(Source::Counter));
        assert_eq!(source(None, Some(Way::Function)), Some(Source::Integrated));
        assert_eq!(source(None, None), None);
        assert!(!board(None, Some(Way::Function)).has_instant_power());
    }

    #[test]
    fn the_enforced_limit_stands_in_where_the_highest_is_not_known() {
        let meter = board(Some(Way::Field), None).meter();
        assert_eq!(meter.and_then(|meter| meter.limit), Some(Watts(300.0)));
    }
}
