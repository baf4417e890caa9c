//! MIG devices: which a board is split into. They have no energy and no power of their own.

use std::ffi::c_uint;

use super::{give, this_function};
use crate::abi::{Attributes, DeviceHandle, NOT_FOUND, NOT_SUPPORTED, Return};
use crate::library::{Failure, device_call, either_call, handle_of, instance_call};

/// The most that a board can be split into.
const MOST: c_uint = 7;
/// Of a board with 132 multiprocessors.
const MULTIPROCESSORS_A_SLICE: c_uint = 16;

/// # Safety
/// As in `nvml.h`: `count` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: DeviceHandle,
    count: *mut c_uint,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        let most = if gpu.is_mig() { MOST } else { 0 };
        // SAFETY: the caller's promise.
        unsafe { give(count, most) }
    })
}

/// # Safety
/// As in `nvml.h`: `mig_device` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: DeviceHandle,
    index: c_uint,
    mig_device: *mut DeviceHandle,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        if !gpu.is_mig() {
            return Err(Failure(NOT_SUPPORTED));
        }
        let place = index as usize;
        if place >= gpu.instances().len() {
            return Err(Failure(NOT_FOUND));
        }
        // SAFETY: the caller's promise.
        unsafe { give(mig_device, handle_of(gpu.index, Some(place))) }
    })
}

/// # Safety
/// As in `nvml.h`: `is_mig` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(
    device: DeviceHandle,
    is_mig: *mut c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    either_call(this_function!(), device, |_, instance| unsafe {
        give(is_mig, c_uint::from(instance.is_some()))
    })
}

/// # Safety
/// As in `nvml.h`: `id` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: DeviceHandle, id: *mut c_uint) -> Return {
    // SAFETY: the caller's promise.
    instance_call(this_function!(), device, |_, instance| unsafe {
        give(id, instance.id)
    })
}

/// # Safety
/// As in `nvml.h`: `board` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    device: DeviceHandle,
    board: *mut DeviceHandle,
) -> Return {
    // SAFETY: the caller's promise.
    instance_call(this_function!(), device, |gpu, _| unsafe {
        give(board, handle_of(gpu.index, None))
    })
}

/// # Safety
/// As in `nvml.h`: `attributes` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: DeviceHandle,
    attributes: *mut Attributes,
) -> Return {
    instance_call(this_function!(), device, |gpu, instance| {
        let slices = instance.slices;
        let told = Attributes {
            multiprocessors: slices * MULTIPROCESSORS_A_SLICE,
            shared_copy_engines: slices,
            shared_decoders: slices,
            shared_encoders: 0,
            shared_jpegs: slices,
            shared_ofas: 0,
            gpu_instance_slices: slices,
            compute_instance_slices: slices,
            memory_mb: (gpu.device.memory_bytes >> 20) / 8 * u64::from(slices),
        };
        // SAFETY: the caller's promise.
        unsafe { give(attributes, told) }
    })
}
