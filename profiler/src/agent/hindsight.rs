//! The last minutes on disk: kept by whoever publishes, saved by a thread of its own, one window at a time.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Agent;
use crate::clock::Timestamp;
use crate::ledger::ServiceId;
use crate::recording::{Hindsight, Recording, RecordingError};

/// How many of the last minutes are kept, and where.
#[derive(Debug, Clone)]
pub struct HindsightOptions {
    /// Their files are named after this one.
    pub path: PathBuf,
    /// How long they reach back.
    pub window: Duration,
}

/// Is told which file holds the last minutes, or why none does.
pub type Answer = Box<dyn FnOnce(Result<PathBuf, String>) + Send>;

/// The last minutes, and who saves them.
#[derive(Debug)]
pub(super) struct LastMinutes {
    hindsight: Hindsight,
    saving: Option<JoinHandle<()>>,
}

impl LastMinutes {
    pub(super) const fn new(hindsight: Hindsight) -> Self {
        Self {
            hindsight,
            saving: None,
        }
    }

    /// Tells it something. What cannot be written is logged, and missing until the files' next turn.
    pub(super) fn keep(&mut self, keep: impl FnOnce(&mut Hindsight) -> Result<(), RecordingError>) {
        if let Err(error) = keep(&mut self.hindsight) {
            log::error!("{error}; the last minutes are kept again when the files take turns");
        }
    }

    pub(super) fn forget_service(&mut self, id: ServiceId) {
        self.hindsight.forget_service(id);
    }

    /// Puts what was told into the files.
    pub(super) fn commit(&mut self, now: Timestamp) {
        self.keep(|hindsight| hindsight.write(Recording::commit));
        if !self.is_saving() {
            self.keep(|hindsight| hindsight.take_turns(now));
        }
    }

    fn is_saving(&self) -> bool {
        let under_way = |saving: &JoinHandle<()>| !saving.is_finished();
        self.saving.as_ref().is_some_and(under_way)
    }

    fn save(&mut self, now: Timestamp, answer: Answer) {
        if self.is_saving() {
            return answer(Err("the last minutes are being saved already".into()));
        }
        let saving = match self.hindsight.save(now) {
            Ok(saving) => saving,
            Err(error) => return told(Err(error), answer),
        };
        let thread = thread::Builder::new()
            .name("hindsight".into())
            .spawn(move || told(saving.write(), answer));
        match thread {
            Ok(thread) => self.saving = Some(thread),
            Err(error) => log::error!("the last minutes are not saved: {error}"),
        }
    }

    /// Closes the files, behind a window that is being saved.
    pub(super) fn close(mut self) {
        if let Some(saving) = self.saving.take()
            && saving.join().is_err()
        {
            log::error!("the thread that saves the last minutes failed");
        }
        if let Err(error) = self.hindsight.close() {
            log::error!("{error}");
        }
    }
}

fn told(saved: Result<PathBuf, RecordingError>, answer: Answer) {
    match &saved {
        Ok(path) => log::info!("the last minutes are saved in {}", path.display()),
        Err(error) => log::error!("the last minutes are not saved: {error}"),
    }
    answer(saved.map_err(|error| error.to_string()));
}

impl Agent {
    /// Saves the last minutes, where they are kept. Does not wait for that: `answer` is told, by another
    /// thread.
    pub fn save_hindsight(&mut self, answer: Answer) {
        match &mut self.sinks.hindsight {
            Some(minutes) => minutes.save(Timestamp::now(), answer),
            None => {
                let why = "no minutes are kept; start the agent with --hindsight 10m";
                log::warn!("{why}");
                answer(Err(why.into()));
            }
        }
    }
}
