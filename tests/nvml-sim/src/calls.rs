//! The exported C functions, named and shaped as in `nvml.h`.

mod device;
mod events;
mod fields;
mod gpm;
mod mig;
mod monitor;
mod power;
mod processes;
mod system;

use std::ffi::{c_char, c_uint};

use crate::abi::{INSUFFICIENT_SIZE, INVALID_ARGUMENT};
use crate::library::Failure;

/// Every function that the library exports; a test holds this against its symbols.
pub const FUNCTIONS: &[&str] = &[
    "nvmlDeviceGetAttributes_v2",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetName",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetPcieThroughput",
    "nvmlDeviceGetPowerManagementDefaultLimit",
    "nvmlDeviceGetPowerManagementLimit",
    "nvmlDeviceGetPowerManagementLimitConstraints",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetVirtualizationMode",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceRegisterEvents",
    "nvmlErrorString",
    "nvmlEventSetCreate",
    "nvmlEventSetFree",
    "nvmlEventSetWait_v2",
    "nvmlGpmMetricsGet",
    "nvmlGpmMigSampleGet",
    "nvmlGpmQueryDeviceSupport",
    "nvmlGpmSampleAlloc",
    "nvmlGpmSampleFree",
    "nvmlGpmSampleGet",
    "nvmlInitWithFlags",
    "nvmlInit_v2",
    "nvmlShutdown",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetNVMLVersion",
];

/// The name of the function in which it stands: a fault that names a function must strike that one.
macro_rules! this_function {
    () => {{
        fn inner() {}
        let path = std::any::type_name_of_val(&inner);
        path.rsplit("::").nth(1).unwrap_or_default()
    }};
}
use this_function;

/// Writes `value` to where the caller wants it.
///
/// # Safety
/// `to` is null or valid for writing a `T`.
unsafe fn give<T>(to: *mut T, value: T) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure(INVALID_ARGUMENT));
    }
    // SAFETY: not null, so by this function's contract valid for writing.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes `text` and its final 0 to a buffer of `length` bytes.
///
/// # Safety
/// `to` is null or valid for writing `length` bytes.
unsafe fn give_text(to: *mut c_char, length: c_uint, text: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure(INVALID_ARGUMENT));
    }
    if text.len() >= length as usize {
        return Err(Failure(INSUFFICIENT_SIZE));
    }
    // SAFETY: the text and one byte more fit into `length`, and a string that Rust holds does
    // not overlap a buffer that the caller lets us write.
    unsafe {
        to.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}
