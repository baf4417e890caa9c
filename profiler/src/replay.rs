//! Replay: any tool's power and request logs through the same ledger into a recording.
//!
//! In: `power.csv` and `requests.jsonl` (`docs/replay.md`). Out: a `.pj` file, and which idle floor
//! each device had. Three passes: over the power log for its devices, over both for the idle floors, if
//! they are not all given, and over both to book. So a floor that shows only at the end holds from
//! the start. What is booked goes to a file beside the output, which is replaced when all is understood.

mod devices;
mod error;
mod merge;
mod moment;
mod power;
mod recorder;
mod requests;
mod services;
#[cfg(test)]
mod tests;
mod timeline;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

pub use error::ReplayError;

use crate::agent::config::IdleWatts;
use crate::ledger::{BookedInterval, Floor, FloorSource, Ledger, MeterId, ServiceId};
use crate::recording::{self, RecordedRequest, Recording, RecordingError};
use devices::Device;
use merge::{Pass, Sink};
use recorder::Recorder;

/// What to replay, and into what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The power log.
    pub power: PathBuf,
    /// The request log.
    pub requests: PathBuf,
    /// The recording.
    pub output: PathBuf,
    /// The floors the user fixes.
    pub idle_watts: IdleWatts,
}

/// What was replayed.
#[derive(Debug)]
pub struct Replayed {
    /// By device.
    pub devices: Vec<ReplayedDevice>,
    /// How many requests were booked.
    pub requests: u64,
}

/// One device of the power log.
#[derive(Debug)]
pub struct ReplayedDevice {
    /// Its name.
    pub name: String,
    /// Its idle floor; `None` where the log has no quiet time.
    pub floor: Option<Floor>,
    /// How many rows it has.
    pub rows: u64,
    /// The usual and the longest time between two of them, seconds.
    pub distances: (f64, f64),
}

/// Books the logs.
///
/// # Errors
/// If a log is not understood, or the recording cannot be written; it is then as it was before.
pub fn replay(options: &Options) -> Result<Replayed, ReplayError> {
    let Options {
        power,
        requests,
        output,
        idle_watts,
    } = options;
    recording::check_replaceable(output)?;
    let (source, devices) = devices::scan(power)?;
    for name in idle_watts.devices() {
        if !devices.iter().any(|device| device.name == name) {
            let cause = format!("--idle-watts names the device `{name}`, which is not there");
            let next = "name it as the log does, or give one number for all";
            return Err(ReplayError::file(power, cause, next));
        }
    }
    let meters = |floor: &dyn Fn(usize, &Device) -> Option<Floor>| {
        let of = |(place, device): (usize, &Device)| {
            device.meter(source, floor(place, device).map(|floor| floor.watts))
        };
        devices.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    let fixed = |_: usize, device: &Device| {
        idle_watts.of(&device.name).map(|watts| Floor {
            watts,
            source: FloorSource::Fixed,
        })
    };
    let given: Option<Vec<Floor>> = devices
        .iter()
        .enumerate()
        .map(|(place, device)| fixed(place, device))
        .collect();
    let floors: Vec<Option<Floor>> = match given {
        Some(floors) => floors.into_iter().map(Some).collect(),
        None => {
            let survey = Pass::new(&devices, meters(&fixed), false, Nowhere);
            let (ledger, Nowhere) = survey.run(power, requests)?;
            let places = 0..devices.len();
            places.map(|place| floor_of(&ledger, place)).collect()
        }
    };

    let partial = partial(output);
    let meters = meters(&|place, _| floors.get(place).copied().flatten());
    let mut recording = Recording::create(&partial, "replay", false)?;
    let booked = || -> Result<u64, ReplayError> {
        for (id, meter) in (0..).zip(&meters) {
            recording.meter(MeterId(id), meter)?;
            recording.floor(MeterId(id), floors.get(id as usize).copied().flatten())?;
        }
        let sink = Recorder::new(recording).map_err(|error| {
            let cause = format!("no thread to write it: {error}");
            ReplayError::file(output, cause, "is a limit on threads reached?")
        })?;
        let (_, sink) = Pass::new(&devices, meters.clone(), true, sink).run(power, requests)?;
        let requests = sink.close()?;
        recording::replace(&partial, output)?;
        Ok(requests)
    };
    let requests = booked().inspect_err(|_| {
        // What is half written is of no use; the error tells why it is not there.
        let _ = recording::remove(&partial);
    })?;
    let replayed = devices
        .iter()
        .zip(floors)
        .map(|(device, floor)| ReplayedDevice {
            name: device.name.clone(),
            floor,
            rows: device.rows,
            distances: (device.usual() as f64 / 1e9, device.longest as f64 / 1e9),
        });
    Ok(Replayed {
        devices: replayed.collect(),
        requests,
    })
}

fn floor_of(ledger: &Ledger, place: usize) -> Option<Floor> {
    ledger.floor(MeterId(place as u32))
}

/// Written under another name first, so that the output is whole or as it was before.
fn partial(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Opens a log; it is read more than once.
fn open(path: &Path) -> Result<File, ReplayError> {
    let fail = |cause: std::io::Error| {
        ReplayError::file(path, cause.to_string(), "give a file that can be read")
    };
    let is_file = fs::metadata(path).map_err(fail)?.is_file();
    if !is_file {
        return Err(ReplayError::file(
            path,
            "it is no regular file",
            "logs are read more than once: save it to a file first",
        ));
    }
    File::open(path).map_err(fail)
}

/// For a pass that only looks.
#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn service(&mut self, _: ServiceId, _: &str) -> Result<(), RecordingError> {
        Ok(())
    }
    fn interval(&mut self, _: BookedInterval) -> Result<(), RecordingError> {
        Ok(())
    }
    fn request(&mut self, _: RecordedRequest) -> Result<(), RecordingError> {
        Ok(())
    }
}
