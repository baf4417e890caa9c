//! What a monitor shows beside energy: clocks, temperature, memory, traffic, utilisation, modes.

use std::ffi::{c_uint, c_ulonglong};
use std::thread::sleep;
use std::time::Duration;

use super::{give, this_function};
use crate::abi::{DeviceHandle, INVALID_ARGUMENT, Memory, NOT_SUPPORTED, Return, Utilization};
use crate::library::{Failure, Gpu, device_call};

/// # Safety
/// As in `nvml.h`: `clock` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: DeviceHandle,
    kind: c_uint,
    clock: *mut c_uint,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        let megahertz = match kind {
            0 | 1 | 3 => gpu.device.sm_clock_mhz,
            2 => gpu.device.memory_clock_mhz,
            _ => return Err(Failure(INVALID_ARGUMENT)),
        };
        // SAFETY: the caller's promise.
        unsafe { give(clock, megahertz) }
    })
}

/// # Safety
/// As in `nvml.h`: `temperature` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: DeviceHandle,
    _sensor: c_uint,
    temperature: *mut c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(temperature, gpu.device.temperature_c)
    })
}

/// # Safety
/// As in `nvml.h`: `reasons` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksEventReasons(
    device: DeviceHandle,
    reasons: *mut c_ulonglong,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(reasons, gpu.throttle_reasons())
    })
}

/// The older name of the one above.
///
/// # Safety
/// As in `nvml.h`: `reasons` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: DeviceHandle,
    reasons: *mut c_ulonglong,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(reasons, gpu.throttle_reasons())
    })
}

/// # Safety
/// As in `nvml.h`: `throughput` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPcieThroughput(
    device: DeviceHandle,
    _counter: c_uint,
    throughput: *mut c_uint,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        // The driver counts for as long before it answers.
        sleep(Duration::from_millis(20));
        // SAFETY: the caller's promise.
        unsafe { give(throughput, (gpu.device.pcie_bytes_per_s / 1e3) as c_uint) }
    })
}

/// # Safety
/// As in `nvml.h`: `memory` is valid for reading and writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: DeviceHandle,
    memory: *mut Memory,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        let processes = gpu.processes();
        let held: u64 = processes
            .iter()
            .map(|(_, process)| process.memory_bytes)
            .sum();
        let total = gpu.device.memory_bytes;
        let reserved = total / 100;
        let used = held.min(total - reserved);
        let version = size_of::<Memory>() as c_uint | (2 << 24);
        let info = Memory {
            version,
            total,
            reserved,
            free: total - reserved - used,
            used,
        };
        // SAFETY: the caller's promise.
        unsafe { give(memory, info) }
    })
}

/// # Safety
/// As in `nvml.h`: `utilization` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: DeviceHandle,
    utilization: *mut Utilization,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        if gpu.is_mig() {
            return Err(Failure(NOT_SUPPORTED));
        }
        let busy = gpu.utilization()?;
        let rates = Utilization {
            gpu: busy,
            memory: busy / 2,
        };
        // SAFETY: the caller's promise.
        unsafe { give(utilization, rates) }
    })
}

/// # Safety
/// As in `nvml.h`: both pointers are valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: DeviceHandle,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        let mode = c_uint::from(gpu.is_mig());
        // SAFETY: the caller's promise.
        unsafe {
            give(current, mode)?;
            give(pending, mode)
        }
    })
}

/// # Safety
/// As in `nvml.h`: `mode` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetVirtualizationMode(
    device: DeviceHandle,
    mode: *mut c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(mode, gpu.device.virtualization)
    })
}

/// # Safety
/// As in `nvml.h`: `mode` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeMode(device: DeviceHandle, mode: *mut c_uint) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(mode, gpu.device.compute_mode)
    })
}

impl Gpu<'_> {
    /// What holds the clocks down; that nothing runs if nothing does.
    fn throttle_reasons(&self) -> c_ulonglong {
        let age = self.machine.age_s(self.now_ns);
        let throttles = self.device.throttles.iter();
        let present = throttles
            .filter(|throttle| age >= throttle.from_s)
            .filter(|throttle| throttle.until_s.is_none_or(|until| age < until));
        let reasons = present.fold(0, |bits, throttle| bits | throttle.reasons);
        let idles = self.utilization().is_ok_and(|busy| busy == 0);
        if reasons == 0 && idles { 1 } else { reasons }
    }
}
