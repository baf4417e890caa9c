//! The `traceparent` header of a request's head, where trace ids are asked for.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_loop;
use profiler_ebpf::http1::{FRONT, WINDOW, trace};
use profiler_ebpf::request::Slot;

use super::payload::{Buffer, fill, open};
use super::source::{Direction, Origin};

/// 1 if trace ids are asked for.
#[unsafe(no_mangle)]
static TRACE_IDS: Global<u8> = Global::new(0);

/// Windows of as much as is looked at.
const WINDOWS: u32 = trace::HEAD_READ.div_ceil(WINDOW as u64) as u32;

/// A receive of a followed socket; see [`super::payload`] for its place.
#[repr(C)]
struct Received {
    buffer: *mut Buffer,
    slot: *mut Slot,
}

/// Looks at a receive of `length` bytes, before they are added to the request's.
#[inline(always)]
pub(super) fn read_head<O: Origin>(buffer: *mut Buffer, slot: *mut Slot, origin: O, length: u64) {
    if TRACE_IDS.load() == 0 {
        return;
    }
    // SAFETY: a slot of the array, which is being written.
    let facts = unsafe { &(*slot).facts };
    let before = facts.request_bytes;
    if before >= trace::HEAD_READ || trace::has_ended(facts) {
        return;
    }
    let room = trace::HEAD_READ.wrapping_sub(before);
    open(buffer, origin, Direction::Received, length);
    // SAFETY: this CPU's buffer.
    unsafe {
        (*buffer)
            .window
            .set_remaining(if length < room { length } else { room })
    };
    let mut received = Received { buffer, slot };
    // SAFETY: the callback takes this context; it lives until the loop returns.
    unsafe {
        bpf_loop(
            WINDOWS,
            window as *const () as *mut c_void,
            (&raw mut received).cast::<c_void>(),
            0,
        );
    }
}

#[inline(never)]
unsafe extern "C" fn window(_: u64, received: *mut Received) -> i64 {
    // SAFETY: the context `read_head` passed, of entries of two maps.
    let (buffer, window, slot) = unsafe {
        let received = &mut *received;
        (
            received.buffer,
            &mut (*received.buffer).window,
            &mut *received.slot,
        )
    };
    let remaining = window.remaining();
    if remaining == 0 || trace::has_ended(&slot.facts) {
        return 1;
    }
    let filled = fill(buffer, remaining);
    if filled == 0 {
        return 1;
    }
    window.set_remaining(remaining.wrapping_sub(filled));
    window.set_cursor(FRONT as u64);
    window.set_end(filled);
    // Every step takes a byte at least.
    // SAFETY: as in `read_head`.
    unsafe {
        bpf_loop(
            WINDOW as u32 + 1,
            step as *const () as *mut c_void,
            received.cast::<c_void>(),
            0,
        );
    }
    0
}

#[inline(never)]
unsafe extern "C" fn step(_: u64, received: *mut Received) -> i64 {
    // SAFETY: as in `window`.
    let (window, slot) = unsafe { (&mut (*(*received).buffer).window, &mut *(*received).slot) };
    i64::from(trace::step(window, &mut slot.facts))
}
