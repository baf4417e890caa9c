//! Devices: how many and which.

use std::ffi::{CStr, c_char, c_uint};

use super::{give, give_text, this_function};
use crate::abi::{DeviceHandle, INVALID_ARGUMENT, NOT_FOUND, PciInfo, Return};
use crate::library::{Failure, call, device_call, either_call, handle_of};

/// # Safety
/// As in `nvml.h`: `count` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Return {
    // SAFETY: the caller's promise.
    call(this_function!(), |machine| unsafe {
        give(count, machine.present().count() as c_uint)
    })
}

/// # Safety
/// As in `nvml.h`: `device` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut DeviceHandle,
) -> Return {
    call(this_function!(), |machine| {
        let (index, _) = machine
            .present()
            .nth(index as usize)
            .ok_or(Failure(INVALID_ARGUMENT))?;
        // SAFETY: the caller's promise.
        unsafe { give(device, handle_of(index, None)) }
    })
}

/// # Safety
/// As in `nvml.h`: `uuid` is a C string, `device` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut DeviceHandle,
) -> Return {
    call(this_function!(), |machine| {
        if uuid.is_null() {
            return Err(Failure(INVALID_ARGUMENT));
        }
        // SAFETY: not null, and a C string by the caller's promise.
        let wanted = unsafe { CStr::from_ptr(uuid) }.to_bytes();
        let (index, _) = machine
            .present()
            .find(|(_, device)| device.uuid.as_bytes() == wanted)
            .ok_or(Failure(NOT_FOUND))?;
        // SAFETY: the caller's promise.
        unsafe { give(device, handle_of(index, None)) }
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
    either_call(this_function!(), device, |gpu, instance| {
        let told = instance.map_or(&gpu.device.uuid, |instance| &instance.uuid);
        // SAFETY: the caller's promise.
        unsafe { give_text(uuid, length, told) }
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
    either_call(this_function!(), device, |gpu, _| unsafe {
        give_text(name, length, &gpu.device.name)
    })
}

/// # Safety
/// As in `nvml.h`: `index` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetIndex(device: DeviceHandle, index: *mut c_uint) -> Return {
    // SAFETY: the caller's promise.
    device_call(this_function!(), device, |gpu| unsafe {
        give(index, gpu.index as c_uint)
    })
}

/// # Safety
/// As in `nvml.h`: `pci` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: DeviceHandle, pci: *mut PciInfo) -> Return {
    device_call(this_function!(), device, |gpu| {
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

/// `text` in a fixed field, filled up with zeros; the callers' texts are shorter than their fields.
fn text_field<const LENGTH: usize>(text: &str) -> [c_char; LENGTH] {
    let mut field = [0; LENGTH];
    for (place, byte) in field.iter_mut().zip(text.bytes().take(LENGTH - 1)) {
        *place = byte as c_char;
    }
    field
}
