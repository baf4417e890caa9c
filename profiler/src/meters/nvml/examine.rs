//! What each board supports, asked once: for `doctor`.
//!
//! Not part of an agent's start, which waits for nothing but energy: each of these calls can hang.

use std::ffi::{OsStr, OsString};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

use super::events::Events;
use super::instances::Parts;
use super::monitor::Monitor;
use super::support::{Figure, Record};
use super::{Board, Unavailable, library, processes};
use crate::clock::Timestamp;
use crate::meters::source::Health;

/// Two dozen calls a board, of milliseconds each.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found out about the boards.
#[derive(Debug)]
pub struct Examined {
    /// By UUID: the table, or why the board does not answer.
    pub boards: Vec<(String, Result<Record, String>)>,
    /// True if the driver had not answered everything in time.
    pub hangs: bool,
}

/// Asks every board for everything.
pub fn examine(library: &OsStr) -> Examined {
    let (sender, receiver) = mpsc::channel();
    let library = library.to_owned();
    // On a thread of its own, which is left behind if it hangs.
    let asking = thread::Builder::new()
        .name("nvml-examine".into())
        .spawn(move || {
            // Why there is no driver is told by who looks for boards.
            let _ = ask(library, &sender);
        });
    if let Err(error) = asking {
        log::warn!("cannot start a thread: {error}");
    }
    let until = Instant::now() + PATIENCE;
    let mut boards = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(board) => boards.push(board),
            Err(error) => {
                let hangs = error == mpsc::RecvTimeoutError::Timeout;
                return Examined { boards, hangs };
            }
        }
    }
}

type Answer = (String, Result<Record, String>);

fn ask(library: OsString, sender: &Sender<Answer>) -> Result<(), Unavailable> {
    let nvml = library::open(&library)?;
    let mut events = Events::new(&nvml);
    for index in 0..nvml.device_count()? {
        // Boards that cannot even say who they are, are told by who looks for boards.
        let Ok(device) = nvml.device_by_index(index) else {
            continue;
        };
        let Ok(uuid) = device.uuid() else {
            continue;
        };
        let mut monitor = Monitor::new(&uuid);
        let asked = everything(&device, &mut monitor);
        let registered = match &mut events {
            Ok(events) => events.register(&device, &uuid),
            Err(_) => Err(NvmlError::NotSupported),
        };
        let answer = registered.as_ref().copied();
        let now = Timestamp::now();
        monitor.record.note(Figure::CriticalErrors, answer, now);
        let told = asked
            .map(|()| monitor.record)
            .map_err(|error| error.to_string());
        if sender.send((uuid, told)).is_err() {
            break;
        }
    }
    Ok(())
}

fn everything(device: &Device<'_>, monitor: &mut Monitor) -> Result<(), NvmlError> {
    // Nobody reads it.
    let mut health = Health::new("nvml-examine");
    let board = Board::probe(device, None)?;
    for (figure, shown) in [
        (Figure::Energy, board.has_counter()),
        (Figure::Power, board.has_power()),
    ] {
        let answer = if shown {
            Ok(())
        } else {
            Err(&NvmlError::NotSupported)
        };
        monitor.record.note(figure, answer, Timestamp::now());
    }
    processes::compute(device, &mut monitor.record, &mut health)?;
    processes::utilization(device, &mut 0, &mut monitor.record, &mut health)?;
    let mig = monitor.look(device, &mut health)?.modes.mig;
    Parts::default().look(device, mig, &[], &mut monitor.record, &mut health)?;
    Ok(())
}
