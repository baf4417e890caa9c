//! Full energy: what a service costs beside its requests' own energy.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::units::Microjoules;

/// Who pays for a device's idle energy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IdlePolicy {
    /// Nobody: it is shown by itself
    #[default]
    None,
    /// The services that held the device, in equal parts
    Even,
    /// The same services, by their requests' energy on it
    Proportional,
}

/// What full energy takes in beside active energy, overhead and context.
#[derive(Debug, Clone, Copy, Args)]
pub struct FullEnergy {
    /// Who pays for idle energy in the full energy of services
    #[arg(long, value_enum, default_value_t, value_name = "POLICY")]
    pub idle_policy: IdlePolicy,
    /// The site's power usage effectiveness (its energy ÷ that of its machines, ISO/IEC 30134-2),
    /// by which full energy is multiplied
    #[arg(long, default_value = "1", value_name = "RATIO", value_parser = pue)]
    pub pue: f64,
}

impl Default for FullEnergy {
    fn default() -> Self {
        Self {
            idle_policy: IdlePolicy::None,
            pue: 1.0,
        }
    }
}

impl FullEnergy {
    /// Joules, of a service's own energy and its part of the idle energy in joules.
    pub(super) fn of(self, own: Microjoules, idle: f64) -> f64 {
        (own.joules().0 + idle) * self.pue
    }
}

/// No site is better than 1, and none that is known is worse than a few.
fn pue(text: &str) -> Result<f64, String> {
    let value = f64::from_str(text).map_err(|error| error.to_string())?;
    if (1.0..=10.0).contains(&value) {
        Ok(value)
    } else {
        Err("a power usage effectiveness is 1 to 10, e.g. 1.3".to_owned())
    }
}
