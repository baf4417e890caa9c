//! HTTP/2 from the server's side of a connection, for any split of its bytes.
//!
//! In: what the server received and sent, each direction in its own order. Out: requests (one a
//! stream, each with a [`Slot`] of its own), and header blocks for the agent, which alone can
//! decode them. Pure and without allocation; the kernel runs this very code, written as
//! [`crate::http1`] is. Sources: RFC 9113 (frames, streams), gRPC's protocol over HTTP/2.
//!
//! The walk reads nine bytes of each frame and passes over its payload by counting; it looks
//! into header blocks, RST_STREAM, GOAWAY, and those bodies whose chunks it counts. A request
//! begins with its first HEADERS and ends with the server's END_STREAM, or with a reset.

mod frames;
mod stream;

pub use frames::{Found, Frames, find};

use crate::http1::{FRONT, WINDOW, Window, mask};
use crate::request::{
    BLOCK_BEGIN, BLOCK_END, BLOCK_PROMISE, BLOCK_SENT, HTTP2, NOTICE, Notice, Outcome, Phase, Slot,
};
use frames::{
    BLOCK_NEW, BLOCK_OPEN, BLOCK_PROMISED, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY,
    HEADERS, PUSH_PROMISE, RST_STREAM,
};

/// Bytes read at a time where mostly frame headers are looked for.
const SMALL_WINDOW: u64 = 256;

/// What is known of a connection: it lies where its socket's slot has the request line, which no
/// such socket has.
#[repr(C)]
#[derive(Debug)]
pub struct Connection {
    received: Frames,
    sent: Frames,
    /// The highest stream that a request has begun on.
    last_stream: u32,
    /// Times that bytes sent could not be followed.
    losses: u8,
    spare: [u8; 11],
}

const _: () = assert!(size_of::<Connection>() == crate::request::REQUEST_LINE);
const _: () = assert!(core::mem::offset_of!(Slot, facts) == 0);
const _: () = assert!(core::mem::offset_of!(crate::request::Facts, line) == 0);

/// The connection in its socket's slot.
#[inline(always)]
fn connection(slot: &mut Slot) -> &mut Connection {
    // SAFETY: `line` lies at the slot's beginning (checked above), so it is aligned as the slot
    // is, and is of the same size; every bit pattern is a connection.
    unsafe { &mut *(&raw mut *slot).cast::<Connection>() }
}

/// How a connection's streams are reached.
pub trait Streams {
    /// True for what the server sent, false for what it received.
    const SENT: bool;
    /// The buffer, and the slot of the connection.
    fn parts(&mut self) -> (&mut Window, &mut Slot);
    /// Puts the next bytes at [`crate::http1::FRONT`] of the buffer, at most `wanted`; returns
    /// how many, 0 if they cannot be read.
    fn fill(&mut self, wanted: u64) -> u64;
    /// Passes over bytes without reading them.
    fn skip(&mut self, bytes: u64);
    /// Repeats [`step`] until it returns true.
    fn steps(&mut self);
    /// The slot of an open stream, null if there is none.
    fn find(&mut self, stream: u32) -> *mut Slot;
    /// Begins a request with [`begin_stream`], in a slot of its own.
    fn begin(&mut self, stream: u32, bytes: u64);
    /// Before a stream's slot is changed.
    fn begin_write(&mut self, slot: *mut Slot);
    /// After it was changed.
    fn end_write(&mut self, slot: *mut Slot);
    /// The request has ended: gives it to the agent, and the slot back.
    fn finish(&mut self, stream: u32, slot: *mut Slot);
    /// Repeats [`crate::http1::step`] on the stream's slot until it returns true.
    fn lines(&mut self, slot: *mut Slot);
    /// Gives the agent a piece of a header block: [`Notice::length`] bytes at the window's
    /// cursor.
    fn block(&mut self, stream: u32, kind: u32, number: u16, length: u64);
    /// The server says that it serves no stream above this one.
    fn ends_above(&mut self, stream: u32);
}

/// Makes `slot` that of an HTTP/2 connection whose preface is being received; `before` bytes of
/// it were before now.
#[inline(always)]
pub fn begin_connection(slot: &mut Slot, before: u32) {
    reset(slot);
    connection(slot).received.expect_preface(before);
}

/// Makes `slot` that of an HTTP/2 connection that is found open: a frame begins with the next
/// byte received; what is being sent is not known.
#[inline(always)]
pub fn join_connection(slot: &mut Slot) {
    reset(slot);
    connection(slot).sent.lose();
}

#[inline(always)]
fn reset(slot: &mut Slot) {
    let connection = connection(slot);
    connection.received.reset();
    connection.sent.reset();
    connection.last_stream = 0;
    connection.losses = 0;
    slot.facts.line_len = 0;
    slot.facts.flags = HTTP2;
    slot.facts.phase = Phase::IDLE;
}

/// A request begins on `stream` of `connection`: a frame of `bytes` was received.
#[inline(always)]
pub fn begin_stream(slot: &mut Slot, connection: &mut Slot, stream: u32, bytes: u64, now: u64) {
    let losses = self::connection(connection).losses;
    stream::begin(slot, connection, stream, bytes, now);
    stream::expect(slot, losses);
}

/// True if what was received at once, of `length` bytes, is a client's preface and made no sense
/// as frames: the slot's connection is gone, and another one has its socket's address (the end of
/// a Unix socket is not seen).
#[inline(always)]
pub fn is_restart(window: &Window, length: u64) -> bool {
    window.unreadable() != 0
        && length >= 24
        && window.beginning() == const { (word(b"PRI * HT"), word(b"TP/2.0\r\n")) }
}

const fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// True for the slot of an HTTP/2 connection.
#[inline(always)]
pub fn is_connection(slot: &Slot) -> bool {
    slot.facts.flags & HTTP2 != 0 && slot.facts.stream == 0
}

#[inline(always)]
fn frames<S: Streams>(streams: &mut S) -> (&mut Window, &mut Frames) {
    let (window, slot) = streams.parts();
    let connection = connection(slot);
    let frames = if S::SENT {
        &mut connection.sent
    } else {
        &mut connection.received
    };
    (window, frames)
}

/// Follows one window of what was moved at once, of which [`Window::remaining`] bytes are left.
/// True when nothing is.
#[inline(always)]
pub fn window<S: Streams>(streams: &mut S) -> bool {
    let (window, frames) = frames(streams);
    let remaining = window.remaining();
    if remaining == 0 {
        return true;
    }
    if !frames.is_lost() && !frames.in_header() {
        let passed = pass(streams, remaining);
        if passed != 0 {
            let (window, _) = streams.parts();
            window.set_remaining(remaining.wrapping_sub(passed));
            streams.skip(passed);
            return false;
        }
    }
    let wanted = wanted(streams, remaining);
    let filled = streams.fill(wanted);
    let (window, frames) = self::frames(streams);
    if filled == 0 {
        window.set_unreadable();
        window.set_remaining(0);
        lose(streams);
        return true;
    }
    window.set_cursor(FRONT as u64);
    window.set_end(filled);
    if frames.is_lost() && !regain(streams, filled) {
        let (window, _) = streams.parts();
        window.set_remaining(0);
        return true;
    }
    streams.steps();
    let (window, frames) = self::frames(streams);
    let left_over = window.left_over();
    window.set_remaining(if frames.is_lost() {
        0
    } else {
        remaining.wrapping_sub(filled).wrapping_add(left_over)
    });
    frames.is_lost()
}

/// How many bytes to read: few where frame headers are looked for, all where content is.
#[inline(always)]
fn wanted<S: Streams>(streams: &mut S, remaining: u64) -> u64 {
    let (_, frames) = frames(streams);
    let in_content = !frames.is_lost() && !frames.in_header() && frames.front() == 0;
    let most = if in_content {
        WINDOW as u64
    } else {
        SMALL_WINDOW
    };
    if remaining < most { remaining } else { most }
}

/// Passes over payload that need not be read; returns how many bytes.
#[inline(always)]
fn pass<S: Streams>(streams: &mut S, remaining: u64) -> u64 {
    let (window, frames) = frames(streams);
    let now = window.now();
    if frames.front() != 0 {
        return 0;
    }
    let (left, content, stream) = (u64::from(frames.left()), frames.content(), frames.stream());
    let most = if content == 0 { left } else { content };
    if content != 0 && frames.is_read() {
        return 0;
    }
    let mut passed = if most < remaining { most } else { remaining };
    if content != 0 && frames.kind() == DATA && S::SENT {
        let slot = streams.find(stream);
        if !slot.is_null() {
            streams.begin_write(slot);
            // SAFETY: a slot that `find` gave.
            let open = unsafe { &mut *slot };
            stream::check(open, losses(streams));
            passed = stream::unread(open, passed);
            if passed != 0 {
                stream::sends_data(open, now);
                stream::pass(open, passed);
            }
            streams.end_write(slot);
        }
    }
    if passed != 0 {
        advance(streams, passed);
    }
    passed
}

/// Looks for the beginning of a frame where none is known to be, in the first `filled` bytes of
/// what was moved at once.
#[inline(always)]
fn regain<S: Streams>(streams: &mut S, filled: u64) -> bool {
    let (window, _) = frames(streams);
    // Only what was moved first can be told from the midst of something.
    let found = if filled < 9 {
        false
    } else if S::SENT {
        match frames::server_frame(window) {
            None => false,
            Some(0) => true,
            Some(stream) => !streams.find(stream).is_null(),
        }
    } else {
        find(window, filled) == Found::Request
    };
    if found {
        let (_, frames) = frames(streams);
        frames.expect_frame();
    }
    found
}

/// Takes the next piece of the window: a frame's header, or payload of one kind. True when the
/// window is used up, or the walk is lost.
#[inline(always)]
pub fn step<S: Streams>(streams: &mut S) -> bool {
    let (window, frames) = frames(streams);
    let here = window.left_over();
    if here == 0 || frames.is_lost() {
        return true;
    }
    if frames.in_header() {
        if frames.take_header(window) {
            begin_frame(streams);
        }
    } else {
        let taken = payload(streams, here);
        let (window, _) = self::frames(streams);
        if taken == 0 {
            window.set_unreadable();
            lose(streams);
            return true;
        }
        window.set_cursor(window.cursor().wrapping_add(taken));
        advance(streams, taken);
    }
    let (window, frames) = self::frames(streams);
    window.left_over() == 0 || frames.is_lost()
}

/// Takes payload at the cursor, of which `here` bytes may be: returns how many, 0 if it makes no
/// sense.
#[inline(always)]
fn payload<S: Streams>(streams: &mut S, here: u64) -> u64 {
    let (window, frames) = frames(streams);
    let (left, content) = (u64::from(frames.left()), frames.content());
    let available = if left < here { left } else { here };
    if frames.front() != 0 {
        return frames.take_front(window, available);
    }
    if content == 0 {
        return available;
    }
    let piece = if content < here { content } else { here };
    match frames.kind() {
        DATA if S::SENT => data(streams, piece),
        HEADERS | PUSH_PROMISE | CONTINUATION => {
            block(streams, piece, piece == content);
            piece
        }
        RST_STREAM | GOAWAY => {
            frames.take_number(window);
            1
        }
        _ => piece,
    }
}

/// Payload bytes were taken; the last of them ends the frame.
#[inline(always)]
fn advance<S: Streams>(streams: &mut S, bytes: u64) {
    let (_, frames) = frames(streams);
    let left = frames.left().wrapping_sub(bytes as u32);
    frames.set_left(left);
    if left == 0 {
        end_frame(streams);
    }
}

/// Data of a response, of which `piece` bytes lie at the cursor; returns how many it took.
#[inline(never)]
fn data<S: Streams>(streams: &mut S, piece: u64) -> u64 {
    let (window, frames) = frames(streams);
    let now = window.now();
    let slot = {
        let stream = frames.stream();
        streams.find(stream)
    };
    if slot.is_null() {
        return piece;
    }
    streams.begin_write(slot);
    // SAFETY: a slot that `find` gave.
    let open = unsafe { &mut *slot };
    stream::check(open, losses(streams));
    let (window, _) = streams.parts();
    stream::guess(window, open, piece);
    stream::sends_data(open, now);
    let taken = if stream::is_lines(open) {
        let (start, end) = (window.cursor(), window.end());
        window.set_end_offset(start.wrapping_add(piece));
        window.enter_data(open);
        streams.lines(slot);
        let (window, _) = streams.parts();
        window.set_end_offset(end);
        window.set_cursor(start);
        // SAFETY: as above.
        stream::give_up_lines(unsafe { &mut *slot });
        piece
    } else {
        stream::message(window, open, piece)
    };
    // SAFETY: as above.
    stream::note_first_chunks(unsafe { &mut *slot }, now);
    streams.end_write(slot);
    taken
}

/// Gives a piece of a header block on; `all` if it is the last of its frame.
#[inline(always)]
fn block<S: Streams>(streams: &mut S, piece: u64, all: bool) {
    let (_, frames) = frames(streams);
    let state = frames.block();
    if state & BLOCK_OPEN == 0 {
        return;
    }
    let mut kind = if S::SENT { BLOCK_SENT } else { 0 };
    if state & BLOCK_NEW != 0 {
        kind |= BLOCK_BEGIN;
    }
    if state & BLOCK_PROMISED != 0 {
        kind |= BLOCK_PROMISE;
    }
    let mut state = state & !BLOCK_NEW;
    if all && frames.flags() & END_HEADERS != 0 {
        kind |= BLOCK_END;
        state &= !BLOCK_OPEN;
    }
    frames.set_block(state);
    let number = frames.number().wrapping_add(1);
    frames.set_number(number);
    let stream = frames.stream();
    streams.block(stream, kind, number, piece);
}

/// A frame's header is known.
#[inline(never)]
fn begin_frame<S: Streams>(streams: &mut S) {
    let (window, frames) = frames(streams);
    let now = window.now();
    if !frames.is_plausible() {
        window.set_unreadable();
        lose(streams);
        return;
    }
    let (kind, stream) = (frames.kind(), frames.stream());
    let end = frames.flags() & END_STREAM;
    match kind {
        HEADERS => frames.set_block(BLOCK_OPEN | BLOCK_NEW | end),
        PUSH_PROMISE => frames.set_block(BLOCK_OPEN | BLOCK_NEW | BLOCK_PROMISED),
        _ => {}
    }
    let (left, front) = (frames.left(), frames.front());
    if kind == HEADERS || kind == DATA {
        let bytes = u64::from(left) + 9;
        let slot = streams.find(stream);
        if !slot.is_null() {
            streams.begin_write(slot);
            // SAFETY: a slot that `find` gave.
            let open = unsafe { &mut *slot };
            if S::SENT {
                stream::sends(open, bytes, kind == HEADERS, now);
            } else {
                stream::received(open, bytes, now);
            }
            streams.end_write(slot);
        } else if !S::SENT && kind == HEADERS && is_new(streams, stream) {
            streams.begin(stream, bytes);
        }
    }
    if left < u32::from(front & 0x7f) {
        // No room for what its flags promise.
        let (window, _) = streams.parts();
        window.set_unreadable();
        lose(streams);
    } else if left == 0 {
        end_frame(streams);
    }
}

/// True for a stream above all before: a client's, not used yet.
#[inline(always)]
fn is_new<S: Streams>(streams: &mut S, stream: u32) -> bool {
    let (_, slot) = streams.parts();
    let connection = connection(slot);
    if stream & 1 == 0 || stream <= connection.last_stream {
        return false;
    }
    connection.last_stream = stream;
    true
}

/// The present frame's last byte has come.
#[inline(never)]
fn end_frame<S: Streams>(streams: &mut S) {
    let (window, frames) = frames(streams);
    let now = window.now();
    let (kind, stream, flags) = (frames.kind(), frames.stream(), frames.flags());
    let number = frames.number_taken();
    frames.expect_frame();
    let mut end = 0;
    match kind {
        DATA => end = flags & END_STREAM,
        HEADERS | CONTINUATION | PUSH_PROMISE if flags & END_HEADERS != 0 => {
            let state = frames.block();
            if state & BLOCK_OPEN != 0 {
                // The last piece was empty.
                block(streams, 0, true);
            }
            let (_, frames) = self::frames(streams);
            frames.set_block(0);
            // A promised stream's block ends nothing.
            if kind != PUSH_PROMISE {
                end = state & END_STREAM;
            }
        }
        GOAWAY if S::SENT => streams.ends_above(number),
        _ => {}
    }
    let outcome = match kind {
        RST_STREAM if S::SENT => Outcome::INCOMPLETE,
        RST_STREAM => Outcome::ABORTED,
        _ if S::SENT && end != 0 => Outcome::DONE,
        _ if !S::SENT && kind == DATA => Outcome::OPEN,
        _ => return,
    };
    let slot = streams.find(stream);
    if slot.is_null() {
        return;
    }
    streams.begin_write(slot);
    // SAFETY: a slot that `find` gave.
    let open = unsafe { &mut *slot };
    if outcome == Outcome::OPEN {
        stream::received(open, 0, now);
        streams.end_write(slot);
    } else {
        stream::end(open, outcome, now);
        streams.finish(stream, slot);
    }
}

/// Gives this direction up until a frame is found to begin: its bytes could not be read, made no
/// sense, or were more than are followed.
#[inline(always)]
pub fn lose<S: Streams>(streams: &mut S) {
    let (_, frames) = frames(streams);
    frames.lose();
    let (_, slot) = streams.parts();
    let connection = connection(slot);
    connection.losses = connection.losses.wrapping_add(1);
}

/// The times that bytes sent on the connection could not be followed: a stream's messages are
/// counted only while it is what it was at the stream's beginning.
#[inline(always)]
fn losses<S: Streams>(streams: &mut S) -> u8 {
    let (_, slot) = streams.parts();
    connection(slot).losses
}

/// Bytes of a notice, which is put before a piece of a header block.
pub const NOTICE_BYTES: usize = size_of::<Notice>();

/// [`Notice::stream`], `number` and `length` as they lie in memory (a BPF object is
/// little-endian).
#[inline(always)]
pub const fn notice_head(stream: u32, number: u16, length: u64) -> u64 {
    stream as u64 | (number as u64) << 32 | length << 48
}

/// Writes a notice right before the window's cursor, over bytes that have been used: windows
/// begin at [`FRONT`], so that there is room. Returns its offset in the window's bytes, at most
/// 1,047.
#[inline(always)]
pub fn write_notice(window: &mut Window, connection: u64, head: u64, kind: u32) -> u64 {
    let cursor = window.cursor();
    let at = cursor.wrapping_sub(NOTICE_BYTES as u64);
    window.set_word(at, 0, NOTICE);
    window.set_word(at, 8, connection);
    window.set_word(at, 16, head);
    window.set_word(at, 24, u64::from(kind));
    window.set_word(at, 32, window.now());
    mask::<0x3ff>(cursor.wrapping_sub(FRONT as u64)).wrapping_add((FRONT - NOTICE_BYTES) as u64)
}
