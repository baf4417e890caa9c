//! What a power log is about: a first pass over it, which also finds what is wrong with it.

use std::path::Path;

use super::error::ReplayError;
use super::power::PowerLog;
use crate::clock::Timestamp;
use crate::ledger::{Component, Meter, Source};
use crate::units::Watts;

/// Distances between rows that are remembered, to tell the usual one.
const REMEMBERED: usize = 1_000;
/// What nobody has calibrated errs by this: see `docs/principles.md`.
const GAIN_ERROR: f64 = 0.05;

/// One device of a power log.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) rows: u64,
    latest: Timestamp,
    distances: Vec<u64>,
    /// The longest time between two of its rows, nanoseconds.
    pub(super) longest: u64,
}

impl Device {
    /// The usual time between two of its rows, nanoseconds.
    pub(super) fn usual(&self) -> u64 {
        let mut distances = self.distances.clone();
        let middle = distances.len() / 2;
        distances.sort_unstable();
        distances.get(middle).copied().unwrap_or(0)
    }

    /// Its meter. An interval is as long as the time between two rows, however long that is: watts
    /// hold, and a counter counts.
    pub(super) fn meter(&self, source: Source, idle: Option<Watts>) -> Meter {
        Meter {
            component: Component::Gpu,
            device: self.name.clone(),
            source,
            limit: None,
            tick: self.usual(),
            stale_after: self.longest,
            gain_error_ratio: GAIN_ERROR,
            idle,
        }
    }
}

/// Reads the whole log.
pub(super) fn scan(path: &Path) -> Result<(Source, Vec<Device>), ReplayError> {
    let mut log = PowerLog::open(path)?;
    let mut devices: Vec<Device> = Vec::new();
    while let Some(row) = log.next()? {
        let Some(device) = devices.get_mut(row.device) else {
            devices.push(Device {
                name: String::new(),
                rows: 1,
                latest: row.at,
                distances: Vec::new(),
                longest: 0,
            });
            continue;
        };
        let distance = row.at.since(device.latest);
        if device.distances.len() < REMEMBERED {
            device.distances.push(distance);
        }
        device.longest = device.longest.max(distance);
        device.rows += 1;
        device.latest = row.at;
    }
    if devices.is_empty() {
        return Err(ReplayError::file(
            path,
            "there is no row",
            "was the file cut off?",
        ));
    }
    for (device, name) in devices.iter_mut().zip(log.device_names()) {
        device.name = name;
    }
    Ok((log.source(), devices))
}
