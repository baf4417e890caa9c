//! Where a response's body begins and ends: the end of its head, and its chunks' sizes.

use core::ptr::read_volatile;

use super::lines::Line;
use super::{body, done, flags, left, set_body, set_flags, set_left, set_phase};
use crate::request::{
    CHUNKED, ENCODED, HEAD, LENGTH, NDJSON, Phase, RESPONSE_FLAGS, SSE, Slot, TRUNCATED,
    UNTIL_CLOSE, UPGRADED,
};

/// The blank line behind the headers.
#[inline(always)]
pub(super) fn end_head(slot: &mut Slot, now: u64) {
    // SAFETY: a field of `slot`.
    let status = unsafe { read_volatile(&raw const slot.facts.status) };
    if status < 200 && status != 101 {
        // An interim response: the true one is still to come.
        slot.facts.status = 0;
        set_flags(slot, flags(slot) & !RESPONSE_FLAGS);
        set_body(slot, 0);
        set_phase(slot, Phase::WAITING);
        return;
    }
    if status == 101 {
        // Answered; another protocol until the connection closes.
        set_flags(slot, flags(slot) & !RESPONSE_FLAGS | UPGRADED);
        done(slot, now);
        return;
    }
    if flags(slot) & HEAD != 0 || status == 204 || status == 304 {
        set_body(slot, 0);
        done(slot, now);
        return;
    }
    if body(slot) & ENCODED != 0 {
        // Its lines cannot be read: what streams is not known to, and says so.
        let streams = flags(slot) & (SSE | NDJSON) != 0;
        let told = if streams { TRUNCATED } else { 0 };
        set_flags(slot, flags(slot) & !(SSE | NDJSON) | told);
        set_body(slot, ENCODED);
    }
    if flags(slot) & CHUNKED != 0 {
        set_phase(slot, Phase::SIZE);
    } else if flags(slot) & LENGTH == 0 {
        set_flags(slot, flags(slot) | UNTIL_CLOSE);
        set_left(slot, u64::MAX);
        set_phase(slot, Phase::DATA);
    } else if left(slot) == 0 {
        done(slot, now);
    } else {
        set_phase(slot, Phase::DATA);
    }
}

/// A chunk-size line, or the blank line behind a chunk's data.
#[inline(always)]
pub(super) fn size(line: &Line<'_>, slot: &mut Slot) {
    if line.is_blank() {
        return;
    }
    match line.hexadecimal() {
        None => {
            set_phase(slot, Phase::LOST);
            set_flags(slot, flags(slot) | TRUNCATED);
        }
        Some(0) => set_phase(slot, Phase::TRAILER),
        Some(bytes) => {
            set_left(slot, bytes);
            set_phase(slot, Phase::DATA);
        }
    }
}
