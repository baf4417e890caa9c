//! HTTP/1.1 from the server's side of a socket, for any split of its bytes.
//!
//! In: what the server received ([`request_line`]) and sent ([`window`]). Out: the socket's
//! [`Slot`]: status, time of the first body data, chunks, end. Pure and without allocation; the
//! kernel runs this very code, so it is written for the BPF verifier: every offset is masked,
//! nothing can panic, and what one loop finds goes through memory before another uses it
//! (the verifier would otherwise follow each value it can have).
//!
//! A response is lines (status, headers, chunk sizes, trailers) and data. A line is looked at
//! when its newline has come; of a line cut by the end of a send only its first bytes are kept,
//! which is all that is ever compared. Source: RFC 9112 (messages), WHATWG HTML §9.2 (SSE).

mod lines;
mod request_line;
mod window;

pub use request_line::{Start, classify as request_line};
pub use window::{BYTES, FRONT, WINDOW, Window, mask};

use crate::request::{
    BODYLESS, CHUNKED, HEAD, LENGTH, NDJSON, Outcome, Phase, RESPONSE_FLAGS, SSE, Slot, TRUNCATED,
    UNTIL_CLOSE,
};
use lines::Line;

/// The bytes of one send, and how they are reached.
pub trait Payload {
    /// The buffer, and the socket that sends.
    fn parts(&mut self) -> (&mut Window, &mut Slot);
    /// Puts the next bytes at [`FRONT`] of the buffer, at most [`WINDOW`] and at most what the
    /// send has left, and returns how many; 0 if they cannot be read.
    fn fill(&mut self) -> u64;
    /// Passes over bytes without reading them.
    fn skip(&mut self, bytes: u64);
    /// Repeats [`step`] until it returns true.
    fn steps(&mut self);
}

/// Begins a request: `slot.facts` holds its first bytes, times and owner; all else is set here.
#[inline(always)]
pub fn begin_request(slot: &mut Slot, flags: u16) {
    let facts = &mut slot.facts;
    facts.head = 0;
    facts.first_data = 0;
    facts.last_data = 0;
    facts.end = 0;
    facts.response_bytes = 0;
    facts.chunks = 0;
    facts.first_chunks = 0;
    facts.status = 0;
    facts.flags = flags;
    facts.outcome = Outcome::OPEN;
    facts.phase = Phase::WAITING;
    slot.cursor.line_len = 0;
    slot.cursor.data_len = 0;
    slot.cursor.left = 0;
}

/// Counts the bytes of a send that belongs to an open request.
#[inline(always)]
pub fn begin_send(slot: &mut Slot, bytes: u64, now: u64) {
    let facts = &mut slot.facts;
    if facts.phase == Phase::WAITING || facts.phase == Phase::HEAD {
        facts.head = now;
    }
    facts.response_bytes = facts.response_bytes.wrapping_add(bytes);
}

/// Notes which chunks went out with the first data.
#[inline(always)]
pub fn end_send(slot: &mut Slot, now: u64) {
    if slot.facts.first_data == now {
        slot.facts.first_chunks = slot.facts.chunks;
    }
}

/// True where the next bytes are data of which only the number matters.
#[inline(always)]
pub fn passes(slot: &Slot) -> bool {
    (slot.facts.phase == Phase::DATA && slot.facts.flags & (SSE | NDJSON) == 0)
        || slot.facts.phase == Phase::LOST
}

/// Takes up to `bytes` such bytes unread; returns how many they were.
#[inline(always)]
pub fn pass(slot: &mut Slot, bytes: u64, now: u64) -> u64 {
    if slot.facts.phase == Phase::LOST {
        slot.facts.last_data = now;
        return bytes;
    }
    let left = slot.cursor.left;
    let taken = if bytes < left { bytes } else { left };
    take(slot, taken, now);
    taken
}

/// Follows one window of a send with `remaining` bytes left. True when no more of this send
/// needs to be looked at: the rest is 0, or the response has ended.
#[inline(always)]
pub fn window<P: Payload>(payload: &mut P) -> bool {
    let (window, slot) = payload.parts();
    let remaining = window.remaining();
    let now = window.now();
    if remaining == 0 || slot.facts.phase == Phase::IDLE {
        return true;
    }
    if passes(slot) {
        let passed = pass(slot, remaining, now);
        window.set_remaining(remaining.wrapping_sub(passed));
        payload.skip(passed);
        return false;
    }
    window.open(slot);
    let filled = payload.fill();
    let (window, slot) = payload.parts();
    if filled == 0 {
        window.set_unreadable();
        unread(slot, remaining, now);
        window.set_remaining(0);
        return true;
    }
    window.set_end(filled);
    if slot.facts.phase == Phase::DATA {
        window.enter_data(slot);
    }
    payload.steps();
    let (window, slot) = payload.parts();
    // What a finished response leaves over belongs to another one: it stays in `remaining`.
    let left_over = window.left_over();
    let remaining = remaining.wrapping_sub(filled).wrapping_add(left_over);
    window.set_remaining(remaining);
    remaining == 0 || slot.facts.phase == Phase::IDLE
}

/// Accounts for bytes that could not be read, or were too many.
#[inline(always)]
pub fn unread(slot: &mut Slot, bytes: u64, now: u64) {
    slot.facts.flags |= TRUNCATED;
    slot.cursor.data_len = 0;
    slot.cursor.line_len = 0;
    if slot.facts.phase == Phase::DATA && bytes <= slot.cursor.left {
        take(slot, bytes, now);
    } else {
        slot.facts.phase = Phase::LOST;
        if slot.facts.first_data == 0 && slot.facts.status != 0 {
            slot.facts.first_data = now;
        }
        slot.facts.last_data = now;
    }
}

/// Looks at the next 64 bytes at most, up to a line's end; true when the window is used up or
/// the response has ended.
#[inline(always)]
pub fn step(window: &mut Window, slot: &mut Slot) -> bool {
    let cursor = window.cursor();
    let end = window.end();
    let phase = slot.facts.phase;
    if cursor >= end || phase == Phase::IDLE {
        return true;
    }
    let now = window.now();
    let data = phase == Phase::DATA;
    if passes(slot) {
        let passed = pass(slot, end - cursor, now);
        window.set_cursor(cursor.wrapping_add(passed));
        window.set_line(cursor.wrapping_add(passed));
        return false;
    }
    let mut limit = end;
    if data && slot.cursor.left < end - cursor {
        limit = cursor.wrapping_add(slot.cursor.left);
    }
    let (newline, next) = window.find_newline(cursor, limit);
    window.set_cursor(next);
    let next = window.cursor();
    if newline {
        // Nothing is kept of a line that is whole.
        if data {
            slot.cursor.data_len = 0;
        } else {
            slot.cursor.line_len = 0;
        }
        let line = Line::new(window);
        match phase {
            Phase::DATA => {
                if lines::is_chunk(&line, slot.facts.flags) {
                    slot.facts.chunks = slot.facts.chunks.wrapping_add(1);
                }
            }
            Phase::WAITING => lines::status(&line, slot),
            Phase::HEAD => {
                if line.is_blank() {
                    end_head(slot, now);
                } else {
                    lines::header(&line, slot);
                }
            }
            Phase::SIZE => size(&line, slot),
            _ => {
                if line.is_blank() {
                    done(slot, now);
                }
            }
        }
        window.set_line(next);
    } else if next >= limit {
        window.keep(slot, limit, data);
    }
    if data {
        take(slot, next.wrapping_sub(cursor), now);
        if slot.facts.phase == Phase::SIZE {
            window.set_line(next);
        }
    } else if slot.facts.phase == Phase::DATA {
        window.enter_data(slot);
    }
    false
}

/// Takes bytes of data; the last of them ends the chunk or the body.
#[inline(always)]
fn take(slot: &mut Slot, bytes: u64, now: u64) {
    let facts = &mut slot.facts;
    if facts.first_data == 0 {
        facts.first_data = now;
    }
    facts.last_data = now;
    if facts.flags & UNTIL_CLOSE != 0 {
        return;
    }
    slot.cursor.left = slot.cursor.left.wrapping_sub(bytes);
    if slot.cursor.left == 0 {
        if facts.flags & CHUNKED != 0 {
            facts.phase = Phase::SIZE;
        } else {
            done(slot, now);
        }
    }
}

/// The whole response has gone out.
#[inline(always)]
pub fn done(slot: &mut Slot, now: u64) {
    // The last line of NDJSON may lack its newline.
    let facts = &mut slot.facts;
    if facts.flags & NDJSON != 0 && slot.cursor.data_len != 0 {
        let first = slot.cursor.data[0] as u8;
        if first != b'\r' {
            facts.chunks = facts.chunks.wrapping_add(1);
        }
        slot.cursor.data_len = 0;
    }
    facts.end = now;
    facts.outcome = Outcome::DONE;
    facts.phase = Phase::IDLE;
}

/// The connection is gone with the request open; `facts.end` may hold the client's close.
#[inline(always)]
pub fn closed(slot: &mut Slot, client_left: bool, now: u64) {
    let facts = &mut slot.facts;
    let client_closed = facts.end;
    let last = latest(slot);
    // A client that closes its side alone still reads: data sent after that says so.
    let wanted = !client_left && client_closed <= last;
    if wanted && slot.facts.flags & UNTIL_CLOSE != 0 && slot.facts.phase == Phase::DATA {
        done(slot, last);
        return;
    }
    let facts = &mut slot.facts;
    if client_left {
        facts.end = now;
        facts.outcome = Outcome::ABORTED;
    } else if client_closed != 0 {
        facts.end = if client_closed > last {
            client_closed
        } else {
            last
        };
        facts.outcome = Outcome::ABORTED;
    } else {
        facts.end = last;
        facts.outcome = Outcome::INCOMPLETE;
    }
    facts.phase = Phase::IDLE;
}

/// The last moment at which a byte of the exchange was seen to move.
#[inline(always)]
fn latest(slot: &Slot) -> u64 {
    let facts = &slot.facts;
    if facts.last_data != 0 {
        facts.last_data
    } else if facts.head != 0 {
        facts.head
    } else {
        facts.request_end
    }
}

/// The blank line behind the headers.
#[inline(always)]
fn end_head(slot: &mut Slot, now: u64) {
    let facts = &mut slot.facts;
    let (status, flags) = (facts.status, facts.flags);
    if status < 200 && status != 101 {
        // An interim response: the true one is still to come.
        facts.status = 0;
        facts.flags = flags & !RESPONSE_FLAGS;
        facts.phase = Phase::WAITING;
        return;
    }
    let empty = flags & HEAD != 0
        || status == 204
        || status == 304
        || (flags & (LENGTH | CHUNKED) == LENGTH && slot.cursor.left == 0);
    if empty {
        done(slot, now);
    } else if status == 101 {
        // Another protocol until the connection closes.
        facts.flags = (flags & !RESPONSE_FLAGS) | UNTIL_CLOSE;
        facts.phase = Phase::DATA;
        slot.cursor.left = u64::MAX;
    } else if flags & CHUNKED != 0 {
        facts.phase = Phase::SIZE;
    } else {
        if flags & LENGTH == 0 {
            facts.flags = flags | UNTIL_CLOSE;
            slot.cursor.left = u64::MAX;
        }
        facts.phase = Phase::DATA;
    }
}

/// A chunk-size line, or the blank line behind a chunk's data.
#[inline(always)]
fn size(line: &Line<'_>, slot: &mut Slot) {
    if line.is_blank() {
        return;
    }
    match line.hexadecimal() {
        None => {
            slot.facts.phase = Phase::LOST;
            slot.facts.flags |= TRUNCATED;
        }
        Some(0) => slot.facts.phase = Phase::TRAILER,
        Some(bytes) => {
            slot.cursor.left = bytes;
            slot.facts.phase = Phase::DATA;
        }
    }
}

/// True for a request whose method has no body: a further request line is a further request.
#[inline(always)]
pub const fn is_bodyless(flags: u16) -> bool {
    flags & BODYLESS != 0
}
