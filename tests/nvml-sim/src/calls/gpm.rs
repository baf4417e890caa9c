//! GPM: samples of what a GPU or an instance of it did, and what lies between two of them.

use std::ffi::c_uint;

use super::{give, this_function};
use crate::abi::{
    DeviceHandle, GpmMetric, GpmMetricsGet, GpmSupport, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED,
    Return, SUCCESS, SampleHandle,
};
use crate::gpm::{Activity, Sample};
use crate::library::{Failure, call, device_call};

/// # Safety
/// As in `nvml.h`: `support` is valid for reading and writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmQueryDeviceSupport(
    device: DeviceHandle,
    support: *mut GpmSupport,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        let told = GpmSupport {
            version: 1,
            is_supported: c_uint::from(gpu.device.gpm),
        };
        // SAFETY: the caller's promise.
        unsafe { give(support, told) }
    })
}

/// # Safety
/// As in `nvml.h`: `sample` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmSampleAlloc(sample: *mut SampleHandle) -> Return {
    call(this_function!(), |machine| {
        let handle = std::ptr::without_provenance_mut(machine.samples.create());
        // SAFETY: the caller's promise.
        unsafe { give(sample, handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpmSampleFree(sample: SampleHandle) -> Return {
    call(this_function!(), |machine| {
        machine.samples.free(sample.addr())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpmSampleGet(device: DeviceHandle, sample: SampleHandle) -> Return {
    device_call(this_function!(), device, |gpu| {
        if !gpu.device.gpm {
            return Err(Failure(NOT_SUPPORTED));
        }
        let taken = Sample {
            engines: gpu.device.all_engines().collect(),
            at_ns: gpu.now_ns,
        };
        gpu.machine.samples.fill(sample.addr(), taken)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpmMigSampleGet(
    device: DeviceHandle,
    instance: c_uint,
    sample: SampleHandle,
) -> Return {
    device_call(this_function!(), device, |gpu| {
        if !gpu.device.gpm || !gpu.is_mig() {
            return Err(Failure(NOT_SUPPORTED));
        }
        let mut instances = gpu.instances().iter();
        let found = instances.find(|of_board| of_board.id == instance);
        let taken = Sample {
            engines: found.ok_or(Failure(NOT_FOUND))?.engines.clone(),
            at_ns: gpu.now_ns,
        };
        gpu.machine.samples.fill(sample.addr(), taken)
    })
}

/// # Safety
/// As in `nvml.h`: `request` is valid for reading and writing, with as many metrics behind it as it
/// says, whose `metricId` is set.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut GpmMetricsGet) -> Return {
    call(this_function!(), |machine| {
        if request.is_null() {
            return Err(Failure(INVALID_ARGUMENT));
        }
        // SAFETY: not null, and valid by the caller's promise.
        let head = unsafe { &*request };
        if head.version != 1 {
            return Err(Failure(INVALID_ARGUMENT));
        }
        let (first, second) = (head.sample1.addr(), head.sample2.addr());
        let activity = Activity::between(machine, first, second)?;
        // SAFETY: the metrics lie right behind the head, as many as it says, and are ours alone for
        // the time of the call.
        let metrics = unsafe {
            std::slice::from_raw_parts_mut(request.add(1).cast::<GpmMetric>(), head.count as usize)
        };
        for metric in metrics {
            let value = activity.metric(metric.id);
            metric.result = value.map_or(NOT_SUPPORTED, |_| SUCCESS);
            metric.value = value.unwrap_or(0.0);
        }
        Ok(())
    })
}
