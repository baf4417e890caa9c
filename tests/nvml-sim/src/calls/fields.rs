//! Batched field values.

use std::ffi::{c_int, c_longlong};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::this_function;
use crate::abi::{
    DeviceHandle, FIELD_ENERGY, FIELD_NVLINK_RX, FIELD_NVLINK_TX, FIELD_PCIE_RX, FIELD_PCIE_TX,
    FIELD_POWER_AVERAGE, FIELD_POWER_CURRENT_LIMIT, FIELD_POWER_DEFAULT_LIMIT, FIELD_POWER_INSTANT,
    FIELD_POWER_MAX_LIMIT, FIELD_POWER_MIN_LIMIT, FIELD_POWER_REQUESTED_LIMIT, FIELD_TOTAL_ENERGY,
    FieldValue, INVALID_ARGUMENT, NOT_SUPPORTED, Return, SCOPE_ALL_LINKS, SCOPE_GPU, SCOPE_MODULE,
    SUCCESS, TYPE_UNSIGNED_INT, TYPE_UNSIGNED_LONG_LONG, Value,
};
use crate::faults::Feature;
use crate::library::{Failure, Gpu, device_call};

/// # Safety
/// As in `nvml.h`: `values` holds `count` entries whose `fieldId` and `scopeId` are set.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: DeviceHandle,
    count: c_int,
    values: *mut FieldValue,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        gpu.needs(Feature::FieldValues)?;
        let count = usize::try_from(count).map_err(|_| Failure(INVALID_ARGUMENT))?;
        if count == 0 || values.is_null() {
            return Err(Failure(INVALID_ARGUMENT));
        }
        // SAFETY: not null, and by the caller's promise `count` entries long and ours alone for
        // the time of the call; every member is a plain number.
        for value in unsafe { std::slice::from_raw_parts_mut(values, count) } {
            fill(gpu, value);
        }
        Ok(())
    })
}

enum Reading {
    Milliwatts(u32),
    /// Anything in the wide type: millijoules, KiB, bytes.
    Wide(u64),
}

fn fill(gpu: &Gpu<'_>, value: &mut FieldValue) {
    let begun = Instant::now();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let reading = read(gpu, value.field_id, value.scope_id);
    value.timestamp = now.as_micros() as c_longlong;
    value.latency_us = begun.elapsed().as_micros() as c_longlong;
    value.result = SUCCESS;
    match reading {
        Ok(Reading::Milliwatts(power)) => {
            value.value_type = TYPE_UNSIGNED_INT;
            value.value = Value {
                unsigned_long_long: 0,
            };
            value.value.unsigned_int = power;
        }
        Ok(Reading::Wide(amount)) => {
            value.value_type = TYPE_UNSIGNED_LONG_LONG;
            value.value = Value {
                unsigned_long_long: amount,
            };
        }
        Err(Failure(code)) => value.result = code,
    }
}

fn read(gpu: &Gpu<'_>, field: u32, scope: u32) -> Result<Reading, Failure> {
    gpu.machine
        .interfere(&format!("field:{field}"), Some(gpu.index))?;
    let age = gpu.machine.age_s(gpu.now_ns);
    match (field, scope) {
        (FIELD_NVLINK_TX | FIELD_NVLINK_RX, SCOPE_ALL_LINKS) => {
            let rate = gpu.device.nvlink_bytes_per_s;
            let rate = rate.ok_or(Failure(NOT_SUPPORTED))?;
            return Ok(Reading::Wide((rate * age / 1024.0) as u64));
        }
        (FIELD_PCIE_TX | FIELD_PCIE_RX, SCOPE_GPU) => {
            return Ok(Reading::Wide((gpu.device.pcie_bytes_per_s * age) as u64));
        }
        (FIELD_POWER_INSTANT, SCOPE_MODULE) => {
            let watts = gpu.device.module_watts.ok_or(Failure(NOT_SUPPORTED))?;
            return Ok(Reading::Milliwatts((watts * 1e3) as u32));
        }
        (_, SCOPE_GPU) => {}
        _ => return Err(Failure(NOT_SUPPORTED)),
    }
    let milliwatts = match field {
        FIELD_TOTAL_ENERGY | FIELD_ENERGY => return gpu.energy_mj().map(Reading::Wide),
        FIELD_POWER_AVERAGE => {
            gpu.needs(Feature::PowerAverage)?;
            gpu.average_power_mw()
        }
        FIELD_POWER_INSTANT => gpu.instant_power_mw(),
        FIELD_POWER_MIN_LIMIT => gpu.limit_mw(|d| d.min_limit_watts),
        FIELD_POWER_MAX_LIMIT => gpu.limit_mw(|d| d.max_limit_watts),
        FIELD_POWER_DEFAULT_LIMIT | FIELD_POWER_CURRENT_LIMIT | FIELD_POWER_REQUESTED_LIMIT => {
            gpu.limit_mw(|d| d.limit_watts)
        }
        _ => Err(Failure(NOT_SUPPORTED)),
    };
    milliwatts.map(Reading::Milliwatts)
}
