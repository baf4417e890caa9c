//! What is done with the bytes of a socket, whichever hook tells of them: received, sent, the
//! client gone, the socket gone.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel};
use profiler_ebpf::http1::{self, FRONT, Start, mask};
use profiler_ebpf::request::{
    CLIENT_CLOSED, HTTP2, LINE_WHOLE, METHOD_CUT, Phase, REQUEST_LINE, Slot, UPGRADED,
};

use super::clients;
use super::http2;
use super::payload::{self, Buffer};
use super::response::follow_send;
use super::slots::{allocate, begin_write, count, emit, end_write, next_id, release};
use super::socket::{AF_UNIX, Socket};
use super::source::{Direction, Origin};
use super::tls;
use super::trace::read_head;

/// Socket states in which a server answers what it reads; in any other it drains.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

#[inline(always)]
pub(super) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// A process of `owner`'s service received `length` bytes, which lie at `origin`. `found` is the
/// socket's slot, null if it has none.
#[inline(always)]
pub(super) fn received<S: Socket, O: Origin>(
    socket: S,
    found: *mut Slot,
    origin: O,
    length: u64,
    tgid: u32,
    owner: u8,
) {
    if O::BELOW_TLS && tls::receives(socket.key(), found, owner) {
        return;
    }
    let Some(buffer) = origin.buffer() else {
        return;
    };
    let mut kept = 0;
    let mut phase = Phase::IDLE;
    if !found.is_null() {
        // SAFETY: a slot of the array.
        let facts = unsafe { &mut (*found).facts };
        if facts.flags & (UPGRADED | HTTP2) != 0 {
            if facts.flags & HTTP2 != 0 {
                http2::received(found, buffer, origin, length, tgid, owner);
            }
            return;
        }
        phase = facts.phase;
        let line_known = facts.flags & LINE_WHOLE != 0;
        if phase == Phase::WAITING && line_known && !http1::is_bodyless(facts.flags) {
            more_received(found, buffer, origin, length);
            return;
        }
        let method_cut = phase == Phase::IDLE && facts.flags & METHOD_CUT != 0;
        if method_cut || (phase == Phase::WAITING && !line_known) {
            kept = u64::from(facts.line_len);
        }
    }
    payload::open(buffer, origin, Direction::Received, length);
    let filled = payload::beginning(buffer, length, REQUEST_LINE as u64);
    if filled == 0 {
        if phase != Phase::IDLE {
            more_received(found, buffer, origin, length);
        }
        count!(unreadable);
        return;
    }
    if kept != 0 {
        if !found.is_null()
            && continued(
                socket, found, buffer, origin, kept, filled, length, tgid, owner,
            )
        {
            http2::begin(socket, found, kept, tgid, owner);
            http2::received(found, buffer, origin, length, tgid, owner);
        }
        return;
    }
    // SAFETY: this CPU's buffer.
    let (first, second) = unsafe { (*buffer).window.beginning() };
    let mut start = http1::request_line(first, second, filled);
    let mut joined = false;
    if start == Start::No && found.is_null() {
        // SAFETY: this CPU's buffer.
        joined = http2::may_join(unsafe { &(*buffer).window }, filled);
        if joined {
            start = Start::Http2;
        }
    }
    if start == Start::No || (start == Start::Partial && phase != Phase::IDLE) {
        if phase != Phase::IDLE {
            more_received(found, buffer, origin, length);
        }
        return;
    }
    if phase == Phase::WAITING {
        // A client that does not wait for its response: what comes is not followed.
        count!(pipelined);
        more_received(found, buffer, origin, length);
        return;
    }
    let state = socket.state();
    if state != ESTABLISHED && state != CLOSE_WAIT {
        // The server has closed and throws away what still comes; the client will ask again.
        count!(drained);
        return;
    }
    let slot = if found.is_null() {
        allocate(socket.key())
    } else {
        found
    };
    if slot.is_null() {
        return;
    }
    let now = now();
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        if phase != Phase::IDLE {
            http1::closed(&mut *slot, false, now);
            emit(slot);
        }
        if start == Start::Http2 {
            end_write(slot);
            if joined {
                http2::join(socket, slot, tgid, owner);
            } else {
                http2::begin(socket, slot, 0, tgid, owner);
            }
            http2::received(slot, buffer, origin, length, tgid, owner);
            return;
        }
        (*slot).facts.start = now;
        (*slot).facts.request_bytes = 0;
        (*slot).facts.line_len = 0;
        (*slot).facts.flags = METHOD_CUT;
        begin(socket, slot, start, tgid, owner);
        append_line(slot, buffer, 0, filled);
        if (*slot).facts.phase == Phase::WAITING {
            read_head(buffer, slot, origin, length);
        }
        (*slot).facts.request_bytes = length;
        (*slot).facts.request_end = now;
        end_write(slot);
    }
}

/// A request line that came in pieces goes on. True if it is the preface of HTTP/2 instead.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined: the call's own values")]
fn continued<S: Socket, O: Origin>(
    socket: S,
    slot: *mut Slot,
    buffer: *mut Buffer,
    origin: O,
    kept: u64,
    filled: u64,
    length: u64,
    tgid: u32,
    owner: u8,
) -> bool {
    let mut is_preface = false;
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        append_line(slot, buffer, kept, filled);
        let facts = &mut (*slot).facts;
        facts.request_end = now();
        if facts.phase == Phase::IDLE {
            let line = (&raw const facts.line).cast::<u64>();
            let (first, second) = (*line, *line.add(1));
            let known = u64::from(facts.line_len);
            match http1::request_line(first, second, known) {
                Start::No => {
                    facts.line_len = 0;
                    facts.flags = 0;
                }
                Start::Http2 => is_preface = true,
                start => begin(socket, slot, start, tgid, owner),
            }
        }
        if (*slot).facts.phase == Phase::WAITING {
            read_head(buffer, slot, origin, length);
        }
        let facts = &mut (*slot).facts;
        facts.request_bytes = facts.request_bytes.wrapping_add(length);
        end_write(slot);
    }
    is_preface
}

/// A request begins, if its method is known: `start`, `request_bytes` and the line are the
/// caller's.
///
/// # Safety
/// `slot` is a slot of the array and is being written.
#[inline(always)]
unsafe fn begin<S: Socket>(socket: S, slot: *mut Slot, start: Start, tgid: u32, owner: u8) {
    let Start::Request(flags) = start else { return };
    // SAFETY: the caller's promise.
    unsafe {
        let whole = (*slot).facts.flags & LINE_WHOLE;
        http1::begin_request(&mut *slot, flags | whole);
        let id = next_id(slot);
        let facts = &mut (*slot).facts;
        facts.id = id;
        facts.tgid = tgid;
        facts.service = u32::from(owner);
        facts.family = socket.family();
        (facts.port, facts.peer_port) = socket.ports(facts.family);
        facts.network = socket.network();
        clients::identify(socket, facts);
    }
}

/// Puts what was received behind the `kept` bytes of the request line, up to its end.
///
/// # Safety
/// `slot` is a slot of the array and is being written.
#[inline(always)]
unsafe fn append_line(slot: *mut Slot, buffer: *mut Buffer, kept: u64, filled: u64) {
    // SAFETY: this CPU's buffer; the copy's bounds are masked, see below.
    unsafe {
        let (whole, end) = (*buffer).window.line_end(filled);
        let room = (REQUEST_LINE as u64).wrapping_sub(kept);
        let length = mask::<0x7f>(if end < room { end } else { room });
        let length = if length < REQUEST_LINE as u64 {
            length
        } else {
            REQUEST_LINE as u64
        };
        // 63 + 64 bytes from the line's beginning still lie in the slot.
        let at = (&raw mut (*slot).facts.line)
            .cast::<u8>()
            .add(mask::<0x3f>(kept) as usize);
        let from = (*buffer).window.bytes().as_ptr().add(FRONT);
        bpf_probe_read_kernel(at.cast::<c_void>(), length as u32, from.cast::<c_void>());
        let facts = &mut (*slot).facts;
        facts.line_len = kept.wrapping_add(length) as u8;
        if whole || end >= room {
            facts.flags |= LINE_WHOLE;
        }
    }
}

/// More of an open request was received.
#[inline(always)]
fn more_received<O: Origin>(slot: *mut Slot, buffer: *mut Buffer, origin: O, length: u64) {
    if slot.is_null() {
        return;
    }
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        if (*slot).facts.phase == Phase::WAITING {
            read_head(buffer, slot, origin, length);
        }
        let facts = &mut (*slot).facts;
        facts.request_bytes = facts.request_bytes.wrapping_add(length);
        facts.request_end = now();
        end_write(slot);
    }
}

/// The client has closed its side, or is gone.
#[inline(always)]
pub(super) fn client_left(slot: *mut Slot, gone: bool) {
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        if (*slot).facts.phase == Phase::IDLE {
            let (flags, family) = ((*slot).facts.flags, (*slot).facts.family);
            if flags & HTTP2 != 0 {
                http2::client_left(slot, gone || family == AF_UNIX);
            }
            if family == AF_UNIX {
                // Of its end nothing else is seen, and its address is soon another's.
                release((*slot).facts.socket, slot);
            }
            return;
        }
        begin_write(slot);
        if gone {
            http1::closed(&mut *slot, true, now());
            emit(slot);
        } else if (*slot).facts.flags & CLIENT_CLOSED == 0 {
            (*slot).facts.flags |= CLIENT_CLOSED;
            (*slot).facts.end = now();
        }
        end_write(slot);
    }
}

/// `length` bytes, which lie at `origin`, were sent on the socket of `slot`.
#[inline(always)]
pub(super) fn sent<O: Origin>(slot: *mut Slot, origin: O, length: u64) {
    if O::BELOW_TLS && tls::is_ciphertext(slot) {
        return;
    }
    // SAFETY: a slot of the array.
    let phase = unsafe { (*slot).facts.phase };
    if phase == Phase::IDLE {
        // SAFETY: as above.
        let (family, flags) = unsafe { ((*slot).facts.family, (*slot).facts.flags) };
        if flags & HTTP2 != 0 {
            http2::sent(slot, origin, length);
        } else if flags & UPGRADED == 0 && family != AF_UNIX {
            // A response to a request that was not followed; what is sent at the address of a
            // Unix socket may be another one's.
            count!(pipelined);
        }
        return;
    }
    let now = now();
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        if phase == Phase::WAITING {
            clients::ask(&mut (*slot).facts);
        }
        http1::begin_send(&mut *slot, length, now);
        let is_whole = http1::passes(&*slot) && length <= (*slot).cursor.left;
        if is_whole && !http1::is_json(&*slot) {
            http1::pass(&mut *slot, length, now);
            http1::end_send(&mut *slot, now);
        } else if let Some(buffer) = origin.buffer() {
            payload::open(buffer, origin, Direction::Sent, length);
            follow_send(buffer, slot, length, now);
        }
        if (*slot).facts.phase == Phase::IDLE {
            emit(slot);
        }
        end_write(slot);
    }
}

/// The last that is seen of a socket that has a slot.
#[inline(always)]
pub(super) fn destroyed(socket: u64, slot: *mut Slot) {
    tls::destroyed(socket, slot);
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        if (*slot).facts.phase != Phase::IDLE {
            begin_write(slot);
            http1::closed(&mut *slot, false, now());
            emit(slot);
            end_write(slot);
        } else if (*slot).facts.flags & HTTP2 != 0 {
            http2::destroyed(slot);
        }
    }
    release(socket, slot);
}
