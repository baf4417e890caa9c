//! The one header that is read of a request's head, and only where it is asked for: W3C
//! `traceparent`, of whose value the first [`TRACE`] bytes are kept.
//!
//! A head is taken byte by byte where its bytes may matter and line by line where they do not;
//! one state is kept between two receives, so that any split gives the same. Source: W3C Trace
//! Context §3.2.

use core::ptr::{read_volatile, write_volatile};

use super::{Window, mask};
use crate::request::{Facts, TRACE};

/// The most bytes of a request that are looked at.
pub const HEAD_READ: u64 = 4_096;

/// In a line that is not the one; so begins a request, with its first line.
const OTHER: u8 = 0;
/// At a line's beginning; up to [`VALUE`], each says one more byte of the name.
const LINE: u8 = 1;
/// Behind the name.
const VALUE: u8 = LINE + 12;
/// A carriage return at a line's beginning.
const RETURN: u8 = VALUE + 1;
/// The value is known, or the head has ended.
const END: u8 = RETURN + 1;

const NAME: (u64, u64) = (
    u64::from_le_bytes(*b"tracepar"),
    u64::from_le_bytes(*b"ent:\0\0\0\0"),
);

/// Before a request's first byte.
#[inline(always)]
pub(super) fn begin(facts: &mut Facts) {
    facts.trace_state = OTHER;
    facts.trace_len = 0;
}

/// True if nothing more needs to be looked at.
#[inline(always)]
pub fn has_ended(facts: &Facts) -> bool {
    state(facts) == END
}

#[inline(always)]
fn state(facts: &Facts) -> u8 {
    // SAFETY: a field of `facts`.
    unsafe { read_volatile(&raw const facts.trace_state) }
}

#[inline(always)]
fn set_state(facts: &mut Facts, state: u8) {
    // SAFETY: a field of `facts`.
    unsafe { write_volatile(&raw mut facts.trace_state, state) }
}

/// Looks at the next bytes of a head; true when the window is used up, or nothing more is wanted.
#[inline(always)]
pub fn step(window: &mut Window, facts: &mut Facts) -> bool {
    let (cursor, end) = (window.cursor(), window.end());
    if cursor >= end || has_ended(facts) {
        return true;
    }
    if state(facts) == OTHER {
        window.find_newline(cursor, end);
        if window.found() != 0 {
            set_state(facts, LINE);
        }
        return false;
    }
    window.set_cursor(cursor.wrapping_add(1));
    let byte = (window.word(cursor, 0) & 0xff) as u8;
    if state(facts) == VALUE {
        value(byte, facts);
    } else if byte == b'\n' {
        let blank = state(facts) == LINE || state(facts) == RETURN;
        set_state(facts, if blank { END } else { LINE });
    } else if byte == b'\r' && state(facts) == LINE {
        set_state(facts, RETURN);
    } else {
        name(byte, facts);
    }
    false
}

/// A byte of a line that is the name so far.
#[inline(always)]
fn name(byte: u8, facts: &mut Facts) {
    let matched = u64::from(state(facts).wrapping_sub(LINE));
    let word = if matched < 8 { NAME.0 } else { NAME.1 };
    let wanted = word >> (8 * mask::<7>(matched)) & 0xff;
    if u64::from(byte | 0x20) == wanted {
        set_state(facts, state(facts).wrapping_add(1));
    } else {
        set_state(facts, OTHER);
    }
}

/// A byte behind the name.
#[inline(always)]
fn value(byte: u8, facts: &mut Facts) {
    // SAFETY: a field of `facts`.
    let length = unsafe { read_volatile(&raw const facts.trace_len) };
    if byte > b' ' && (length as usize) < TRACE {
        let at = mask::<0x3f>(u64::from(length)) as usize;
        // SAFETY: less than `TRACE`, as was tested; the verifier allows for 64 in the slot.
        unsafe { write_volatile((&raw mut facts.trace).cast::<u8>().add(at), byte) };
        facts.trace_len = length.wrapping_add(1);
        if length as usize == TRACE - 1 {
            set_state(facts, END);
        }
    } else if length != 0 || byte == b'\n' || byte == b'\r' {
        // Too short: no such header.
        facts.trace_len = 0;
        set_state(facts, if byte == b'\n' { LINE } else { OTHER });
    }
}
