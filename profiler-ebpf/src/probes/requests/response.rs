//! A send of a followed socket, in the order of what is likely: a head that lies in one piece, one
//! event of a stream, anything.
//!
//! The functions that are exported by name are what the verifier calls global: it verifies each by
//! itself, for whatever its callers pass, and not again in each of their states.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_ebpf::http1::{self, Memory, Payload, Tail, WINDOW, Window, mask};
use profiler_ebpf::request::{Phase, Slot};

use super::payload::{self, Buffer};
use super::slots::count;
use super::tail::{copy, keep_json, tail};

/// The most windows of one send: 63 KiB of what must be read (a plain body is not read at all).
const WINDOWS: u32 = 64;

/// Bytes of a head that are read at a time: the body behind it may not be needed.
const HEAD_WINDOW: u64 = 384;

/// A send of a followed socket. It lies on the stack, and holds nothing but two pointers into
/// maps: loops' callbacks get at it through a stack pointer.
#[repr(C)]
struct Send {
    buffer: *mut Buffer,
    slot: *mut Slot,
}

impl Memory for Send {
    #[inline(always)]
    unsafe fn copy(to: *mut u8, from: *const u8, bytes: u64) {
        copy(to, from, bytes);
    }
}

impl Payload for Send {
    #[inline(always)]
    fn parts(&mut self) -> (&mut Window, &mut Slot) {
        // SAFETY: entries of two maps; this program alone uses them while it runs (a second
        // system call on the same socket at the same moment can garble a request, no more).
        unsafe { (&mut (*self.buffer).window, &mut *self.slot) }
    }

    #[inline(always)]
    fn with_tail(&mut self) -> (&mut Window, &mut Slot, Option<&mut Tail>) {
        let tail = tail(self.slot);
        let (window, slot) = self.parts();
        (window, slot, tail)
    }

    #[inline(always)]
    fn fill(&mut self) -> u64 {
        let (window, slot) = self.parts();
        let remaining = window.remaining();
        let in_head = slot.facts.phase == Phase::WAITING || slot.facts.phase == Phase::HEAD;
        let wanted = if in_head && remaining > HEAD_WINDOW {
            HEAD_WINDOW
        } else {
            remaining
        };
        payload::fill(self.buffer, wanted)
    }

    #[inline(always)]
    fn skip(&mut self, bytes: u64) {
        payload::skip(self.buffer, bytes);
    }

    #[inline(always)]
    fn steps(&mut self) {
        // SAFETY: entries of two maps.
        unsafe { follow_lines(self.buffer, self.slot) };
    }

    #[inline(always)]
    fn is_text(&mut self, from: u64, bytes: u64) -> bool {
        // SAFETY: this CPU's buffer.
        unsafe { is_text(self.buffer, from, bytes) != 0 }
    }
}

/// # Safety
/// `buffer` is an entry of its map, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn is_text(buffer: *mut Buffer, from: u64, bytes: u64) -> u64 {
    if buffer.is_null() {
        return 0;
    }
    // SAFETY: this CPU's buffer.
    u64::from(unsafe { (*buffer).window.is_text(from, bytes) })
}

/// Follows the lines that the window holds, whose place and end its caller has set.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn follow_lines(buffer: *mut Buffer, slot: *mut Slot) -> u64 {
    if buffer.is_null() || slot.is_null() {
        return 0;
    }
    let mut send = Send { buffer, slot };
    // Every step takes a byte at least, so this many always do.
    // SAFETY: the callback takes this context; it lives until the loop returns.
    unsafe {
        bpf_loop(
            WINDOW as u32 + 1,
            step as *const () as *mut c_void,
            (&raw mut send).cast::<c_void>(),
            0,
        );
    }
    0
}

#[inline(never)]
unsafe extern "C" fn step(_: u64, send: *mut Send) -> i64 {
    // SAFETY: the context `follow_lines` passed.
    i64::from(http1::step(unsafe { &mut *send }))
}

/// Follows what is left of the send from where its bytes are read.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn follow_windows(buffer: *mut Buffer, slot: *mut Slot) -> u64 {
    if buffer.is_null() || slot.is_null() {
        return 0;
    }
    let mut send = Send { buffer, slot };
    // SAFETY: the callback takes this context; it lives until the loop returns.
    unsafe {
        bpf_loop(
            WINDOWS,
            window as *const () as *mut c_void,
            (&raw mut send).cast::<c_void>(),
            0,
        );
    }
    0
}

#[inline(never)]
unsafe extern "C" fn window(_: u64, send: *mut Send) -> i64 {
    // SAFETY: the context `follow_windows` passed.
    i64::from(http1::window(unsafe { &mut *send }))
}

/// Follows a send of `total` bytes, which is open in the buffer. The slot is being written.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn follow_send(
    buffer: *mut Buffer,
    slot: *mut Slot,
    total: u64,
    now: u64,
) -> u64 {
    if buffer.is_null() || slot.is_null() {
        return 0;
    }
    // SAFETY: entries of two maps.
    unsafe {
        let taken = take_known(buffer, slot, total, now);
        let mut is_whole = taken == total;
        if !is_whole {
            follow_rest(buffer, slot, total, taken, now);
            is_whole = (*buffer).window.remaining() == 0;
        }
        http1::end_send(&mut *slot, now);
        if is_whole && http1::is_json(&*slot) {
            keep_json(buffer, slot, total);
        }
    }
    0
}

/// Takes what needs no lines to be looked for: how many bytes of the send's beginning.
///
/// # Safety
/// Both are entries of their maps; the slot is being written.
#[inline(always)]
unsafe fn take_known(buffer: *mut Buffer, slot: *mut Slot, total: u64, now: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut taken = 0;
        if http1::may_be_head(&*slot) {
            let most = if total < HEAD_WINDOW {
                total
            } else {
                HEAD_WINDOW
            };
            let length = payload::read_first(buffer, most);
            if length != 0 {
                taken = take_head(buffer, slot, length, now);
            }
            if taken == 0 {
                return 0;
            }
        }
        let rest = total.wrapping_sub(taken);
        if rest != 0 && http1::passes(&*slot) {
            taken = taken.wrapping_add(http1::pass(&mut *slot, rest, now));
        }
        taken
    }
}

/// Takes a head that lies in the `length` (≤ 511) bytes at the window's front: its bytes, or 0.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn take_head(buffer: *mut Buffer, slot: *mut Slot, length: u64, now: u64) -> u64 {
    if buffer.is_null() || slot.is_null() {
        return 0;
    }
    // SAFETY: entries of two maps.
    let (window, slot) = unsafe { (&mut (*buffer).window, &mut *slot) };
    http1::head(window, slot, mask::<0x1ff>(length), now)
}

/// Follows all but the first `taken` of a send's `total` bytes.
///
/// # Safety
/// Both are entries of their maps; the slot is being written.
#[inline(always)]
unsafe fn follow_rest(buffer: *mut Buffer, slot: *mut Slot, total: u64, taken: u64, now: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let before = (*slot).facts.phase;
        let rest = total.wrapping_sub(taken);
        (*buffer).window.begin(rest, now, 0);
        if before != Phase::IDLE {
            if taken == 0
                && http1::may_be_event(&*slot, total)
                && payload::read_small(buffer, total)
            {
                if http1::event(&mut Send { buffer, slot }, total, now) {
                    (*buffer).window.set_remaining(0);
                    return;
                }
                (*buffer).window.begin(rest, now, total);
            }
            payload::rewind(buffer);
            payload::skip(buffer, taken);
            follow_windows(buffer, slot);
        }
        let left_over = (*buffer).window.remaining();
        if (*slot).facts.phase == Phase::IDLE {
            if left_over != 0 && !http1::is_session(&*slot) {
                count!(pipelined);
            }
        } else if left_over != 0 {
            // More windows than are followed.
            http1::unread(&mut *slot, left_over, now);
            count!(unreadable);
        } else if (*buffer).window.unreadable() != 0 {
            count!(unreadable);
        } else if (*slot).facts.phase == Phase::LOST && before != Phase::LOST {
            count!(malformed);
        }
    }
}
