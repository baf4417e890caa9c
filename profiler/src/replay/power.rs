//! `power.csv`: what each device drew, as readings of an energy counter.
//!
//! In: rows in order of time, `time_s,device,watts` (holds until the device's next row) or
//! `time_s,device,energy_j` (cumulative). Out: each row as its device's energy since the log's
//! beginning, in whole microjoules whose sum is the log's to one of them.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use csv::{ErrorKind, StringRecord, Trim};

use super::error::ReplayError;
use super::moment::moment;
use crate::clock::Timestamp;
use crate::ledger::Source;
use crate::units::Microjoules;

/// No device draws more: such numbers are milliwatts.
const MOST_WATTS: f64 = 1e7;
/// No counter has come so far: such numbers are millijoules. Beyond it microjoules do not fit.
const MOST_JOULES: f64 = 1e12;
const HEADER: &str = "the first line must be `time_s,device,watts` or `time_s,device,energy_j`";
const SORT: &str =
    "sort the rows by time, as in `(head -n1 P.csv; tail -n+2 P.csv | sort -t, -gk1,1)`";

/// One row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// The device's place, in order of appearance.
    pub(super) device: usize,
    pub(super) at: Timestamp,
    /// Cumulative since an arbitrary start.
    pub(super) energy: Microjoules,
}

#[derive(Debug)]
struct Device {
    at: Timestamp,
    line: u64,
    watts: f64,
    energy: u64,
    /// What has been integrated beyond whole microjoules.
    carry: f64,
}

/// The log, read in order.
#[derive(Debug)]
pub(super) struct PowerLog {
    path: PathBuf,
    reader: csv::Reader<File>,
    record: StringRecord,
    source: Source,
    /// Where time, device and value stand.
    columns: [usize; 3],
    names: HashMap<String, usize>,
    devices: Vec<Device>,
    latest: Timestamp,
}

impl PowerLog {
    pub(super) fn open(path: &Path) -> Result<Self, ReplayError> {
        let file = super::open(path)?;
        let mut reader = csv::ReaderBuilder::new()
            .trim(Trim::All)
            .buffer_capacity(1 << 16)
            .from_reader(file);
        let header = match reader.headers() {
            Ok(header) => header.clone(),
            Err(error) => return Err(wrong(path, &error)),
        };
        let mut columns = HashMap::new();
        for (place, name) in header.iter().enumerate() {
            let name = name.trim_start_matches('\u{feff}').trim();
            if columns.insert(name.to_owned(), place).is_some() {
                let cause = format!("the column `{name}` is there twice");
                return Err(ReplayError::line(path, 1, cause, HEADER));
            }
        }
        let column = |name: &str| {
            columns.get(name).copied().ok_or_else(|| {
                let cause = format!("the column `{name}` is missing");
                ReplayError::line(path, 1, cause, HEADER)
            })
        };
        let (time, device) = (column("time_s")?, column("device")?);
        let (source, value) = match (columns.get("watts"), columns.get("energy_j")) {
            (Some(&watts), None) => (Source::Integrated, watts),
            (None, Some(&energy)) => (Source::Counter, energy),
            (Some(_), Some(_)) => {
                let cause = "there are both `watts` and `energy_j`";
                return Err(ReplayError::line(path, 1, cause, HEADER));
            }
            (None, None) => {
                let cause = "there is neither `watts` nor `energy_j`";
                return Err(ReplayError::line(path, 1, cause, HEADER));
            }
        };
        Ok(Self {
            path: path.to_owned(),
            reader,
            record: StringRecord::new(),
            source,
            columns: [time, device, value],
            names: HashMap::new(),
            devices: Vec::new(),
            latest: Timestamp(0),
        })
    }

    pub(super) const fn source(&self) -> Source {
        self.source
    }

    /// The devices' names that have appeared so far, in that order.
    pub(super) fn device_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_unstable_by_key(|(_, place)| **place);
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// The next row; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Row>, ReplayError> {
        match self.reader.read_record(&mut self.record) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(wrong(&self.path, &error)),
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        let path = &self.path;
        let fail = |cause: String, next| ReplayError::line(path, line, cause, next);
        let [time, device, value] = self
            .columns
            .map(|place| self.record.get(place).unwrap_or(""));
        let number = |key: &str, text: &str| {
            text.parse::<f64>().map_err(|_| {
                let cause = format!("{key} is `{text}`");
                fail(cause, "it must be a number; leave out rows without one")
            })
        };
        let at =
            moment("time_s", number("time_s", time)?).map_err(|(cause, next)| fail(cause, next))?;
        if device.is_empty() {
            return Err(fail(
                "the device has no name".into(),
                "name each row's device",
            ));
        }
        if at < self.latest {
            return Err(fail(format!("time_s {time} is before the row above"), SORT));
        }
        let value = match self.source {
            Source::Counter => checked_joules(number("energy_j", value)?),
            _ => checked_watts(number("watts", value)?),
        }
        .map_err(|(cause, next)| fail(cause, next))?;
        self.latest = at;
        let counter = self.source == Source::Counter;
        let joules = if counter {
            (value * 1e6).round() as u64
        } else {
            0
        };
        let Some(&place) = self.names.get(device) else {
            let place = self.devices.len();
            self.names.insert(device.to_owned(), place);
            self.devices.push(Device {
                at,
                line,
                watts: value,
                energy: joules,
                carry: 0.0,
            });
            return Ok(Some(Row {
                device: place,
                at,
                energy: Microjoules(joules),
            }));
        };
        let Some(known) = self.devices.get_mut(place) else {
            return Ok(None);
        };
        if at == known.at {
            let cause = format!(
                "{device} has a row for time_s {time} already, in line {}",
                known.line
            );
            return Err(fail(cause, "leave one row for each time and device"));
        }
        if counter {
            if joules < known.energy {
                let cause = format!(
                    "energy_j {value} of {device} is less than in line {}",
                    known.line
                );
                return Err(fail(
                    cause,
                    "energy_j must never fall: split the log where the counter was reset",
                ));
            }
            known.energy = joules;
        } else {
            let exact = known.watts * at.since(known.at) as f64 * 1e-3 + known.carry;
            let whole = exact.floor();
            known.carry = exact - whole;
            known.energy = known.energy.saturating_add(whole as u64);
            known.watts = value;
        }
        (known.at, known.line) = (at, line);
        Ok(Some(Row {
            device: place,
            at,
            energy: Microjoules(known.energy),
        }))
    }
}

fn checked_watts(watts: f64) -> Result<f64, (String, &'static str)> {
    if watts.is_nan() || watts < 0.0 {
        let cause = format!("watts is {watts}");
        return Err((
            cause,
            "power is 0 or more; leave out rows without a reading",
        ));
    }
    if watts > MOST_WATTS {
        return Err((format!("watts is {watts}"), "give watts, not milliwatts"));
    }
    Ok(watts)
}

fn checked_joules(joules: f64) -> Result<f64, (String, &'static str)> {
    if joules.is_nan() || joules < 0.0 {
        let cause = format!("energy_j is {joules}");
        return Err((
            cause,
            "energy is 0 or more; leave out rows without a reading",
        ));
    }
    if joules > MOST_JOULES {
        let cause = format!("energy_j is {joules}");
        return Err((cause, "give joules, not millijoules"));
    }
    Ok(joules)
}

fn wrong(path: &Path, error: &csv::Error) -> ReplayError {
    let line = error.position().map_or(1, csv::Position::line);
    match error.kind() {
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => ReplayError::line(
            path,
            line,
            format!("{len} columns where the first line has {expected_len}"),
            "each row must have all columns; was the file cut off?",
        ),
        ErrorKind::Utf8 { .. } => {
            ReplayError::line(path, line, "it is no UTF-8", "save the file as UTF-8")
        }
        _ => ReplayError::file(path, error.to_string(), "is it a CSV file?"),
    }
}
