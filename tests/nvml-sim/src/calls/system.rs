//! Opening, closing, versions and the messages of error codes.

use std::ffi::{c_char, c_int, c_uint};

use super::{give, give_text, this_function};
use crate::abi::Return;
use crate::library::{call, initialize, shut_down};

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Return {
    initialize(this_function!())
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Return {
    initialize(this_function!())
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Return {
    shut_down(this_function!())
}

/// # Safety
/// As in `nvml.h`: `version` is valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> Return {
    // SAFETY: the caller's promise.
    call(this_function!(), |machine| unsafe {
        give_text(version, length, &machine.scenario.driver_version)
    })
}

/// # Safety
/// As in `nvml.h`: `version` is valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> Return {
    call(this_function!(), |machine| {
        let text = format!("12.{}", machine.scenario.driver_version);
        // SAFETY: the caller's promise.
        unsafe { give_text(version, length, &text) }
    })
}

/// # Safety
/// As in `nvml.h`: `version` is valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> Return {
    // SAFETY: the caller's promise.
    call(this_function!(), |_| unsafe { give(version, 12_090) })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(result: Return) -> *const c_char {
    let text = match result {
        0 => c"The operation was successful",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        13 => c"Function Not Found",
        15 => c"GPU is lost",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
