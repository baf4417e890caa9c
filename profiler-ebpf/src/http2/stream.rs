//! A stream's request: the same [`Slot`] that a socket's request has in HTTP/1, so that all that
//! follows requests follows streams.
//!
//! Content types lie in compressed headers, which only the agent reads. What a body is made of is
//! therefore guessed from its first bytes (a gRPC message, a server-sent event, a line of JSON);
//! the agent, which knows better, drops the chunks of a guess that was wrong.

use core::ptr::{read_volatile, write_volatile};

use crate::http1::{self, Window};
use crate::request::{GRPC, HTTP2, NDJSON, Outcome, Phase, SSE, Slot, TRUNCATED, UNTIL_CLOSE};

/// Bytes before each gRPC message: a flag and a length.
const PREFIX: u64 = 5;

/// JSON that has no line's end in so many bytes is one answer, of which no more is read.
const LONGEST_FIRST_LINE: u64 = 4_096;

/// A request begins on `stream` of the connection whose slot is `connection`: a frame of `bytes`
/// was received.
#[inline(always)]
pub(super) fn begin(slot: &mut Slot, connection: &Slot, stream: u32, bytes: u64, now: u64) {
    http1::begin_request(slot, HTTP2);
    let (facts, from) = (&mut slot.facts, &connection.facts);
    // The path is the agent's to find; a notice has another mark here.
    // SAFETY: the first word of `line`, which is as aligned as the slot.
    unsafe { write_volatile(facts.line.as_mut_ptr().cast::<u64>(), 0) };
    facts.line_len = 0;
    facts.connection = from.id;
    facts.stream = stream;
    facts.socket = from.socket;
    facts.network = from.network;
    facts.peer = from.peer;
    facts.peer_tgid = from.peer_tgid;
    facts.peer_port = from.peer_port;
    facts.port = from.port;
    facts.family = from.family;
    facts.service = from.service;
    facts.tgid = from.tgid;
    facts.start = now;
    facts.request_end = now;
    facts.request_bytes = bytes;
}

/// A frame of `bytes` was received.
#[inline(always)]
pub(super) fn received(slot: &mut Slot, bytes: u64, now: u64) {
    let facts = &mut slot.facts;
    facts.request_bytes = facts.request_bytes.wrapping_add(bytes);
    facts.request_end = now;
}

/// A frame of `bytes` is being sent; `head` if it holds headers.
#[inline(always)]
pub(super) fn sends(slot: &mut Slot, bytes: u64, head: bool, now: u64) {
    let facts = &mut slot.facts;
    facts.response_bytes = facts.response_bytes.wrapping_add(bytes);
    if head && facts.first_data == 0 {
        facts.head = now;
        facts.phase = Phase::HEAD;
    }
}

/// Ends the request.
#[inline(always)]
pub(super) fn end(slot: &mut Slot, outcome: Outcome, now: u64) {
    // The last line of NDJSON may lack its newline.
    let last = slot.cursor.data_len != 0 && slot.cursor.data[0] as u8 != b'\r';
    if outcome == Outcome::DONE && flags(slot) & NDJSON != 0 && last {
        slot.facts.chunks = slot.facts.chunks.wrapping_add(1);
    }
    slot.facts.end = now;
    slot.facts.outcome = outcome;
    slot.facts.phase = Phase::IDLE;
}

#[inline(always)]
fn flags(slot: &Slot) -> u16 {
    // SAFETY: a field of `slot`.
    unsafe { read_volatile(&raw const slot.facts.flags) }
}

/// Of the next `content` bytes of data, how many need not be read.
#[inline(always)]
pub(super) fn unread(slot: &Slot, content: u64) -> u64 {
    let flags = flags(slot);
    if flags & GRPC != 0 {
        let left = slot.cursor.left;
        return if left < content { left } else { content };
    }
    if flags & (SSE | NDJSON) != 0 || slot.facts.first_data == 0 {
        return 0;
    }
    content
}

/// Notes that data went out.
#[inline(always)]
pub(super) fn sends_data(slot: &mut Slot, now: u64) {
    let facts = &mut slot.facts;
    if facts.first_data == 0 {
        facts.first_data = now;
    }
    facts.last_data = now;
    facts.phase = Phase::DATA;
}

/// Notes which chunks went out with the first data.
#[inline(always)]
pub(super) fn note_first_chunks(slot: &mut Slot, now: u64) {
    if slot.facts.first_data == now {
        slot.facts.first_chunks = slot.facts.chunks;
    }
}

/// Passes over `bytes` of data that were not read.
#[inline(always)]
pub(super) fn pass(slot: &mut Slot, bytes: u64) {
    if flags(slot) & GRPC != 0 {
        slot.cursor.left = slot.cursor.left.wrapping_sub(bytes);
    }
}

/// The connection has been lost so many times before the stream's data.
#[inline(always)]
pub(super) fn expect(slot: &mut Slot, losses: u8) {
    slot.cursor.line_len = losses;
}

/// Data that could not be read may have lain in this stream: where its messages begin is then
/// not known.
#[inline(always)]
pub(super) fn check(slot: &mut Slot, losses: u8) {
    if slot.cursor.line_len == losses {
        return;
    }
    slot.cursor.line_len = losses;
    if slot.facts.first_data != 0 {
        slot.facts.flags = flags(slot) & !(GRPC | SSE | NDJSON | UNTIL_CLOSE) | TRUNCATED;
    }
}

/// Before the first data: guesses from `length` bytes at the cursor what the body is made of.
#[inline(always)]
pub(super) fn guess(window: &Window, slot: &mut Slot, length: u64) {
    if slot.facts.first_data != 0 {
        return;
    }
    slot.cursor.left = 0;
    slot.cursor.data_len = 0;
    let word = window.word(window.cursor(), 0);
    let first = word & 0xff;
    if first <= 1 {
        slot.cursor.data = [0; 2];
        slot.facts.flags |= GRPC;
    } else if is_event(word, length) {
        // All that comes is data, whatever frames it lies in.
        slot.cursor.left = u64::MAX;
        slot.facts.flags |= SSE | UNTIL_CLOSE;
    } else if first == b'{'.into() {
        // Its bytes are counted down.
        slot.cursor.left = u64::MAX;
        slot.facts.flags |= NDJSON;
    }
}

/// Behind lines that were looked at: JSON may turn out to have none.
#[inline(always)]
pub(super) fn give_up_lines(slot: &mut Slot) {
    let seen = u64::MAX - slot.cursor.left;
    if flags(slot) & NDJSON != 0 && slot.facts.chunks == 0 && seen > LONGEST_FIRST_LINE {
        slot.facts.flags = flags(slot) & !NDJSON;
        slot.cursor.data_len = 0;
    }
}

/// True if `length` bytes may begin a stream of server-sent events: a field's name or a comment.
#[inline(always)]
fn is_event(word: u64, length: u64) -> bool {
    let known = if length >= 8 {
        u64::MAX
    } else {
        (1 << (8 * (length & 7))) - 1
    };
    let begins =
        |text: u64, bytes: u32| (word ^ text) & known & (u64::MAX >> (64 - 8 * bytes)) == 0;
    begins(const { pattern(b"data:") }, 5)
        || begins(const { pattern(b"event:") }, 6)
        || begins(const { pattern(b"id:") }, 3)
        || begins(const { pattern(b"retry:") }, 6)
        || begins(const { pattern(b":") }, 1)
}

const fn pattern(text: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = text.len();
    while i > 0 {
        i -= 1;
        word = word << 8 | text[i] as u64;
    }
    word
}

/// True if the body's lines are to be looked at.
#[inline(always)]
pub(super) fn is_lines(slot: &Slot) -> bool {
    flags(slot) & (SSE | NDJSON) != 0
}

/// Takes gRPC data at the window's cursor, of which `length` bytes are here: the rest of a
/// message, or what is here of the bytes before one. Returns how many it took; of any other
/// body, all.
#[inline(always)]
pub(super) fn message(window: &Window, slot: &mut Slot, length: u64) -> u64 {
    if flags(slot) & GRPC == 0 {
        return length;
    }
    let left = slot.cursor.left;
    if left != 0 {
        let taken = if left < length { left } else { length };
        slot.cursor.left = left.wrapping_sub(taken);
        return taken;
    }
    let word = window.word(window.cursor(), 0);
    let have = slot.cursor.data_len;
    let taken;
    if have == 0 && length >= PREFIX {
        slot.cursor.data[0] = word & 0xff_ffff_ffff;
        taken = PREFIX;
    } else {
        slot.cursor.data[0] |= (word & 0xff) << (8 * u32::from(have & 7));
        slot.cursor.data_len = have.wrapping_add(1);
        taken = 1;
        if u64::from(have) + 1 < PREFIX {
            return taken;
        }
    }
    let prefix = slot.cursor.data[0];
    slot.cursor.data[0] = 0;
    slot.cursor.data_len = 0;
    if prefix & 0xff > 1 {
        // Not gRPC, or out of step with it.
        slot.facts.flags = flags(slot) & !GRPC | TRUNCATED;
        return taken;
    }
    let bytes = (prefix >> 8 & 0xff) << 24
        | (prefix >> 16 & 0xff) << 16
        | (prefix >> 24 & 0xff) << 8
        | (prefix >> 32 & 0xff);
    slot.cursor.left = bytes;
    slot.facts.chunks = slot.facts.chunks.wrapping_add(1);
    taken
}
