//! Devices: how many, which, and whose processes hold a context.

use std::ffi::{CStr, c_char, c_uint};

use super::{give, give_text};
use crate::abi::{
    DeviceHandle, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NO_INSTANCE, NOT_FOUND, PciInfo,
    ProcessInfo, Return,
};
use crate::library::{Failure, call, device_call};
use crate::scenario::Feature;

/// # Safety
/// As in `nvml.h`: `count` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Return {
    // SAFETY: the caller's promise.
    call(|machine| unsafe { give(count, machine.scenario.devices.len() as c_uint) })
}

/// # Safety
/// As in `nvml.h`: `device` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut DeviceHandle,
) -> Return {
    call(|machine| {
        let index = index as usize;
        machine
            .scenario
            .devices
            .get(index)
            .ok_or(Failure(INVALID_ARGUMENT))?;
        // SAFETY: the caller's promise.
        unsafe { give(device, std::ptr::without_provenance_mut(index + 1)) }
    })
}

/// # Safety
/// As in `nvml.h`: `uuid` is a C string, `device` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut DeviceHandle,
) -> Return {
    call(|machine| {
        if uuid.is_null() {
            return Err(Failure(INVALID_ARGUMENT));
        }
        // SAFETY: not null, and a C string by the caller's promise.
        let wanted = unsafe { CStr::from_ptr(uuid) }.to_bytes();
        let mut devices = machine.scenario.devices.iter();
        let index = devices
            .position(|device| device.uuid.as_bytes() == wanted)
            .ok_or(Failure(NOT_FOUND))?;
        // SAFETY: the caller's promise.
        unsafe { give(device, std::ptr::without_provenance_mut(index + 1)) }
    })
}

/// # Safety
/// As in `nvml.h`: `uuid` is valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(
    device: DeviceHandle,
    uuid: *mut c_char,
    length: c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(device, |gpu| unsafe {
        give_text(uuid, length, &gpu.device.uuid)
    })
}

/// # Safety
/// As in `nvml.h`: `name` is valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(
    device: DeviceHandle,
    name: *mut c_char,
    length: c_uint,
) -> Return {
    // SAFETY: the caller's promise.
    device_call(device, |gpu| unsafe {
        give_text(name, length, &gpu.device.name)
    })
}

/// # Safety
/// As in `nvml.h`: `index` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetIndex(device: DeviceHandle, index: *mut c_uint) -> Return {
    // SAFETY: the caller's promise.
    device_call(device, |gpu| unsafe { give(index, gpu.index as c_uint) })
}

/// # Safety
/// As in `nvml.h`: `pci` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: DeviceHandle, pci: *mut PciInfo) -> Return {
    device_call(device, |gpu| {
        let bus = gpu.index as c_uint + 1;
        let info = PciInfo {
            bus_id_legacy: text_field(&format!("0000:{bus:02X}:00.0")),
            domain: 0,
            bus,
            device: 0,
            pci_device_id: 0x20B2_10DE,
            pci_subsystem_id: 0x1463_10DE,
            bus_id: text_field(&format!("00000000:{bus:02X}:00.0")),
        };
        // SAFETY: the caller's promise.
        unsafe { give(pci, info) }
    })
}

/// # Safety
/// As in `nvml.h`: `count` is valid for reading and writing, `infos` is null or has room for as
/// many entries as `count` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: DeviceHandle,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    device_call(device, |gpu| {
        gpu.needs(Feature::Processes)?;
        if count.is_null() {
            return Err(Failure(INVALID_ARGUMENT));
        }
        let processes = gpu.machine.state.processes(gpu.index);
        // SAFETY: not null, and valid by the caller's promise.
        let room = unsafe { count.replace(processes.len() as c_uint) } as usize;
        if room < processes.len() {
            return Err(Failure(INSUFFICIENT_SIZE));
        }
        if infos.is_null() && !processes.is_empty() {
            return Err(Failure(INVALID_ARGUMENT));
        }
        for (slot, process) in processes.into_iter().enumerate() {
            let info = ProcessInfo {
                pid: process.pid,
                used_gpu_memory: process.memory_bytes,
                gpu_instance_id: NO_INSTANCE,
                compute_instance_id: NO_INSTANCE,
            };
            // SAFETY: `slot` is below the number of processes, which is at most `room`, which is
            // how many entries `infos` holds by the caller's promise.
            unsafe { infos.add(slot).write(info) };
        }
        Ok(())
    })
}

/// `text` in a fixed field, filled up with zeros; the callers' texts are shorter than their fields.
fn text_field<const LENGTH: usize>(text: &str) -> [c_char; LENGTH] {
    let mut field = [0; LENGTH];
    for (place, byte) in field.iter_mut().zip(text.bytes().take(LENGTH - 1)) {
        *place = byte as c_char;
    }
    field
}
