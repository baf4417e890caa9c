//! NVIDIA GPUs through NVML, the driver's management library.
//!
//! The energy counter (millijoules since the driver was loaded, Volta and later) is what is
//! booked; a board without one is integrated from its power readings and labelled so. Two
//! threads: one follows the counters, one asks at most once a second for everything else, since
//! such calls take milliseconds. Nothing else may call NVML: a call can hang with the driver.
//!
//! Source: NVIDIA's `nvml.h` (API 12 and 13). Fields 83 (`TOTAL_ENERGY_CONSUMPTION`, mJ) and 186
//! (`POWER_INSTANT`, mW) are never renumbered between drivers, unlike 251 and later.

mod board;
mod events;
mod examine;
mod gpm;
mod instances;
mod integral;
mod library;
mod monitor;
mod processes;
mod raw;
mod roster;
mod sampling;
mod support;
mod telemetry;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nvml_wrapper::Nvml;

pub use board::Board;
pub use examine::{Examined, examine};
pub use library::{DEFAULT_LIBRARY, Unavailable};
pub(super) use roster::Roster;
pub use support::{Figure, Record, Support};

use super::source::{Feed, Running};
use crate::ledger::{Component, Meter, MeterId, Source};

/// Without persistence mode the driver needs 1–3 s a GPU to start.
const OPENING: Duration = Duration::from_secs(20);

/// How often a board's counter changes, until it is learned.
const NOMINAL_TICK: Duration = Duration::from_millis(100);
/// Nobody looked for longer than this: what the counter gained is `gap`.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// NVIDIA states ±5 %; measured between models up to ±11 % (arXiv 2312.02741).
const GAIN_ERROR: f64 = 0.05;

/// An open driver and the boards it has.
pub struct Node {
    nvml: Nvml,
    library: OsString,
    boards: Vec<Board>,
    /// Boards that could not be read at all, and why.
    unreadable: Vec<String>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Node")
            .field("boards", &self.boards)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Opens the driver through `library` (a path, or a name such as `libnvidia-ml.so.1`).
    ///
    /// # Errors
    /// [`Unavailable`] with the reason, also when the driver does not answer.
    pub fn open(library: &OsStr) -> Result<Self, Unavailable> {
        let (sender, receiver) = mpsc::channel();
        let library = library.to_owned();
        // On a thread of its own, because a broken driver can hang here for ever.
        let opening = thread::Builder::new()
            .name("nvml-open".into())
            .spawn(move || {
                // The receiver is gone only after a time-out; then nobody wants the answer.
                let _ = sender.send(Self::open_here(library));
            });
        if let Err(error) = opening {
            log::warn!("cannot start a thread: {error}");
        }
        receiver
            .recv_timeout(OPENING)
            .unwrap_or(Err(Unavailable::Hung(OPENING.as_secs())))
    }

    fn open_here(library: OsString) -> Result<Self, Unavailable> {
        let nvml = library::open(&library)?;
        let driver = nvml.sys_driver_version().ok();
        let (mut boards, mut unreadable) = (Vec::new(), Vec::new());
        for index in 0..nvml.device_count()? {
            let probed = nvml
                .device_by_index(index)
                .and_then(|device| Board::probe(&device, driver.clone()));
            match probed {
                Ok(board) => boards.push(board),
                Err(error) => unreadable.push(format!("GPU {index}: {error}")),
            }
        }
        if boards.is_empty() && unreadable.is_empty() {
            return Err(Unavailable::NoDevice);
        }
        Ok(Self {
            nvml,
            library,
            boards,
            unreadable,
        })
    }

    /// The boards, in the driver's order.
    pub fn boards(&self) -> &[Board] {
        &self.boards
    }

    /// Boards that could not be read at all, and why.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    /// The meters of the boards that can be measured.
    pub fn meters(&self) -> Vec<Meter> {
        self.boards.iter().filter_map(Board::meter).collect()
    }

    /// Starts both threads. `meters` are the ids of [`Self::meters`], in its order.
    pub(super) fn start(
        self,
        meters: &[MeterId],
        running: &mut Running,
        feed: Feed,
    ) -> std::io::Result<()> {
        let Self {
            nvml,
            library,
            boards,
            ..
        } = self;
        let known: BTreeSet<String> = boards.iter().map(|board| board.uuid.clone()).collect();
        let measured = boards
            .into_iter()
            .filter(|board| board.meter().is_some())
            .zip(meters.iter().copied())
            .collect();
        let roster = Roster::new(measured);
        let (boards, name, news) = (roster.clone(), library.clone(), feed.clone());
        running.spawn("nvml-telemetry", move |stop| {
            telemetry::run(&name, &boards, known, &news, &stop)
        })?;
        let boards = roster.clone();
        running.spawn("nvml", move |stop| {
            sampling::run(nvml, &library, &boards, &feed, &stop)
        })?;
        running.meter_later_boards(roster);
        Ok(())
    }
}

impl Board {
    /// The board as the ledger knows it; `None` if it shows neither energy nor power.
    pub fn meter(&self) -> Option<Meter> {
        let source = if self.has_counter() {
            Source::Counter
        } else if self.has_power() {
            Source::Integrated
        } else {
            return None;
        };
        Some(Meter {
            component: Component::Gpu,
            device: self.uuid.clone(),
            source,
            limit: self.max_limit.or(self.enforced_limit),
            tick: NOMINAL_TICK.as_nanos() as u64,
            stale_after: STALE_AFTER.as_nanos() as u64,
            gain_error_ratio: GAIN_ERROR,
            idle: None,
        })
    }
}
