//! The thread that asks which processes hold a context on which board, once a second.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use super::sampling::find_device;
use super::{Board, is_absent, library};
use crate::clock::Timestamp;
use crate::ledger::MeterId;
use crate::meters::source::{Deaf, Feed, Health, Stop};
use crate::meters::{GpuProcesses, News};

const EVERY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The thread's body. It has its own session of the driver, so that a slow list never holds up
/// the counters.
pub(super) fn run(library: &OsStr, boards: &[(Board, MeterId)], feed: &Feed, stop: &Stop) {
    let mut health = Health::new("nvml-processes");
    let mut retry = EVERY;
    loop {
        match library::open(library) {
            Ok(nvml) => match watch(&nvml, boards, &mut health, feed, stop) {
                Ok(Ended::Lost { answered: true }) => retry = EVERY,
                Ok(Ended::Lost { answered: false }) => {}
                Ok(Ended::Stopped | Ended::Absent) | Err(Deaf) => return,
            },
            Err(error) => health.down(error.to_string()),
        }
        retry = (retry * 2).min(LAST_RETRY);
        if feed.health(&mut health).is_err() || stop.wait_until(Timestamp::now().plus(retry)) {
            return;
        }
    }
}

enum Ended {
    Stopped,
    /// No board can list its processes, for good.
    Absent,
    Lost {
        answered: bool,
    },
}

fn watch(
    nvml: &Nvml,
    boards: &[(Board, MeterId)],
    health: &mut Health,
    feed: &Feed,
    stop: &Stop,
) -> Result<Ended, Deaf> {
    let mut watched: Vec<(Device<'_>, MeterId)> = boards
        .iter()
        .filter_map(|(board, meter)| Some((find_device(nvml, &board.uuid)?, *meter)))
        .collect();
    let mut answered = false;
    loop {
        let began = Timestamp::now();
        let (mut absent, mut failures) = (Vec::new(), Vec::new());
        for (device, meter) in &watched {
            let start = Timestamp::now();
            let listed = compute_pids(device);
            let end = Timestamp::now();
            match listed {
                Ok(pids) => {
                    answered = true;
                    health.called(start, end, true);
                    feed.news(News::Processes(GpuProcesses {
                        meter: *meter,
                        pids,
                        at: end,
                    }))?;
                }
                Err(error) if is_absent(&error) => absent.push(*meter),
                Err(error) => {
                    health.called(start, end, false);
                    failures.push(error.to_string());
                }
            }
        }
        watched.retain(|(_, meter)| !absent.contains(meter));
        let failed = failures.len();
        health.is(failures.pop());
        feed.health(health)?;
        if watched.is_empty() {
            return Ok(if absent.is_empty() {
                Ended::Lost { answered }
            } else {
                Ended::Absent
            });
        }
        if failed == watched.len() {
            return Ok(Ended::Lost { answered });
        }
        if stop.wait_until(began.plus(EVERY)) {
            return Ok(Ended::Stopped);
        }
    }
}

/// All processes with a compute context, clients of an MPS server included.
fn compute_pids(device: &Device<'_>) -> Result<Vec<u32>, NvmlError> {
    let listed = match device.running_compute_processes() {
        // A process that came up between the two halves of the call.
        Err(NvmlError::InsufficientSize(_)) => device.running_compute_processes()?,
        other => other?,
    };
    // Only drivers with MPS have the second list.
    let clients: Vec<ProcessInfo> = device.mps_running_compute_processes().unwrap_or_default();
    let pids: BTreeSet<u32> = listed
        .iter()
        .chain(&clients)
        .map(|process| process.pid)
        .collect();
    Ok(pids.into_iter().collect())
}
