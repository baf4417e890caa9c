//! Who holds a context on a board, and how busy each process keeps it.
//!
//! Under MPS the clients' work goes through a server's context. The server works for nobody but its
//! clients, who are listed themselves: it is none of those who hold the board, and time that the
//! driver puts on it says nothing about whose it was.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

use super::support::{Figure, Record};
use crate::meters::source::Health;
use crate::meters::{GpuProcess, ProcessUtilization};
use crate::units::Ratio;

/// All processes with a compute context, clients of an MPS server included; `None` where the board
/// does not list them.
pub(super) fn compute(
    device: &Device<'_>,
    record: &mut Record,
    health: &mut Health,
) -> Result<Option<Vec<GpuProcess>>, NvmlError> {
    let listed = record.ask(Figure::Processes, health, || {
        match device.running_compute_processes() {
            // A process that came up between the two halves of the call.
            Err(NvmlError::InsufficientSize(_)) => device.running_compute_processes(),
            other => other,
        }
    })?;
    let Some(listed) = listed else {
        return Ok(None);
    };
    // Only drivers with MPS have the second list.
    let clients = record
        .ask(Figure::MpsProcesses, health, || {
            device.mps_running_compute_processes()
        })?
        .unwrap_or_default();
    let all: BTreeSet<GpuProcess> = listed
        .iter()
        .chain(&clients)
        .filter(|process| !is_mps_server(process.pid))
        .map(|process| GpuProcess {
            pid: process.pid,
            instance: process.gpu_instance_id,
        })
        .collect();
    Ok(Some(all.into_iter().collect()))
}

/// Whether a process is MPS's server (or its control daemon, which holds no context). The kernel keeps
/// 15 bytes of a name.
fn is_mps_server(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim_end() == "nvidia-cuda-mps")
}

/// How busy each process kept the board since the samples that were seen last; `last_seen` is
/// carried on, for the driver repeats old samples to who does not say what it has seen.
pub(super) fn utilization(
    device: &Device<'_>,
    last_seen: &mut u64,
    record: &mut Record,
    health: &mut Health,
) -> Result<Option<Vec<ProcessUtilization>>, NvmlError> {
    let samples = record.ask(Figure::ProcessUtilization, health, || {
        match device.process_utilization_stats(*last_seen) {
            // No sample since then.
            Err(NvmlError::NotFound) => Ok(Vec::new()),
            other => other,
        }
    })?;
    let Some(samples) = samples else {
        return Ok(None);
    };
    let mut latest: BTreeMap<u32, (u64, ProcessUtilization)> = BTreeMap::new();
    for sample in samples {
        // Above 100 % the driver shows what no longer exists.
        let impossible = sample.sm_util > 100 || sample.mem_util > 100;
        if sample.timestamp <= *last_seen || impossible || is_mps_server(sample.pid) {
            continue;
        }
        let seen = ProcessUtilization {
            pid: sample.pid,
            sm: Ratio::from_percent(sample.sm_util),
            memory: Ratio::from_percent(sample.mem_util),
        };
        let known = latest.entry(sample.pid).or_insert((sample.timestamp, seen));
        if known.0 < sample.timestamp {
            *known = (sample.timestamp, seen);
        }
    }
    let newest = latest.values().map(|(taken, _)| *taken).max();
    *last_seen = newest.unwrap_or(*last_seen);
    Ok(Some(latest.into_values().map(|(_, seen)| seen).collect()))
}
