//! Sets of events: critical errors as they happen.

use std::ffi::{c_uint, c_ulonglong};

use super::{give, this_function};
use crate::abi::{
    DeviceHandle, EVENT_XID_CRITICAL, EventData, EventSetHandle, NO_INSTANCE, Return,
};
use crate::library::{call, device_call, handle_of};

/// # Safety
/// As in `nvml.h`: `set` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(set: *mut EventSetHandle) -> Return {
    call(this_function!(), |machine| {
        let handle = std::ptr::without_provenance_mut(machine.events.create());
        // SAFETY: the caller's promise.
        unsafe { give(set, handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    device: DeviceHandle,
    types: c_ulonglong,
    set: EventSetHandle,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        let watched = types & EVENT_XID_CRITICAL != 0;
        gpu.machine.events.register(set.addr(), gpu.index, watched)
    })
}

/// # Safety
/// As in `nvml.h`: `data` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    set: EventSetHandle,
    data: *mut EventData,
    timeout_ms: c_uint,
) -> Return {
    call(this_function!(), |machine| {
        let (device, xid) = machine.events.wait(machine, set.addr(), timeout_ms)?;
        let event = EventData {
            device: handle_of(device, None),
            event_type: EVENT_XID_CRITICAL,
            event_data: xid,
            gpu_instance_id: NO_INSTANCE,
            compute_instance_id: NO_INSTANCE,
        };
        // SAFETY: the caller's promise.
        unsafe { give(data, event) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(set: EventSetHandle) -> Return {
    call(this_function!(), |machine| machine.events.free(set.addr()))
}
