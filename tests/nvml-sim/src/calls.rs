//! The exported C functions, named and shaped as in `nvml.h`.

mod device;
mod fields;
mod power;
mod system;

use std::ffi::{c_char, c_uint};

use crate::abi::{INSUFFICIENT_SIZE, INVALID_ARGUMENT};
use crate::library::Failure;

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
