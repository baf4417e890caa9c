//! Calls that nvml-wrapper does not wrap, through its own handles: field values with a scope, and
//! clock event reasons under their present name.
//!
//! Source: NVIDIA's `nvml.h`, `nvmlFieldValue_t` and `nvmlDeviceGetCurrentClocksEventReasons`.

use std::ffi::{c_int, c_ulonglong};
use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{nvmlFieldValue_t, nvmlValue_t};

use super::support::is_absent;

/// A field, and of which part of the board: links are numbered, power has its own scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) id: u32,
    pub(super) scope: u32,
}

/// What each field showed, by position, and how long the slowest took.
pub(super) type Fields = (Vec<Result<u64, NvmlError>>, Option<Duration>);

/// Field values by position, in one call; and the longest that the driver needed for one of them, as
/// it says, where it says so.
///
/// Only for ids below 251: later ones are numbered otherwise by some drivers.
///
/// # Errors
/// The call as a whole fails.
pub(super) fn field_values(device: &Device<'_>, fields: &[Field]) -> Result<Fields, NvmlError> {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
    let mut values: Vec<nvmlFieldValue_t> = fields
        .iter()
        .map(|field| nvmlFieldValue_t {
            fieldId: field.id,
            scopeId: field.scope,
            timestamp: 0,
            latencyUsec: 0,
            valueType: 0,
            nvmlReturn: 0,
            value: nvmlValue_t { ullVal: 0 },
        })
        .collect();
    // SAFETY: the handle is of an open session, which `device` borrows; `values` holds as many
    // entries as is said, with id and scope set, and nobody else uses it during the call.
    nvml_try(unsafe { symbol(device.handle(), values.len() as c_int, values.as_mut_ptr()) })?;
    let told = values
        .iter()
        .filter(|field| nvml_try(field.nvmlReturn).is_ok());
    let latency = told.map(|field| field.latencyUsec).max();
    let latency = latency.and_then(|micros| u64::try_from(micros).ok());
    let answers = values.iter().map(value).collect();
    Ok((answers, latency.map(Duration::from_micros)))
}

fn value(field: &nvmlFieldValue_t) -> Result<u64, NvmlError> {
    nvml_try(field.nvmlReturn)?;
    let nvmlFieldValue_t { value, .. } = field;
    // SAFETY: the driver says which member it has set, and every member is a plain number that
    // lies inside the union.
    let number = unsafe {
        match field.valueType {
            0 => (value.dVal >= 0.0).then_some(value.dVal as u64),
            1 => Some(u64::from(value.uiVal)),
            2 => Some(value.ulVal),
            3 => Some(value.ullVal),
            4 => u64::try_from(value.sllVal).ok(),
            5 => u64::try_from(value.siVal).ok(),
            6 => Some(u64::from(value.usVal)),
            _ => None,
        }
    };
    number.ok_or(NvmlError::UnexpectedVariant(field.valueType))
}

/// What holds the clocks down, as NVML's bits.
///
/// # Errors
/// What the driver says under the name that it has.
pub(super) fn clock_event_reasons(device: &Device<'_>) -> Result<u64, NvmlError> {
    let present = &device.nvml().lib().nvmlDeviceGetCurrentClocksEventReasons;
    let mut reasons: c_ulonglong = 0;
    let told = nvml_sym(present.as_ref()).and_then(|symbol| {
        // SAFETY: the handle is of an open session, which `device` borrows, and `reasons` is ours.
        nvml_try(unsafe { symbol(device.handle(), &raw mut reasons) })
    });
    match told {
        Ok(()) => Ok(reasons),
        // Drivers before 535 know it as throttle reasons.
        Err(error) if is_absent(&error) => Ok(device.current_throttle_reasons()?.bits()),
        Err(error) => Err(error),
    }
}
