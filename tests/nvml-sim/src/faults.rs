//! What goes wrong, as a scenario tells it.
//!
//! [`Faults`] are the sensors' and the bus's; an [`Injected`] fault is one function's or one field's:
//! it answers something else, late, or never.

use serde::Deserialize;

use crate::abi::{
    DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST, INVALID_ARGUMENT, NO_PERMISSION, NOT_FOUND,
    NOT_SUPPORTED, RESET_REQUIRED, Return, TIMEOUT, UNINITIALIZED, UNKNOWN,
};

/// What goes wrong.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Calls and fields that answer NOT_SUPPORTED.
    pub unsupported: Vec<Feature>,
    /// The energy counter falls to 0, seconds.
    pub reset_at_s: Option<f64>,
    /// Every call on a device answers GPU_IS_LOST from here on, seconds.
    pub lost_at_s: Option<f64>,
    /// The device is back, its counter at 0, seconds; never if absent.
    pub back_at_s: Option<f64>,
    /// Every call on a device takes this long, milliseconds.
    pub slow_call_ms: f64,
}

/// What can be unsupported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// The energy counter, as call and as fields 83 and 191.
    Energy,
    /// `nvmlDeviceGetPowerUsage`.
    Power,
    /// Field 185.
    PowerAverage,
    /// Field 186.
    PowerInstant,
    /// Power limits, as calls and as fields.
    Limits,
    /// Compute processes.
    Processes,
    /// `nvmlDeviceGetFieldValues` as a whole.
    FieldValues,
}

/// One function or field that does not do what it should.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Injected {
    /// A function's name, a field as `field:83`, or `*` for every function of a device.
    pub call: String,
    /// The GPU by its place in the scenario; every GPU if absent.
    pub device: Option<usize>,
    /// What it answers; what it should if absent.
    pub answer: Option<Answer>,
    /// It takes this long, milliseconds.
    pub delay_ms: f64,
    /// It does not come back before `until_s`.
    pub hangs: bool,
    /// From here on, seconds.
    pub from_s: f64,
    /// Until here, seconds; for ever if absent.
    pub until_s: Option<f64>,
}

/// An error code of NVML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "named as NVML's codes are")]
pub enum Answer {
    Uninitialized,
    InvalidArgument,
    NotSupported,
    NoPermission,
    NotFound,
    DriverNotLoaded,
    Timeout,
    FunctionNotFound,
    GpuIsLost,
    ResetRequired,
    Unknown,
}

impl Answer {
    pub(crate) const fn code(self) -> Return {
        match self {
            Self::Uninitialized => UNINITIALIZED,
            Self::InvalidArgument => INVALID_ARGUMENT,
            Self::NotSupported => NOT_SUPPORTED,
            Self::NoPermission => NO_PERMISSION,
            Self::NotFound => NOT_FOUND,
            Self::DriverNotLoaded => DRIVER_NOT_LOADED,
            Self::Timeout => TIMEOUT,
            Self::FunctionNotFound => FUNCTION_NOT_FOUND,
            Self::GpuIsLost => GPU_IS_LOST,
            Self::ResetRequired => RESET_REQUIRED,
            Self::Unknown => UNKNOWN,
        }
    }
}

impl Injected {
    /// Whether it strikes `call` on `device` at `after_s`, seconds after the state was made.
    pub(crate) fn strikes(&self, call: &str, device: Option<usize>, after_s: f64) -> bool {
        let named = self.call == call || (self.call == "*" && device.is_some());
        let there = self.device.is_none() || self.device == device;
        let now = after_s >= self.from_s && self.until_s.is_none_or(|until| after_s < until);
        named && there && now
    }
}

/// A jump of a device's energy counter.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jump {
    /// When, seconds.
    pub at_s: f64,
    /// How far; below 0 the counter falls.
    pub joules: f64,
}

/// A time in which a device's clocks are held down.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    /// `nvmlClocksEventReason…` bits.
    pub reasons: u64,
    /// From here on, seconds.
    pub from_s: f64,
    /// Until here, seconds; for ever if absent.
    pub until_s: Option<f64>,
}

/// A critical error of a device.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xid {
    /// When, seconds.
    pub at_s: f64,
    /// Its number.
    pub code: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_call_on_its_device_in_its_time_alone() {
        let fault = Injected {
            call: "nvmlDeviceGetName".to_owned(),
            device: Some(1),
            from_s: 2.0,
            until_s: Some(3.0),
            ..Injected::default()
        };
        assert!(fault.strikes("nvmlDeviceGetName", Some(1), 2.5));
        assert!(!fault.strikes("nvmlDeviceGetName", Some(0), 2.5));
        assert!(!fault.strikes("nvmlDeviceGetUUID", Some(1), 2.5));
        assert!(!fault.strikes("nvmlDeviceGetName", Some(1), 1.9));
        assert!(!fault.strikes("nvmlDeviceGetName", Some(1), 3.0));
        let lost = Injected {
            call: "*".to_owned(),
            ..Injected::default()
        };
        assert!(lost.strikes("nvmlDeviceGetName", Some(0), 0.0));
        assert!(!lost.strikes("nvmlInit_v2", None, 0.0), "not of a device");
    }
}
