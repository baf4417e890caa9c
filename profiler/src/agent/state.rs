//! What an agent leaves to the next one: its totals, how far each counter was read, and what the
//! GPUs drew when idle.
//!
//! Written when the agent ends in order, and taken away when the next one shows its first figures:
//! totals that an agent left behind while it was killed would be older than what was scraped last,
//! and a counter that falls by a little is a reset to Prometheus, which adds all of it once more.
//! After a kill or a crash the totals begin at 0, as counters do.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::clock::Timestamp;
use crate::export::Saved;
use crate::ledger::{Component, FloorSource, Meter, MeterId, Reading, Source, TypicalIdle};
use crate::units::{Microjoules, Watts};

/// The layout of the file.
const SCHEMA: u32 = 1;
/// Differs after every start of the machine, and with it the clock that readings are dated by.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("state file {}: {error}; correct the path given with --state or its permissions", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is something else.
    #[error("{} is no state file of perjoule ({error}); name another with --state, or move it away", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// A later version wrote it.
    #[error("{} has schema {schema}, this perjoule knows {SCHEMA}; update it, or move the file away", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Of which schema.
        schema: u32,
    },
}

/// Totals, and what is known of meters. Keys may be added.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    schema: u32,
    boot: String,
    meters: Vec<Known>,
    pub(super) totals: Saved,
}

/// What an agent knew of a meter.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    component: Component,
    device: String,
    source: Source,
    latest: Option<Latest>,
    idle: Option<Idle>,
}

/// A counter's latest reading.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Latest {
    until_ns: u64,
    energy_uj: u64,
}

/// Idle levels as they were learned.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Idle {
    bare_watts: f64,
    parked_watts: f64,
    error_watts: f64,
}

/// What is to be left of a meter.
#[derive(Debug)]
pub(super) struct Left<'a> {
    pub(super) meter: &'a Meter,
    pub(super) latest: Option<Reading>,
    pub(super) idle: Option<TypicalIdle>,
}

impl State {
    pub(super) fn new<'a>(meters: impl Iterator<Item = Left<'a>>, totals: Saved) -> Self {
        let known = |left: Left<'_>| Known {
            component: left.meter.component,
            device: left.meter.device.clone(),
            source: left.meter.source,
            latest: left.latest.map(|reading| Latest {
                until_ns: reading.until.0,
                energy_uj: reading.energy.0,
            }),
            idle: left.idle.map(|idle| Idle {
                bare_watts: idle.bare.0,
                parked_watts: idle.parked.0,
                error_watts: idle.error.0,
            }),
        };
        Self {
            schema: SCHEMA,
            boot: boot_id(),
            meters: meters.map(known).collect(),
            totals,
        }
    }

    fn known(&self, meter: &Meter) -> Option<&Known> {
        self.meters.iter().find(|known| {
            known.component == meter.component
                && known.device == meter.device
                && known.source == meter.source
        })
    }

    /// The meter's idle levels, if they were learned.
    pub(super) fn idle(&self, meter: &Meter) -> Option<TypicalIdle> {
        let idle = self.known(meter)?.idle?;
        Some(TypicalIdle {
            source: FloorSource::State,
            bare: Watts(idle.bare_watts),
            parked: Watts(idle.parked_watts),
            error: Watts(idle.error_watts),
        })
    }

    /// Where the meter's counter was left, if it runs on: in the same life of the machine, for what
    /// the agent sums up itself begins anew.
    pub(super) fn reading(&self, id: MeterId, meter: &Meter) -> Option<Reading> {
        if self.boot.is_empty() || self.boot != boot_id() || meter.source != Source::Counter {
            return None;
        }
        let latest = self.known(meter)?.latest?;
        Some(Reading {
            meter: id,
            after: Timestamp(latest.until_ns),
            until: Timestamp(latest.until_ns),
            energy: Microjoules(latest.energy_uj),
        })
    }

    /// What is in the file; `None` if there is none, and a place where one can be made.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, StateError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(path)(error)),
        };
        let foreign = |error| StateError::Foreign {
            path: path.to_owned(),
            error,
        };
        /// What every layout has.
        #[derive(Deserialize)]
        struct Known {
            schema: u32,
        }
        let Known { schema } = serde_json::from_slice(&text).map_err(foreign)?;
        if schema > SCHEMA {
            let path = path.to_owned();
            return Err(StateError::Newer { path, schema });
        }
        serde_json::from_slice(&text).map(Some).map_err(foreign)
    }

    /// Writes the file; whole, or not at all.
    pub(super) fn store(&self, path: &Path) -> Result<(), StateError> {
        let write = || {
            let mut name = path.as_os_str().to_owned();
            name.push(".new");
            let new = Path::new(&name);
            let mut file = File::create(new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(new, path)
        };
        write().map_err(unusable(path))
    }
}

/// What was taken over is shown from here on: the file must not be taken over again.
pub(super) fn take_away(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(path)(error)),
        _ => Ok(()),
    }
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError::File { path, error }
}

/// Empty where the kernel does not tell it: then nothing is known to be of the same life.
fn boot_id() -> String {
    fs::read_to_string(BOOT_ID)
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(source: Source) -> Meter {
        Meter {
            component: Component::Gpu,
            device: "GPU-1".to_owned(),
            source,
            limit: None,
            tick: 100_000_000,
            stale_after: 2_000_000_000,
            gain_error_ratio: 0.05,
            idle: None,
        }
    }

    const IDLE: TypicalIdle = TypicalIdle {
        source: FloorSource::State,
        bare: Watts(70.0),
        parked: Watts(108.5),
        error: Watts(0.5),
    };

    fn state(source: Source) -> State {
        let reading = Reading {
            meter: MeterId(3),
            after: Timestamp(5),
            until: Timestamp(7),
            energy: Microjoules(11),
        };
        let left = Left {
            meter: &meter(source),
            latest: Some(reading),
            idle: Some(IDLE),
        };
        State::new([left].into_iter(), Saved::default())
    }

    #[test]
    fn a_counter_goes_on_where_it_was_left_in_the_same_life_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert!(State::load(&path).unwrap().is_none());
        state(Source::Counter).store(&path).unwrap();
        let mut loaded = State::load(&path).unwrap().unwrap();
        let reading = loaded.reading(MeterId(0), &meter(Source::Counter)).unwrap();
        assert_eq!(
            (reading.meter, reading.until, reading.energy),
            (MeterId(0), Timestamp(7), Microjoules(11))
        );
        assert_eq!(loaded.idle(&meter(Source::Counter)), Some(IDLE));
        let integrated = meter(Source::Integrated);
        assert!(loaded.reading(MeterId(0), &integrated).is_none());
        loaded.boot = "another".to_owned();
        assert!(
            loaded
                .reading(MeterId(0), &meter(Source::Counter))
                .is_none()
        );
        take_away(&path).unwrap();
        assert!(State::load(&path).unwrap().is_none());
    }

    #[test]
    fn what_the_agent_sums_up_itself_is_not_resumed() {
        let state = state(Source::Integrated);
        let meter = meter(Source::Integrated);
        assert!(state.reading(MeterId(0), &meter).is_none());
    }

    #[test]
    fn a_foreign_and_a_newer_file_are_named_and_left_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        for (text, named) in [
            ("an essay", "is no state file"),
            ("{\"schema\": 1}", "is no state file"),
            ("{\"schema\": 2, \"more\": []}", "has schema 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = State::load(&path).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let nowhere = Path::new("/nonexistent/state.json");
        let error = state(Source::Counter).store(nowhere).unwrap_err();
        assert!(error.to_string().contains("--state"), "{error}");
    }
}
