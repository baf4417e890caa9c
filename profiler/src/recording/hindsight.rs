//! The last minutes, on disk: two recordings that take turns.
//!
//! One is written; the one before stays until the next turn, a window later. Together they hold one window
//! at least and two at most. To forget is to remove a file, to append costs what it costs in any
//! recording, and what a killed agent leaves are recordings. [`Hindsight::save`] brings the last window of
//! both into a file of its own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::write::remove;
use super::{Recorded, RecordedEngine, Recording, RecordingError, check_replaceable, replace};
use crate::clock::Timestamp;
use crate::ledger::{Booked, Floor, Meter, MeterId, ServiceId};

/// Saved files that may lie beside it: whoever may ask for them does not fill the disk.
const MOST_SAVED: usize = 32;

/// Facts that hold of one file, and of another one not: what it is, and counts since the agent's start.
const OF_THE_FILE: [&str; 11] = [
    "schema",
    "version",
    "source",
    "simulated",
    "events_lost",
    "requests_lost",
    "stacks_taken",
    "stacks_lost",
    "stacks_cut",
    "off_cpu_waits",
    "off_cpu_lost",
];

/// Keeps the last minutes.
#[derive(Debug)]
pub struct Hindsight {
    path: PathBuf,
    window: Duration,
    simulated: bool,
    known: Known,
    /// What is written; `None` from an error to the next turn.
    current: Option<Recording>,
    /// Which of the two that is.
    turn: usize,
    began: Timestamp,
    /// Which of the two hold what this one wrote.
    holds: [bool; 2],
}

/// What a file must be told before anything is booked in it.
#[derive(Debug, Default)]
struct Known {
    meters: BTreeMap<MeterId, Meter>,
    floors: BTreeMap<MeterId, Option<Floor>>,
    services: BTreeMap<ServiceId, (String, Option<String>)>,
    engines: BTreeMap<ServiceId, RecordedEngine>,
    facts: BTreeMap<String, String>,
}

impl Hindsight {
    /// Keeps the last `window` in two files named after `path`. Of two that another agent left the newer one
    /// stays for a window.
    ///
    /// # Errors
    /// If a file cannot be made.
    pub fn create(
        path: PathBuf,
        window: Duration,
        simulated: bool,
    ) -> Result<Self, RecordingError> {
        // Not an hour later, when the second one's turn comes.
        for turn in [0, 1] {
            check_replaceable(&part(&path, turn))?;
        }
        // None is older than any.
        let turn = usize::from(changed(&part(&path, 1)) < changed(&part(&path, 0)));
        let mut hindsight = Self {
            path,
            window,
            simulated,
            known: Known::default(),
            current: None,
            turn,
            began: Timestamp::now(),
            holds: [false; 2],
        };
        hindsight.begin()?;
        Ok(hindsight)
    }

    fn begin(&mut self) -> Result<(), RecordingError> {
        let Self { turn, known, .. } = self;
        let mut recording = Recording::create(&part(&self.path, *turn), "run", self.simulated)?;
        for (id, meter) in &known.meters {
            recording.meter(*id, meter)?;
        }
        for (id, floor) in &known.floors {
            recording.floor(*id, *floor)?;
        }
        for (id, (name, model)) in &known.services {
            recording.service(*id, name, model.as_deref())?;
        }
        for engine in known.engines.values() {
            recording.engine(engine)?;
        }
        for (key, value) in &known.facts {
            recording.fact(key, value)?;
        }
        recording.commit()?;
        self.current = Some(recording);
        if let Some(holds) = self.holds.get_mut(*turn) {
            *holds = true;
        }
        Ok(())
    }

    /// The other file's turn, if this one's has lasted for the window.
    ///
    /// # Errors
    /// If a file cannot be written, as with every method here; it is then tried again at the next turn.
    pub fn take_turns(&mut self, now: Timestamp) -> Result<(), RecordingError> {
        if now < self.began.plus(self.window) {
            return Ok(());
        }
        self.began = now;
        self.turn = 1 - self.turn;
        if let Some(holds) = self.holds.get_mut(self.turn) {
            *holds = false;
        }
        let closed = self.current.take().map_or(Ok(()), Recording::close);
        closed.and(self.begin())
    }

    /// Names a meter.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn meter(&mut self, id: MeterId, meter: &Meter) -> Result<(), RecordingError> {
        self.known.meters.insert(id, meter.clone());
        self.write(|recording| recording.meter(id, meter))
    }

    /// Tells a meter's idle floor as it is known now.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn floor(&mut self, id: MeterId, floor: Option<Floor>) -> Result<(), RecordingError> {
        self.known.floors.insert(id, floor);
        self.write(|recording| recording.floor(id, floor))
    }

    /// Names a service.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn service(
        &mut self,
        id: ServiceId,
        name: &str,
        model: Option<&str>,
    ) -> Result<(), RecordingError> {
        let told = (name.to_owned(), model.map(str::to_owned));
        self.known.services.insert(id, told);
        self.write(|recording| recording.service(id, name, model))
    }

    /// Tells what serves.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn engine(&mut self, told: &RecordedEngine) -> Result<(), RecordingError> {
        self.known.engines.insert(told.service, told.clone());
        self.write(|recording| recording.engine(told))
    }

    /// Tells a fact as it is known now.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn fact(&mut self, key: &str, value: &str) -> Result<(), RecordingError> {
        self.known.facts.insert(key.to_owned(), value.to_owned());
        self.write(|recording| recording.fact(key, value))
    }

    /// A service ended long ago: files to come need not name it.
    pub fn forget_service(&mut self, id: ServiceId) {
        self.known.services.remove(&id);
        self.known.engines.remove(&id);
    }

    /// Writes what needs no description in files to come.
    ///
    /// # Errors
    /// If the file cannot be written; no more is written to it.
    pub fn write(
        &mut self,
        write: impl FnOnce(&mut Recording) -> Result<(), RecordingError>,
    ) -> Result<(), RecordingError> {
        let written = self.current.as_mut().map_or(Ok(()), write);
        if written.is_err() {
            self.current = None;
        }
        written
    }

    /// The last window as it stands now, to be saved by whoever has the time. Until then nothing may
    /// [take turns](Self::take_turns).
    ///
    /// # Errors
    /// If nothing is kept, or too much was saved.
    pub fn save(&mut self, now: Timestamp) -> Result<Saving, RecordingError> {
        self.write(Recording::commit)?;
        let refuse = |why: String| Err(RecordingError::io(&self.path)(io::Error::other(why)));
        let mut parts = Vec::new();
        // What was written before comes first.
        for turn in [1 - self.turn, self.turn] {
            if self.holds.get(turn) == Some(&true) {
                parts.push(Recorded::open(&part(&self.path, turn))?);
            }
        }
        let Some(latest) = parts.last() else {
            return refuse("nothing is kept, for it could not be written; the log says why".into());
        };
        if saved_files(&self.path) >= MOST_SAVED {
            return refuse(format!(
                "{MOST_SAVED} saved files are beside it; move some away, or remove them"
            ));
        }
        let path = named(&self.path, &latest.second()?);
        Ok(Saving {
            aside: named(&self.path, "saving"),
            path,
            from: now.minus(self.window),
            simulated: self.simulated,
            parts,
        })
    }

    /// Commits and closes.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn close(self) -> Result<(), RecordingError> {
        self.current.map_or(Ok(()), Recording::close)
    }
}

/// A window that is being saved.
#[derive(Debug)]
pub struct Saving {
    path: PathBuf,
    aside: PathBuf,
    from: Timestamp,
    simulated: bool,
    parts: Vec<Recorded>,
}

impl Saving {
    /// Writes the file, and names it. It is there when it is whole.
    ///
    /// # Errors
    /// If it cannot be written, or the window not be read.
    pub fn write(self) -> Result<PathBuf, RecordingError> {
        let written = self
            .write_aside()
            .and_then(|()| replace(&self.aside, &self.path));
        if written.is_err() {
            // The error that there is says more than another one.
            let _ = remove(&self.aside);
        }
        written.map(|()| self.path)
    }

    fn write_aside(&self) -> Result<(), RecordingError> {
        let mut saved = Recording::create(&self.aside, "hindsight", self.simulated)?;
        let mut cut = 0;
        for part in &self.parts {
            cut += copy(part, self.from, &mut saved)?;
        }
        saved.fact("requests_cut", &cut.to_string())?;
        saved.close()
    }
}

/// Copies what ended after `from`; how many of the requests began before.
fn copy(part: &Recorded, from: Timestamp, saved: &mut Recording) -> Result<u64, RecordingError> {
    type Put<'a> = &'a dyn Fn(&mut Recording) -> Result<(), RecordingError>;
    let mut done = Ok(());
    let mut put = |saved: &mut Recording, put: Put<'_>| {
        if done.is_ok() {
            done = put(saved);
        }
    };
    part.meters(|id, meter| put(saved, &|saved| saved.meter(id, &meter)))?;
    part.floors(|id, floor| put(saved, &|saved| saved.floor(id, floor)))?;
    part.services(|id, name, model| put(saved, &|saved| saved.service(id, name, model)))?;
    part.engines(|told| put(saved, &|saved| saved.engine(&told)))?;
    part.facts(|key, value| {
        if !OF_THE_FILE.contains(&key) {
            put(saved, &|saved| saved.fact(key, value));
        }
    })?;
    part.host(|host| {
        if host.to > from {
            put(saved, &|saved| saved.host(&host));
        }
    })?;
    part.starved(|service, at, reason, nanos| {
        if at > from {
            put(saved, &|saved| saved.starved(service, at, reason, nanos));
        }
    })?;
    part.throttled(|meter, at, reason, nanos| {
        if at > from {
            put(saved, &|saved| saved.throttled(meter, at, reason, nanos));
        }
    })?;
    part.tokens(|delta| {
        if delta.to > from {
            put(saved, &|saved| saved.tokens(&delta));
        }
    })?;
    part.stacks_since(from, |id, frames| {
        put(saved, &|saved| saved.stack(id, frames))
    })?;
    part.samples_since(from, |sample| put(saved, &|saved| saved.sample(sample)))?;
    part.waits_since(from, |wait| put(saved, &|saved| saved.wait(wait)))?;
    let mut book = |booked: Booked| {
        let to = match &booked {
            Booked::Interval(interval) => interval.to,
            Booked::Hole { to, .. } => *to,
            Booked::Request(_) => return,
        };
        if to > from {
            put(saved, &|saved| saved.book(&booked));
        }
    };
    part.intervals(&mut book)?;
    part.holes(&mut book)?;
    done?;
    let mut cut = 0;
    let flow = part.requests(|recorded| {
        let request = &recorded.booked.request;
        if request.end.is_some_and(|end| end.at <= from) {
            return ControlFlow::Continue(());
        }
        cut += u64::from(request.start < from);
        let written = saved.request(recorded).and_then(|()| {
            let trace = part.trace(request.id)?;
            trace.map_or(Ok(()), |trace| saved.trace(request.id, &trace))
        });
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    })?;
    match flow {
        ControlFlow::Continue(()) => Ok(cut),
        ControlFlow::Break(error) => Err(error),
    }
}

/// When something was written to a recording: to the file, or to the log beside it.
fn changed(path: &Path) -> Option<SystemTime> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let files = [path, Path::new(&log)];
    let times = files.map(|file| fs::metadata(file).and_then(|file| file.modified()).ok());
    times.into_iter().max().flatten()
}

/// One of the two files.
fn part(path: &Path, turn: usize) -> PathBuf {
    named(path, &(turn + 1).to_string())
}

/// `hindsight-WHAT.pj` of `hindsight.pj`.
fn named(path: &Path, what: &str) -> PathBuf {
    let mut name = prefix(path);
    name.push(what);
    name.push(".");
    name.push(path.extension().unwrap_or(OsStr::new("pj")));
    path.with_file_name(name)
}

fn prefix(path: &Path) -> OsString {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-");
    name
}

/// How many windows were saved and are still there: files that end with a time's `Z`.
fn saved_files(path: &Path) -> usize {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let Ok(files) = fs::read_dir(folder) else {
        return 0;
    };
    let prefix = prefix(path);
    let is_saved = |file: &fs::DirEntry| {
        let name = file.file_name();
        let stem = Path::new(&name).file_stem().unwrap_or_default();
        let (stem, prefix) = (stem.as_encoded_bytes(), prefix.as_encoded_bytes());
        stem.starts_with(prefix) && stem.ends_with(b"Z")
    };
    files.flatten().filter(is_saved).count()
}

#[cfg(test)]
mod tests;
