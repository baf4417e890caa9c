//! The thread of the slow calls: at most once a second it asks each board who holds a context, how
//! busy, and all that it shows beside its energy; it also looks for boards that came later.
//!
//! It has its own session of the driver and nothing waits for it: a call that hangs here leaves the
//! counters' thread alone, and shows as a source that grows old.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::events::Events;
use super::instances::Parts;
use super::monitor::Monitor;
use super::roster::Roster;
use super::sampling::find_device;
use super::support::{Figure, Support};
use super::{Board, library, processes};
use crate::clock::Timestamp;
use crate::ledger::{Event, MeterId, Shares};
use crate::meters::source::{Deaf, Feed, Health, Stop};
use crate::meters::{GpuProcesses, GpuUtilization, News};

const EVERY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How often boards that came later are looked for.
const SEEK_EVERY: Duration = Duration::from_secs(5);

/// The thread's body. `known` are the UUIDs of all boards that were found at the start, measured or
/// not.
pub(super) fn run(
    library: &OsStr,
    roster: &Roster,
    known: BTreeSet<String>,
    feed: &Feed,
    stop: &Stop,
) {
    let mut health = Health::new("nvml-telemetry");
    let mut kept = Kept {
        boards: Vec::new(),
        known,
    };
    let mut retry = EVERY;
    loop {
        match library::open(library) {
            Ok(nvml) => {
                let mut session = Session::new(&nvml, roster, &mut kept);
                match session.watch(&mut health, feed, stop) {
                    Ok(Ended::Lost { answered: true }) => retry = EVERY,
                    Ok(Ended::Lost { answered: false }) => {}
                    Ok(Ended::Stopped) | Err(Deaf) => return,
                }
            }
            Err(error) => health.down(error.to_string()),
        }
        retry = (retry * 2).min(LAST_RETRY);
        if feed.health(&mut health).is_err() || stop.wait_until(Timestamp::now().plus(retry)) {
            return;
        }
    }
}

/// What outlives a session.
struct Kept {
    /// In the roster's order.
    boards: Vec<(Monitor, Board, MeterId)>,
    /// Boards that need not be told any more.
    known: BTreeSet<String>,
}

enum Ended {
    Stopped,
    /// No board answers.
    Lost {
        answered: bool,
    },
}

/// Where a board is.
enum Place<'n> {
    Here(Device<'n>, Box<Parts<'n>>),
    /// Looked for again at a moment, and if it is not there, after as long again, and as long.
    Away(Timestamp, Duration),
}

/// One open session of the driver.
struct Session<'a, 'n> {
    nvml: &'n Nvml,
    roster: &'a Roster,
    kept: &'a mut Kept,
    /// In the order of the kept boards.
    places: Vec<Place<'n>>,
    /// `None` where the driver has no events.
    events: Option<Events<'n>>,
    seek: Timestamp,
    answered: bool,
}

impl<'a, 'n> Session<'a, 'n> {
    fn new(nvml: &'n Nvml, roster: &'a Roster, kept: &'a mut Kept) -> Self {
        Self {
            nvml,
            roster,
            kept,
            places: Vec::new(),
            events: Events::new(nvml).ok(),
            seek: Timestamp::now().plus(SEEK_EVERY),
            answered: false,
        }
    }

    fn watch(&mut self, health: &mut Health, feed: &Feed, stop: &Stop) -> Result<Ended, Deaf> {
        loop {
            let began = Timestamp::now();
            self.welcome(began);
            let mut failure = None;
            for index in 0..self.places.len() {
                if let Some(error) = self.visit(index, health, feed)? {
                    failure.get_or_insert(error);
                }
            }
            self.count_errors(feed)?;
            if began >= self.seek {
                self.seek = began.plus(SEEK_EVERY);
                self.seek_boards(feed)?;
            }
            health.is(failure);
            feed.health(health)?;
            let here = |place: &Place<'_>| matches!(place, Place::Here(..));
            if !self.places.is_empty() && !self.places.iter().any(here) {
                let answered = self.answered;
                return Ok(Ended::Lost { answered });
            }
            if stop.wait_until(began.plus(EVERY)) {
                return Ok(Ended::Stopped);
            }
        }
    }

    /// Takes in boards that are metered and not visited yet.
    fn welcome(&mut self, now: Timestamp) {
        for (board, meter) in self.roster.from(self.kept.boards.len()) {
            self.kept.known.insert(board.uuid.clone());
            let monitor = Monitor::new(&board.uuid);
            self.kept.boards.push((monitor, board, meter));
        }
        for _ in self.places.len()..self.kept.boards.len() {
            self.places.push(Place::Away(now, EVERY));
        }
    }

    /// Looks at one board; returns what is wrong with it.
    fn visit(
        &mut self,
        index: usize,
        health: &mut Health,
        feed: &Feed,
    ) -> Result<Option<String>, Deaf> {
        let now = Timestamp::now();
        let (Some(place), Some((monitor, board, meter))) =
            (self.places.get_mut(index), self.kept.boards.get_mut(index))
        else {
            return Ok(None);
        };
        if let Place::Away(next, wait) = place {
            let wait = *wait;
            let absent = Some(format!("{}: not there", board.uuid));
            if now < *next {
                return Ok(absent);
            }
            let Some(device) = find_device(self.nvml, &board.uuid) else {
                *place = Place::Away(now.plus(wait), (wait * 2).min(LAST_RETRY));
                return Ok(absent);
            };
            monitor.begin();
            if let Some(events) = &mut self.events {
                let registered = events.register(&device, &board.uuid);
                let answer = registered.as_ref().copied();
                monitor.record.note(Figure::CriticalErrors, answer, now);
            }
            *place = Place::Here(device, Box::default());
        }
        let Place::Here(device, parts) = place else {
            return Ok(None);
        };
        match look(device, parts, monitor, *meter, health) {
            Ok(told) => {
                self.answered = true;
                for news in told {
                    feed.news(news)?;
                }
                Ok(match monitor.record.support(Figure::Processes) {
                    Support::Failing(error) => Some(format!("{}: {error}", board.uuid)),
                    _ => None,
                })
            }
            Err(error) => {
                *place = Place::Away(now.plus(EVERY), EVERY);
                Ok(Some(format!("{}: {error}", board.uuid)))
            }
        }
    }

    fn count_errors(&mut self, feed: &Feed) -> Result<(), Deaf> {
        let Some(events) = &self.events else {
            return Ok(());
        };
        for (uuid, number) in events.take() {
            log::warn!("critical error (XID {number}) on {uuid}");
            let mut boards = self.kept.boards.iter_mut();
            if let Some((monitor, ..)) = boards.find(|(_, board, _)| board.uuid == uuid) {
                feed.news(News::CriticalErrors(monitor.count_xid(number)))?;
            }
        }
        Ok(())
    }

    /// Tells boards that nobody knows yet. One that cannot be read yet is tried again.
    fn seek_boards(&mut self, feed: &Feed) -> Result<(), Deaf> {
        let driver = self.nvml.sys_driver_version().ok();
        for index in 0..self.nvml.device_count().unwrap_or(0) {
            let Ok(device) = self.nvml.device_by_index(index) else {
                continue;
            };
            let Ok(uuid) = device.uuid() else {
                continue;
            };
            if self.kept.known.contains(&uuid) {
                continue;
            }
            match Board::probe(&device, driver.clone()) {
                Ok(board) => {
                    self.kept.known.insert(uuid);
                    feed.news(News::Board(Box::new(board)))?;
                }
                Err(error) => log::debug!("a new board, {uuid}, cannot be read: {error}"),
            }
        }
        Ok(())
    }
}

/// Asks a board for everything, processes first.
fn look<'n>(
    device: &Device<'n>,
    parts: &mut Parts<'n>,
    monitor: &mut Monitor,
    meter: MeterId,
    health: &mut Health,
) -> Result<Vec<News>, NvmlError> {
    let mut told = Vec::new();
    let mut used = Vec::new();
    if let Some(processes) = processes::compute(device, &mut monitor.record, health)? {
        let at = Timestamp::now();
        used.extend(processes.iter().filter_map(|process| process.instance));
        told.push(News::Processes(GpuProcesses {
            meter,
            processes,
            at,
        }));
    }
    let Monitor {
        last_seen, record, ..
    } = monitor;
    let busy = processes::utilization(device, last_seen, record, health)?;
    if let Some(processes) = busy.filter(|busy| !busy.is_empty()) {
        let at = Timestamp::now();
        told.push(News::Utilization(GpuUtilization {
            meter,
            processes,
            at,
        }));
    }
    let mut telemetry = monitor.look(device, health)?;
    let mig = telemetry.modes.mig;
    let seen = parts.look(device, mig, &used, &mut monitor.record, health)?;
    if let Some((at, busy)) = seen.busy {
        told.push(News::Event(Event::Shares(Shares { meter, at, busy })));
    }
    telemetry.activity = seen.activity;
    telemetry.instances = seen.instances;
    told.push(News::Telemetry(Box::new(telemetry)));
    Ok(told)
}
