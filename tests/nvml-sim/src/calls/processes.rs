//! Processes: who holds a context, and who used the device how much.

use std::ffi::{c_uint, c_ulonglong};
use std::time::{Duration, SystemTime};

use gpu_state::Process;

use super::this_function;
use crate::abi::{
    DeviceHandle, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NO_INSTANCE, NOT_FOUND, NOT_SUPPORTED,
    ProcessInfo, ProcessUtilization, Return,
};
use crate::faults::Feature;
use crate::library::{Failure, device_call};

/// # Safety
/// As in `nvml.h`: `count` is valid for reading and writing, `infos` is null or has room for as
/// many entries as `count` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: DeviceHandle,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        gpu.needs(Feature::Processes)?;
        let processes = gpu.processes();
        let infos_of = |(instance, process): (Option<u32>, Process)| ProcessInfo {
            pid: process.pid,
            used_gpu_memory: process.memory_bytes,
            gpu_instance_id: instance.unwrap_or(NO_INSTANCE),
            compute_instance_id: instance.map_or(NO_INSTANCE, |_| 0),
        };
        // SAFETY: the caller's promise.
        unsafe { give_list(count, infos, processes.into_iter().map(infos_of).collect()) }
    })
}

/// # Safety
/// As in `nvml.h`: `count` is valid for reading and writing, `infos` is null or has room for as
/// many entries as `count` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: DeviceHandle,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    device_call(this_function!(), device, |_| {
        // No MPS server runs.
        // SAFETY: the caller's promise.
        unsafe { give_list(count, infos, Vec::new()) }
    })
}

/// # Safety
/// As in `nvml.h`: `count` is valid for reading and writing, `samples` is null or has room for as
/// many entries as `count` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: DeviceHandle,
    samples: *mut ProcessUtilization,
    count: *mut c_uint,
    last_seen: c_ulonglong,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        if gpu.is_mig() {
            return Err(Failure(NOT_SUPPORTED));
        }
        // The driver takes a sample a second.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let taken = Duration::from_secs(now.as_secs()).as_micros() as c_ulonglong;
        let processes = gpu.processes();
        if taken <= last_seen || processes.is_empty() {
            return Err(Failure(NOT_FOUND));
        }
        let busy = gpu.utilization()? / processes.len() as c_uint;
        let sample_of = |(_, process): (_, Process)| ProcessUtilization {
            pid: process.pid,
            timestamp: taken,
            sm: busy,
            memory: busy / 2,
            encoder: 0,
            decoder: 0,
        };
        // SAFETY: the caller's promise.
        unsafe {
            give_list(
                count,
                samples,
                processes.into_iter().map(sample_of).collect(),
            )
        }
    })
}

/// Writes `list` where the caller wants it, or says how much room it needs.
///
/// # Safety
/// `count` is null or valid for reading and writing, `to` is null or has room for as many entries
/// as `count` says.
unsafe fn give_list<T>(count: *mut c_uint, to: *mut T, list: Vec<T>) -> Result<(), Failure> {
    if count.is_null() {
        return Err(Failure(INVALID_ARGUMENT));
    }
    // SAFETY: not null, and valid by this function's contract.
    let room = unsafe { count.replace(list.len() as c_uint) } as usize;
    if room < list.len() {
        return Err(Failure(INSUFFICIENT_SIZE));
    }
    if to.is_null() && !list.is_empty() {
        return Err(Failure(INVALID_ARGUMENT));
    }
    for (slot, entry) in list.into_iter().enumerate() {
        // SAFETY: `slot` is below the list's length, which is at most `room`, which is how many
        // entries `to` holds by this function's contract.
        unsafe { to.add(slot).write(entry) };
    }
    Ok(())
}
