//! Energy, power and limits, one call each.

use std::ffi::{c_uint, c_ulonglong};

use super::{give, this_function};
use crate::abi::{DeviceHandle, Return};
use crate::faults::Feature;
use crate::library::device_call;

/// # Safety
/// As in `nvml.h`: `energy` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(
    device: DeviceHandle,
    energy: *mut c_ulonglong,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(energy, gpu.energy_mj()?)
    })
}

/// # Safety
/// As in `nvml.h`: `power` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: DeviceHandle, power: *mut c_uint) -> Return {
    device_call(this_function!(), device, |gpu| {
        gpu.needs(Feature::Power)?;
        // SAFETY: the caller's promise.
        unsafe { give(power, gpu.average_power_mw()?) }
    })
}

/// # Safety
/// As in `nvml.h`: `limit` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(
    device: DeviceHandle,
    limit: *mut c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(limit, gpu.limit_mw(|d| d.limit_watts)?)
    })
}

/// # Safety
/// As in `nvml.h`: `limit` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerManagementLimit(
    device: DeviceHandle,
    limit: *mut c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(limit, gpu.limit_mw(|d| d.limit_watts)?)
    })
}

/// # Safety
/// As in `nvml.h`: `limit` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerManagementDefaultLimit(
    device: DeviceHandle,
    limit: *mut c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(limit, gpu.limit_mw(|d| d.limit_watts)?)
    })
}

/// # Safety
/// As in `nvml.h`: both pointers are valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerManagementLimitConstraints(
    device: DeviceHandle,
    lowest: *mut c_uint,
    highest: *mut c_uint,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        let (low, high) = (
            gpu.limit_mw(|d| d.min_limit_watts)?,
            gpu.limit_mw(|d| d.max_limit_watts)?,
        );
        // SAFETY: the caller's promise.
        unsafe {
            give(lowest, low)?;
            give(highest, high)
        }
    })
}
