//! The idle floor a user fixes: for all GPUs, or for some by UUID.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

use crate::units::Watts;

/// `83`, `GPU-…=83`, or several with commas; in the file a number or a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IdleWatts {
    all: Option<Watts>,
    devices: BTreeMap<String, Watts>,
}

/// Why an idle floor is not understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseIdleWattsError {
    /// Not a number of watts.
    #[error("`{0}` is neither watts nor DEVICE=watts; a floor is a number from 0 to 10000")]
    NotWatts(String),
}

impl IdleWatts {
    /// The floor of a device; `None` if the user fixed none.
    pub fn of(&self, device: &str) -> Option<Watts> {
        self.devices.get(device).copied().or(self.all)
    }

    /// The devices that are named.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// Adds what another flag says; a later one wins.
    #[must_use]
    pub fn and(mut self, later: Self) -> Self {
        self.all = later.all.or(self.all);
        self.devices.extend(later.devices);
        self
    }
}

impl FromStr for IdleWatts {
    type Err = ParseIdleWattsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut floors = Self::default();
        for item in text.split(',').map(str::trim) {
            let wrong = || ParseIdleWattsError::NotWatts(item.to_owned());
            let (device, number) = match item.rsplit_once('=') {
                Some((device, number)) => (Some(device.trim()), number.trim()),
                None => (None, item),
            };
            let watts = number.parse().ok().and_then(checked).ok_or_else(wrong)?;
            match device {
                Some("") => return Err(wrong()),
                Some(device) => {
                    floors.devices.insert(device.to_owned(), watts);
                }
                None => floors.all = Some(watts),
            }
        }
        Ok(floors)
    }
}

fn checked(watts: f64) -> Option<Watts> {
    (0.0..=10_000.0).contains(&watts).then_some(Watts(watts))
}

impl<'de> Deserialize<'de> for IdleWatts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a number of watts, or a table of DEVICE = watts"
        )]
        enum Form {
            All(f64),
            Devices(BTreeMap<String, f64>),
        }
        let watts = |watts: f64| {
            let wrong = || de::Error::custom(ParseIdleWattsError::NotWatts(watts.to_string()));
            checked(watts).ok_or_else(wrong)
        };
        Ok(match Form::deserialize(from)? {
            Form::All(all) => Self {
                all: Some(watts(all)?),
                devices: BTreeMap::new(),
            },
            Form::Devices(devices) => Self {
                all: None,
                devices: devices
                    .into_iter()
                    .map(|(device, floor)| Ok((device, watts(floor)?)))
                    .collect::<Result<_, D::Error>>()?,
            },
        })
    }
}
