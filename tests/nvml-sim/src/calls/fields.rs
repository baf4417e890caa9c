//! Batched field values.

use std::ffi::{c_int, c_longlong};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::abi::{
    DeviceHandle, FIELD_ENERGY, FIELD_POWER_AVERAGE, FIELD_POWER_CURRENT_LIMIT,
    FIELD_POWER_DEFAULT_LIMIT, FIELD_POWER_INSTANT, FIELD_POWER_MAX_LIMIT, FIELD_POWER_MIN_LIMIT,
    FIELD_POWER_REQUESTED_LIMIT, FIELD_TOTAL_ENERGY, FieldValue, INVALID_ARGUMENT, NOT_SUPPORTED,
    Return, SCOPE_GPU, SUCCESS, TYPE_UNSIGNED_INT, TYPE_UNSIGNED_LONG_LONG, Value,
};
use crate::library::{Failure, Gpu, device_call};
use crate::scenario::Feature;

/// # Safety
/// As in `nvml.h`: `values` holds `count` entries whose `fieldId` and `scopeId` are set.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: DeviceHandle,
    count: c_int,
    values: *mut FieldValue,
) -> Return {
    device_call(device, |gpu| {
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
    Millijoules(u64),
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
        Ok(Reading::Millijoules(energy)) => {
            value.value_type = TYPE_UNSIGNED_LONG_LONG;
            value.value = Value {
                unsigned_long_long: energy,
            };
        }
        Err(Failure(code)) => value.result = code,
    }
}

fn read(gpu: &Gpu<'_>, field: u32, scope: u32) -> Result<Reading, Failure> {
    if scope != SCOPE_GPU {
        return Err(Failure(NOT_SUPPORTED));
    }
    let milliwatts = match field {
        FIELD_TOTAL_ENERGY | FIELD_ENERGY => return gpu.energy_mj().map(Reading::Millijoules),
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
