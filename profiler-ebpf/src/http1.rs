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

mod framing;
mod lines;
mod request_line;
mod tail;
pub mod trace;
mod window;

pub use request_line::{Start, classify as request_line};
pub use tail::{KEPT, Kept, Memory, TAILS, Tail};
pub use window::{BYTES, FRONT, WINDOW, Window, mask};

use core::ptr::{read_volatile, write_volatile};

use crate::request::{
    BODYLESS, CHUNKED, EVENT, HELD, JSON, NDJSON, Outcome, Phase, SSE, Slot, TAIL, TRUNCATED,
    UNTIL_CLOSE, UPGRADED,
};
use framing::{end_head, size};
use lines::Line;
use window::rolled;

/// The most lines of a head that is taken at once.
const MOST_LINES: u64 = 12;

/// The bytes of one send, and how they are reached.
pub trait Payload: Memory {
    /// The buffer, and the socket that sends.
    fn parts(&mut self) -> (&mut Window, &mut Slot);
    /// The same, and where the response's end is kept; `None` where it is not.
    fn with_tail(&mut self) -> (&mut Window, &mut Slot, Option<&mut Tail>);
    /// Puts the next bytes at [`FRONT`] of the buffer, at most [`WINDOW`] (in the head fewer may
    /// do: a plain body is not read) and at most what the send has left, and returns how many;
    /// 0 if they cannot be read.
    fn fill(&mut self) -> u64;
    /// Passes over bytes without reading them.
    fn skip(&mut self, bytes: u64);
    /// Repeats [`step`] until it returns true.
    fn steps(&mut self);
    /// [`Window::is_text`], in whatever way suits the verifier.
    fn is_text(&mut self, from: u64, bytes: u64) -> bool {
        self.parts().0.is_text(from, bytes)
    }
}

/// Begins a request: `slot.facts` holds its first bytes, times and owner; all else is set here.
#[inline(always)]
pub fn begin_request(slot: &mut Slot, flags: u16) {
    let facts = &mut slot.facts;
    // One by one, as volatile: LLVM would make it a call of a loop over bytes.
    for time in [
        &mut facts.head,
        &mut facts.first_data,
        &mut facts.last_data,
        &mut facts.end,
        &mut facts.response_bytes,
    ] {
        // SAFETY: a field of `slot`.
        unsafe { write_volatile(time, 0) };
    }
    facts.chunks = 0;
    facts.first_chunks = 0;
    facts.status = 0;
    facts.flags = flags;
    facts.outcome = Outcome::OPEN;
    facts.phase = Phase::WAITING;
    trace::begin(facts);
    slot.cursor.line_len = 0;
    slot.cursor.data_len = 0;
    slot.cursor.body = 0;
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
    (phase(slot) == Phase::DATA && flags(slot) & (SSE | NDJSON) == 0) || phase(slot) == Phase::LOST
}

/// Takes up to `bytes` such bytes unread; returns how many they were.
#[inline(always)]
pub fn pass(slot: &mut Slot, bytes: u64, now: u64) -> u64 {
    if phase(slot) == Phase::LOST {
        slot.facts.last_data = now;
        return bytes;
    }
    let left = left(slot);
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
    if remaining == 0 || phase(slot) == Phase::IDLE {
        return true;
    }
    if passes(slot) {
        let passed = pass(slot, remaining, now);
        window.set_remaining(remaining.wrapping_sub(passed));
        payload.skip(passed);
        return false;
    }
    window.open(slot);
    let mut filled = window.ahead();
    if filled == 0 {
        filled = payload.fill();
    }
    let (window, slot) = payload.parts();
    window.set_ahead(0);
    if filled == 0 {
        window.set_unreadable();
        unread(slot, remaining, now);
        window.set_remaining(0);
        return true;
    }
    window.set_end(filled);
    if phase(slot) == Phase::DATA {
        window.enter_data(slot);
    }
    payload.steps();
    let (window, slot) = payload.parts();
    // What a finished response leaves over belongs to another one: it stays in `remaining`.
    let left_over = window.left_over();
    let remaining = remaining.wrapping_sub(filled).wrapping_add(left_over);
    window.set_remaining(remaining);
    remaining == 0 || phase(slot) == Phase::IDLE
}

/// True where a send may begin with all that [`head`] takes.
#[inline(always)]
pub fn may_be_head(slot: &Slot) -> bool {
    phase(slot) == Phase::WAITING && slot.cursor.line_len == 0
}

/// Takes the head of a response, if all of it is in the `length` bytes at [`FRONT`]; returns its
/// bytes. If it is not, or is written in an unusual way, 0 says that [`window`] must follow the
/// send from its beginning. Where both can, they do the same.
#[inline(always)]
pub fn head(window: &mut Window, slot: &mut Slot, length: u64, now: u64) -> u64 {
    let front = FRONT as u64;
    let limit = front.wrapping_add(length);
    window.set_line(front);
    lines::status(&Line::new(window), slot);
    window.set_end_offset(0);
    if phase(slot) == Phase::HEAD {
        let mut lines = 0;
        while lines < MOST_LINES {
            let line = window.line();
            window.find_line_break(line);
            if window.found() == 0 {
                break;
            }
            let next = window.cursor();
            if next.wrapping_add(2) > limit {
                break;
            }
            // What is set here twice, since the head proves to be cut, is set to the same.
            lines::header(&Line::new(window), slot);
            if window.is_line_break(next) {
                window.set_end_offset(next.wrapping_add(2));
                break;
            }
            window.set_line(next);
            lines = rolled(lines + 1);
        }
    }
    let end = window.end();
    if end == 0 {
        slot.facts.status = 0;
        set_phase(slot, Phase::WAITING);
        return 0;
    }
    end_head(slot, now);
    end.wrapping_sub(front)
}

/// True where a send of `length` bytes may be all that [`event`] takes.
#[inline(always)]
pub fn may_be_event(slot: &Slot, length: u64) -> bool {
    phase(slot) == Phase::SIZE
        && flags(slot) & (SSE | NDJSON) != 0
        && body(slot) & EVENT == 0
        && slot.cursor.line_len == 0
        && slot.cursor.data_len == 0
        && length >= lines::LEAST_EVENT
        && length <= WINDOW as u64
}

/// Takes a send whose `length` bytes lie at [`FRONT`], if it is one chunk with one line of
/// output, as most sends of a stream are. If it is anything else nothing changes, and false says
/// that [`window`] must follow it. Where both can, they do the same.
#[inline(always)]
pub fn event<P: Payload>(payload: &mut P, length: u64, now: u64) -> bool {
    let (window, slot) = payload.parts();
    let Some(event) = lines::event(window, length, flags(slot)) else {
        return false;
    };
    let before = event.from.wrapping_sub(FRONT as u64);
    if !payload.is_text(before, event.to.wrapping_sub(event.from)) {
        return false;
    }
    let (_, slot) = payload.parts();
    let facts = &mut slot.facts;
    if facts.first_data == 0 {
        facts.first_data = now;
    }
    facts.last_data = now;
    if event.may_count {
        let (window, slot, tail) = payload.with_tail();
        counted::<P>(window, slot, tail, event.from, event.to, false);
    } else {
        count(slot, 1);
    }
    true
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

/// Looks at the next 128 bytes at most, up to a line's end; true when the window is used up or
/// the response has ended.
#[inline(always)]
pub fn step<P: Payload>(payload: &mut P) -> bool {
    let (window, slot) = payload.parts();
    let cursor = window.cursor();
    let end = window.end();
    if cursor >= end || phase(slot) == Phase::IDLE {
        return true;
    }
    if passes(slot) {
        let passed = pass(slot, end - cursor, window.now());
        window.set_cursor(cursor.wrapping_add(passed));
        window.set_line(cursor.wrapping_add(passed));
        return false;
    }
    let mut limit = end;
    if phase(slot) == Phase::DATA {
        let left = left(slot);
        if left < end - cursor {
            limit = cursor.wrapping_add(left);
        }
    }
    window.set_limit(limit);
    window.find_newline(cursor, limit);
    if phase(slot) == Phase::DATA {
        data(payload, cursor);
    } else {
        framing(window, slot);
    }
    let (window, slot) = payload.parts();
    window.cursor() >= window.end() || phase(slot) == Phase::IDLE
}

/// Data from `start` to the window's new cursor.
#[inline(always)]
fn data<P: Payload>(payload: &mut P, start: u64) {
    let (window, slot) = payload.parts();
    if window.found() != 0 {
        data_line(payload);
        let (window, slot) = payload.parts();
        slot.cursor.data_len = 0;
        // Most lines of a stream are followed by an empty one.
        if window.pass_newline() {
            set_body(slot, body(slot) & !EVENT);
        }
        window.set_line(window.cursor());
    } else if window.cursor() >= window.limit() {
        let kept = u64::from(slot.cursor.data_len);
        let (window, slot, tail) = payload.with_tail();
        if let Some(tail) = tail {
            let from = window.line().wrapping_add(kept);
            tail.piece::<P>(window, from, window.limit(), kept == 0);
        }
        window.keep_data(slot);
    }
    let (window, slot) = payload.parts();
    take(slot, window.cursor().wrapping_sub(start), window.now());
    if phase(slot) == Phase::SIZE {
        window.pass_line_end();
        window.set_line(window.cursor());
    }
}

/// A whole line of data, whose newline lies before the cursor.
#[inline(always)]
fn data_line<P: Payload>(payload: &mut P) {
    let (window, slot, tail) = payload.with_tail();
    let line = Line::new(window);
    if flags(slot) & SSE != 0 {
        if line.is_blank() {
            set_body(slot, body(slot) & !EVENT);
            return;
        }
        // An event is counted with its first line of output; it ends with a blank line.
        if !lines::is_chunk(&line, SSE) || body(slot) & EVENT != 0 {
            return;
        }
        set_body(slot, body(slot) | EVENT);
    } else if line.is_blank() {
        return;
    }
    let kept = u64::from(slot.cursor.data_len);
    let from = window.line().wrapping_add(kept);
    let to = window.cursor().wrapping_sub(1);
    counted::<P>(window, slot, tail, from, to, kept != 0);
}

/// Counts a chunk of output whose line lies before `to`, from `from` in the window if it is not
/// `cut`. One that may be nothing but token counts is held back, unless it is the first.
#[inline(always)]
fn counted<M: Memory>(
    window: &Window,
    slot: &mut Slot,
    tail: Option<&mut Tail>,
    from: u64,
    to: u64,
    cut: bool,
) {
    if let Some(tail) = tail
        && tail.line_ends::<M>(window, from, to, cut)
    {
        let first = slot.facts.chunks == 0;
        count(slot, u32::from(first));
        let held = if first { TAIL } else { TAIL | HELD };
        set_flags(slot, flags(slot) | held);
        tail.set_chunks(slot.facts.chunks);
    } else {
        count(slot, 1);
    }
}

/// Adds chunks, and the one that was held back: it was not the last.
#[inline(always)]
fn count(slot: &mut Slot, chunks: u32) {
    let held = flags(slot) & HELD;
    if held != 0 {
        set_flags(slot, flags(slot) & !HELD);
    }
    let chunks = chunks.wrapping_add(u32::from(held != 0));
    slot.facts.chunks = slot.facts.chunks.wrapping_add(chunks);
}

/// A line that frames the data, or a piece of one.
#[inline(always)]
fn framing(window: &mut Window, slot: &mut Slot) {
    if window.found() == 0 {
        if window.cursor() >= window.limit() {
            window.keep_line(slot);
        }
        return;
    }
    let line = Line::new(window);
    let now = window.now();
    match phase(slot) {
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
    slot.cursor.line_len = 0;
    if phase(slot) == Phase::DATA {
        window.enter_data(slot);
    } else {
        window.set_line(window.cursor());
    }
}

/// Where the exchange stands: read anew each time, so that the verifier need not follow what an
/// earlier test found. So for the others.
#[inline(always)]
fn phase(slot: &Slot) -> Phase {
    // SAFETY: a field of `slot`.
    unsafe { read_volatile(&raw const slot.facts.phase) }
}

#[inline(always)]
fn set_phase(slot: &mut Slot, phase: Phase) {
    // SAFETY: a field of `slot`.
    unsafe { write_volatile(&raw mut slot.facts.phase, phase) }
}

#[inline(always)]
fn flags(slot: &Slot) -> u16 {
    // SAFETY: a field of `slot`.
    unsafe { read_volatile(&raw const slot.facts.flags) }
}

#[inline(always)]
fn set_flags(slot: &mut Slot, flags: u16) {
    // SAFETY: a field of `slot`.
    unsafe { write_volatile(&raw mut slot.facts.flags, flags) }
}

#[inline(always)]
fn body(slot: &Slot) -> u8 {
    // SAFETY: a field of `slot`.
    unsafe { read_volatile(&raw const slot.cursor.body) }
}

#[inline(always)]
fn set_body(slot: &mut Slot, body: u8) {
    // SAFETY: a field of `slot`.
    unsafe { write_volatile(&raw mut slot.cursor.body, body) }
}

#[inline(always)]
fn left(slot: &Slot) -> u64 {
    // SAFETY: a field of `slot`.
    unsafe { read_volatile(&raw const slot.cursor.left) }
}

#[inline(always)]
fn set_left(slot: &mut Slot, left: u64) {
    // SAFETY: a field of `slot`.
    unsafe { write_volatile(&raw mut slot.cursor.left, left) }
}

/// Takes bytes of data; the last of them ends the chunk or the body.
#[inline(always)]
fn take(slot: &mut Slot, bytes: u64, now: u64) {
    let facts = &mut slot.facts;
    if facts.first_data == 0 {
        facts.first_data = now;
    }
    facts.last_data = now;
    if flags(slot) & UNTIL_CLOSE != 0 {
        return;
    }
    let left = left(slot).wrapping_sub(bytes);
    set_left(slot, left);
    if left == 0 {
        if flags(slot) & CHUNKED != 0 {
            set_phase(slot, Phase::SIZE);
        } else {
            done(slot, now);
        }
    }
}

/// The whole response has gone out.
#[inline(always)]
pub fn done(slot: &mut Slot, now: u64) {
    // The last line of NDJSON may lack its newline.
    if flags(slot) & NDJSON != 0 && slot.cursor.data_len != 0 {
        if slot.cursor.data[0] as u8 != b'\r' {
            count(slot, 1);
        }
        slot.cursor.data_len = 0;
    }
    if flags(slot) & SSE != 0 && slot.cursor.data_len != 0 {
        // It ended within a line, or its lines do not end as ours do: not all was counted.
        set_flags(slot, flags(slot) | TRUNCATED);
    }
    slot.facts.end = now;
    slot.facts.outcome = Outcome::DONE;
    set_phase(slot, Phase::IDLE);
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

/// True once the socket carries another protocol.
#[inline(always)]
pub fn is_session(slot: &Slot) -> bool {
    flags(slot) & UPGRADED != 0
}

/// True for JSON that does not stream and that answers a request with a body: it may hold token
/// counts.
#[inline(always)]
pub fn is_json(slot: &Slot) -> bool {
    body(slot) & JSON != 0 && flags(slot) & (SSE | NDJSON | BODYLESS) == 0
}

/// True for a request whose method has no body: a further request line is a further request.
#[inline(always)]
pub const fn is_bodyless(flags: u16) -> bool {
    flags & BODYLESS != 0
}
