//! The types and codes of `nvml.h`, as far as they are used. Sizes and offsets are those a C
//! compiler gives for the header of PyPI's `nvidia-nvml-dev-cu12` 12.9.79 on x86-64; API 13's
//! (13.3.29) are the same.

use std::ffi::{c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void};
use std::mem::offset_of;

/// `nvmlReturn_t`.
pub(crate) type Return = c_uint;

pub(crate) const SUCCESS: Return = 0;
pub(crate) const UNINITIALIZED: Return = 1;
pub(crate) const INVALID_ARGUMENT: Return = 2;
pub(crate) const NOT_SUPPORTED: Return = 3;
pub(crate) const NO_PERMISSION: Return = 4;
pub(crate) const NOT_FOUND: Return = 6;
pub(crate) const INSUFFICIENT_SIZE: Return = 7;
pub(crate) const DRIVER_NOT_LOADED: Return = 9;
pub(crate) const TIMEOUT: Return = 10;
pub(crate) const FUNCTION_NOT_FOUND: Return = 13;
pub(crate) const GPU_IS_LOST: Return = 15;
pub(crate) const RESET_REQUIRED: Return = 16;
pub(crate) const UNKNOWN: Return = 999;

/// `NVML_VALUE_TYPE_UNSIGNED_INT`.
pub(crate) const TYPE_UNSIGNED_INT: c_uint = 1;
/// `NVML_VALUE_TYPE_UNSIGNED_LONG_LONG`.
pub(crate) const TYPE_UNSIGNED_LONG_LONG: c_uint = 3;

/// `NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION`, millijoules.
pub(crate) const FIELD_TOTAL_ENERGY: c_uint = 83;
/// `NVML_FI_DEV_POWER_AVERAGE`, milliwatts.
pub(crate) const FIELD_POWER_AVERAGE: c_uint = 185;
/// `NVML_FI_DEV_POWER_INSTANT`, milliwatts.
pub(crate) const FIELD_POWER_INSTANT: c_uint = 186;
/// `NVML_FI_DEV_POWER_MIN_LIMIT`, milliwatts.
pub(crate) const FIELD_POWER_MIN_LIMIT: c_uint = 187;
/// `NVML_FI_DEV_POWER_MAX_LIMIT`, milliwatts.
pub(crate) const FIELD_POWER_MAX_LIMIT: c_uint = 188;
/// `NVML_FI_DEV_POWER_DEFAULT_LIMIT`, milliwatts.
pub(crate) const FIELD_POWER_DEFAULT_LIMIT: c_uint = 189;
/// `NVML_FI_DEV_POWER_CURRENT_LIMIT`, milliwatts.
pub(crate) const FIELD_POWER_CURRENT_LIMIT: c_uint = 190;
/// `NVML_FI_DEV_ENERGY`, millijoules: the same counter as 83.
pub(crate) const FIELD_ENERGY: c_uint = 191;
/// `NVML_FI_DEV_POWER_REQUESTED_LIMIT`, milliwatts.
pub(crate) const FIELD_POWER_REQUESTED_LIMIT: c_uint = 192;

/// `NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX`, KiB sent; scope: the link.
pub(crate) const FIELD_NVLINK_TX: c_uint = 138;
/// `NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX`, KiB received; scope: the link.
pub(crate) const FIELD_NVLINK_RX: c_uint = 139;
/// `NVML_FI_DEV_PCIE_COUNT_TX_BYTES`.
pub(crate) const FIELD_PCIE_TX: c_uint = 197;
/// `NVML_FI_DEV_PCIE_COUNT_RX_BYTES`.
pub(crate) const FIELD_PCIE_RX: c_uint = 198;

/// The scope that stands for all links together.
pub(crate) const SCOPE_ALL_LINKS: c_uint = c_uint::MAX;
/// `NVML_POWER_SCOPE_MODULE`: CPU and GPU of a superchip.
pub(crate) const SCOPE_MODULE: c_uint = 1;
/// `NVML_POWER_SCOPE_GPU`.
pub(crate) const SCOPE_GPU: c_uint = 0;
/// `gpuInstanceId` and `computeInstanceId` where there is no MIG.
pub(crate) const NO_INSTANCE: c_uint = 0xFFFF_FFFF;

/// `nvmlDevice_t`: here the device's index + 1, never dereferenced.
pub(crate) type DeviceHandle = *mut c_void;

/// `nvmlFieldValue_t`.
#[repr(C)]
pub(crate) struct FieldValue {
    pub(crate) field_id: c_uint,
    pub(crate) scope_id: c_uint,
    /// Microseconds since 1970.
    pub(crate) timestamp: c_longlong,
    /// How long the update took.
    pub(crate) latency_us: c_longlong,
    pub(crate) value_type: c_uint,
    pub(crate) result: Return,
    pub(crate) value: Value,
}

/// `nvmlValue_t`.
#[repr(C)]
pub(crate) union Value {
    pub(crate) unsigned_int: c_uint,
    pub(crate) unsigned_long_long: c_ulonglong,
}

/// `nvmlProcessInfo_t`.
#[repr(C)]
pub(crate) struct ProcessInfo {
    pub(crate) pid: c_uint,
    /// Bytes.
    pub(crate) used_gpu_memory: c_ulonglong,
    pub(crate) gpu_instance_id: c_uint,
    pub(crate) compute_instance_id: c_uint,
}

/// `nvmlMemory_v2_t`, bytes.
#[repr(C)]
pub(crate) struct Memory {
    /// Size and version of the struct, by the caller.
    pub(crate) version: c_uint,
    pub(crate) total: c_ulonglong,
    pub(crate) reserved: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}

/// `nvmlUtilization_t`, percent.
#[repr(C)]
pub(crate) struct Utilization {
    pub(crate) gpu: c_uint,
    pub(crate) memory: c_uint,
}

/// `nvmlProcessUtilizationSample_t`, percent.
#[repr(C)]
pub(crate) struct ProcessUtilization {
    pub(crate) pid: c_uint,
    /// Microseconds since 1970.
    pub(crate) timestamp: c_ulonglong,
    pub(crate) sm: c_uint,
    pub(crate) memory: c_uint,
    pub(crate) encoder: c_uint,
    pub(crate) decoder: c_uint,
}

/// `nvmlDeviceAttributes_t`, of a MIG device.
#[repr(C)]
pub(crate) struct Attributes {
    pub(crate) multiprocessors: c_uint,
    pub(crate) shared_copy_engines: c_uint,
    pub(crate) shared_decoders: c_uint,
    pub(crate) shared_encoders: c_uint,
    pub(crate) shared_jpegs: c_uint,
    pub(crate) shared_ofas: c_uint,
    pub(crate) gpu_instance_slices: c_uint,
    pub(crate) compute_instance_slices: c_uint,
    pub(crate) memory_mb: c_ulonglong,
}

/// `nvmlGpmSample_t`: here a number that is never dereferenced.
pub(crate) type SampleHandle = *mut c_void;

/// `nvmlGpmSupport_t`.
#[repr(C)]
pub(crate) struct GpmSupport {
    /// By the caller: 1.
    pub(crate) version: c_uint,
    pub(crate) is_supported: c_uint,
}

/// `nvmlGpmMetric_t`.
#[repr(C)]
pub(crate) struct GpmMetric {
    /// By the caller.
    pub(crate) id: c_uint,
    pub(crate) result: Return,
    pub(crate) value: f64,
    /// Short name, long name, unit: here none.
    pub(crate) names: [*mut c_char; 3],
}

/// `nvmlGpmMetricsGet_t` up to its metrics: how long their array is depends on the header's version,
/// and only the first `count` are used.
#[repr(C)]
pub(crate) struct GpmMetricsGet {
    /// By the caller: 1.
    pub(crate) version: c_uint,
    /// By the caller.
    pub(crate) count: c_uint,
    pub(crate) sample1: SampleHandle,
    pub(crate) sample2: SampleHandle,
}

const _: () = {
    assert!(size_of::<Attributes>() == 40 && offset_of!(Attributes, memory_mb) == 32);
    assert!(size_of::<GpmSupport>() == 8);
    assert!(size_of::<GpmMetric>() == 40 && offset_of!(GpmMetric, value) == 8);
    assert!(size_of::<GpmMetricsGet>() == 24 && offset_of!(GpmMetricsGet, sample1) == 8);
};

/// `nvmlEventSet_t`: here a number that is never dereferenced.
pub(crate) type EventSetHandle = *mut c_void;

/// `nvmlEventTypeXidCriticalError`.
pub(crate) const EVENT_XID_CRITICAL: c_ulonglong = 8;

/// `nvmlEventData_t`.
#[repr(C)]
pub(crate) struct EventData {
    pub(crate) device: DeviceHandle,
    pub(crate) event_type: c_ulonglong,
    /// The XID, for an event of that type.
    pub(crate) event_data: c_ulonglong,
    pub(crate) gpu_instance_id: c_uint,
    pub(crate) compute_instance_id: c_uint,
}

/// `nvmlPciInfo_t`.
#[repr(C)]
pub(crate) struct PciInfo {
    pub(crate) bus_id_legacy: [c_char; 16],
    pub(crate) domain: c_uint,
    pub(crate) bus: c_uint,
    pub(crate) device: c_uint,
    pub(crate) pci_device_id: c_uint,
    pub(crate) pci_subsystem_id: c_uint,
    pub(crate) bus_id: [c_char; 32],
}

const _: () = assert!(size_of::<c_int>() == 4 && size_of::<DeviceHandle>() == 8);
const _: () = {
    assert!(size_of::<FieldValue>() == 40 && align_of::<FieldValue>() == 8);
    assert!(offset_of!(FieldValue, scope_id) == 4);
    assert!(offset_of!(FieldValue, timestamp) == 8);
    assert!(offset_of!(FieldValue, latency_us) == 16);
    assert!(offset_of!(FieldValue, value_type) == 24);
    assert!(offset_of!(FieldValue, result) == 28);
    assert!(offset_of!(FieldValue, value) == 32);
};
const _: () = {
    assert!(size_of::<ProcessInfo>() == 24 && align_of::<ProcessInfo>() == 8);
    assert!(offset_of!(ProcessInfo, used_gpu_memory) == 8);
    assert!(offset_of!(ProcessInfo, gpu_instance_id) == 16);
    assert!(offset_of!(ProcessInfo, compute_instance_id) == 20);
};
const _: () = {
    assert!(size_of::<PciInfo>() == 68 && align_of::<PciInfo>() == 4);
    assert!(offset_of!(PciInfo, domain) == 16);
    assert!(offset_of!(PciInfo, bus) == 20);
    assert!(offset_of!(PciInfo, device) == 24);
    assert!(offset_of!(PciInfo, pci_device_id) == 28);
    assert!(offset_of!(PciInfo, pci_subsystem_id) == 32);
    assert!(offset_of!(PciInfo, bus_id) == 36);
};
const _: () = {
    assert!(size_of::<Memory>() == 40 && offset_of!(Memory, total) == 8);
    assert!(size_of::<Utilization>() == 8);
    assert!(size_of::<ProcessUtilization>() == 32);
    assert!(offset_of!(ProcessUtilization, timestamp) == 8);
    assert!(offset_of!(ProcessUtilization, sm) == 16);
    assert!(size_of::<EventData>() == 32 && offset_of!(EventData, event_data) == 16);
};
