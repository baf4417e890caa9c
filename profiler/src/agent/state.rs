//! What an agent leaves to the next one: its totals, how far each counter was booked, and what the
//! GPUs drew when idle.
//!
//! Written before a scrape shows totals that no scrape has seen, and at the end: so the file is never
//! older than what anybody has read, however the agent ends, and no counter falls. What was booked
//! after the last scrape of an agent that was killed is `gap` to the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::clock::Timestamp;
use crate::export::{BeforeShown, Saved};
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Known {
    component: Component,
    device: String,
    source: Source,
    latest: Option<Latest>,
    idle: Option<Idle>,
}

/// The reading up to which a counter is booked.
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

impl Known {
    /// `booked`: the reading up to which its counter is booked.
    pub(super) fn of(meter: &Meter, booked: Option<Reading>, idle: Option<TypicalIdle>) -> Self {
        Self {
            component: meter.component,
            device: meter.device.clone(),
            source: meter.source,
            latest: booked.map(|reading| Latest {
                until_ns: reading.until.0,
                energy_uj: reading.energy.0,
            }),
            idle: idle.map(|idle| Idle {
                bare_watts: idle.bare.0,
                parked_watts: idle.parked.0,
                error_watts: idle.error.0,
            }),
        }
    }
}

/// Has the file written, by a thread of its own: those that answer HTTP open no files.
#[derive(Debug, Clone)]
pub(super) struct Keeper(Sender<Kept>);

/// What is to be written.
struct Kept {
    at: Timestamp,
    meters: Vec<Known>,
    totals: Saved,
    /// Dropped when it is written, or has failed to be.
    done: Sender<()>,
}

impl Keeper {
    /// Starts the thread; it ends when nobody can tell it anything any more.
    pub(super) fn start(path: PathBuf) -> io::Result<Self> {
        let (sender, kept) = mpsc::channel();
        thread::Builder::new()
            .name("state".into())
            .spawn(move || write(&path, &kept))?;
        Ok(Self(sender))
    }

    /// Writes the totals of `at` before they are shown.
    pub(super) fn before_shown(&self, at: Timestamp, meters: Vec<Known>) -> BeforeShown {
        let keeper = self.clone();
        Box::new(move |totals| keeper.keep(at, meters.clone(), totals))
    }

    /// Writes the totals of `at`, unless later ones are there, and waits until that is done.
    pub(super) fn keep(&self, at: Timestamp, meters: Vec<Known>, totals: Saved) {
        let (done, written) = mpsc::channel();
        let kept = Kept {
            at,
            meters,
            totals,
            done,
        };
        // The thread lives as long as this value.
        if self.0.send(kept).is_ok() {
            // The sender is dropped, never used.
            let _ = written.recv();
        }
    }
}

fn write(path: &Path, told: &Receiver<Kept>) {
    let boot = boot_id();
    // Of when the file is.
    let mut written: Option<Timestamp> = None;
    let mut fails = false;
    while let Ok(kept) = told.recv() {
        let Kept {
            at,
            meters,
            totals,
            done,
        } = kept;
        if written.is_none_or(|later| later <= at) {
            let state = State {
                schema: SCHEMA,
                boot: boot.clone(),
                meters,
                totals,
            };
            match state.store(path) {
                Ok(()) => {
                    written = Some(at);
                    fails = false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        log::error!("{error}; an agent that follows goes on from older totals");
                    }
                }
            }
        }
        drop(done);
    }
}

impl State {
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
            // What a machine leaves of a young file when it loses power.
            Ok(text) if text.is_empty() => return Ok(None),
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

    /// Writes the file; whole, or not at all. It need not be on the disk: what ends an agent and not
    /// the machine leaves it to the next one.
    fn store(&self, path: &Path) -> Result<(), StateError> {
        let write = || {
            let mut name = path.as_os_str().to_owned();
            name.push(".new");
            let new = Path::new(&name);
            fs::write(new, serde_json::to_vec(self)?)?;
            fs::rename(new, path)
        };
        write().map_err(unusable(path))
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
    use crate::export::{Encoding, Format};

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

    fn known(source: Source) -> Known {
        let reading = Reading {
            meter: MeterId(3),
            after: Timestamp(5),
            until: Timestamp(7),
            energy: Microjoules(11),
        };
        Known::of(&meter(source), Some(reading), Some(IDLE))
    }

    fn keep(path: &Path, source: Source) {
        let keeper = Keeper::start(path.to_owned()).unwrap();
        keeper.keep(Timestamp(7), vec![known(source)], Saved::default());
    }

    #[test]
    fn a_counter_goes_on_where_it_was_left_in_the_same_life_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert!(State::load(&path).unwrap().is_none());
        keep(&path, Source::Counter);
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
        fs::write(&path, "").unwrap();
        assert!(State::load(&path).unwrap().is_none());
    }

    /// The file is of a real run of 0.1.0 on the simulated stack, and is never written again.
    #[test]
    fn the_state_of_0_1_0_is_gone_on_from() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/upgrade/state-0.1.0.json"
        );
        let state = State::load(Path::new(path)).unwrap().unwrap();
        let mut gpu = meter(Source::Counter);
        gpu.device = "GPU-51300000-0000-4000-8000-000000000000".to_owned();
        let idle = state.idle(&gpu).unwrap();
        assert!((idle.bare.0 - 82.711).abs() < 0.001, "{idle:?}");
        assert!(state.reading(MeterId(0), &gpu).is_none(), "of another boot");
        let mut metrics = crate::export::Metrics::new("test");
        metrics.resume(state.totals);
        metrics.publish(Timestamp(1), None);
        let snapshot = metrics.exposition().latest().unwrap();
        let text = snapshot.body(Format::Text, Encoding::Identity);
        let text = String::from_utf8(text.to_vec()).unwrap();
        for line in [
            "perjoule_requests_total{service=\"inference-sim\",route=\"chat_completions\",\
             code=\"2xx\",outcome=\"done\"} 8",
            "perjoule_meter_energy_joules_total{component=\"gpu\",\
             device=\"GPU-51300000-0000-4000-8000-000000000000\",source=\"counter\"} 3404.664",
            "perjoule_ledger_residual_joules 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_the_agent_sums_up_itself_is_not_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        keep(&path, Source::Integrated);
        let state = State::load(&path).unwrap().unwrap();
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
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_with_the_option_that_names_another() {
        let state = State {
            schema: SCHEMA,
            boot: boot_id(),
            meters: vec![known(Source::Counter)],
            totals: Saved::default(),
        };
        let nowhere = Path::new("/nonexistent/state.json");
        let error = state.store(nowhere).unwrap_err();
        assert!(error.to_string().contains("--state"), "{error}");
    }

    #[test]
    fn what_was_shown_first_does_not_replace_what_was_shown_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let keeper = Keeper::start(path.clone()).unwrap();
        let [early, late] = [5, 9].map(|until| {
            let mut known = known(Source::Counter);
            known.latest = Some(Latest {
                until_ns: until,
                energy_uj: 0,
            });
            keeper.before_shown(Timestamp(until), vec![known])
        });
        late(Saved::default());
        early(Saved::default());
        let state = State::load(&path).unwrap().unwrap();
        let reading = state.reading(MeterId(0), &meter(Source::Counter)).unwrap();
        assert_eq!(reading.until, Timestamp(9));
    }
}
