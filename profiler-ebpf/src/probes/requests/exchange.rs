//! What is done with the bytes of a socket, whichever hook tells of them: received, sent, the
//! client gone, the socket gone.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel};
use profiler_ebpf::http1::{self, FRONT, Start, mask};
use profiler_ebpf::request::{CLIENT_CLOSED, LINE_WHOLE, METHOD_CUT, Phase, REQUEST_LINE, Slot};

use super::clients;
use super::payload::{self, Buffer, Origin};
use super::slots::{allocate, begin_write, buffer, count, emit, end_write, next_id, release};
use super::socket::{AF_UNIX, Socket};

/// Socket states in which a server answers what it reads; in any other it drains.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

#[inline(always)]
fn now() -> u64 {
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
    let Some(buffer) = buffer() else { return };
    let mut kept = 0;
    let mut phase = Phase::IDLE;
    if !found.is_null() {
        // SAFETY: a slot of the array.
        if http1::is_session(unsafe { &*found }) {
            return;
        }
        // SAFETY: as above.
        let facts = unsafe { &mut (*found).facts };
        phase = facts.phase;
        let line_known = facts.flags & LINE_WHOLE != 0;
        if phase == Phase::WAITING && line_known && !http1::is_bodyless(facts.flags) {
            more_received(found, length);
            return;
        }
        let method_cut = phase == Phase::IDLE && facts.flags & METHOD_CUT != 0;
        if method_cut || (phase == Phase::WAITING && !line_known) {
            kept = u64::from(facts.line_len);
        }
    }
    let filled = payload::beginning(buffer, origin, length, REQUEST_LINE as u64);
    if filled == 0 {
        if phase != Phase::IDLE {
            more_received(found, length);
        }
        count!(unreadable);
        return;
    }
    if kept != 0 {
        if !found.is_null() {
            continued(socket, found, buffer, kept, filled, length, tgid, owner);
        }
        return;
    }
    // SAFETY: this CPU's buffer.
    let (first, second) = unsafe { (*buffer).window.beginning() };
    let start = http1::request_line(first, second, filled);
    if start == Start::No || (start == Start::Partial && phase != Phase::IDLE) {
        if phase != Phase::IDLE {
            more_received(found, length);
        }
        return;
    }
    if phase == Phase::WAITING {
        // A client that does not wait for its response: what comes is not followed.
        count!(pipelined);
        more_received(found, length);
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
        (*slot).facts.start = now;
        (*slot).facts.request_bytes = 0;
        (*slot).facts.line_len = 0;
        (*slot).facts.flags = METHOD_CUT;
        begin(socket, slot, start, tgid, owner);
        append_line(slot, buffer, 0, filled);
        (*slot).facts.request_bytes = length;
        (*slot).facts.request_end = now;
        end_write(slot);
    }
}

/// A request line that came in pieces goes on.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined: the call's own values")]
fn continued<S: Socket>(
    socket: S,
    slot: *mut Slot,
    buffer: *mut Buffer,
    kept: u64,
    filled: u64,
    length: u64,
    tgid: u32,
    owner: u8,
) {
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        append_line(slot, buffer, kept, filled);
        let facts = &mut (*slot).facts;
        facts.request_bytes = facts.request_bytes.wrapping_add(length);
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
                start => begin(socket, slot, start, tgid, owner),
            }
        }
        end_write(slot);
    }
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
        let facts = &mut (*slot).facts;
        facts.id = next_id();
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
fn more_received(slot: *mut Slot, length: u64) {
    if slot.is_null() {
        return;
    }
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
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
            if (*slot).facts.family == AF_UNIX {
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
    // SAFETY: a slot of the array.
    let phase = unsafe { (*slot).facts.phase };
    if phase == Phase::IDLE {
        // SAFETY: as above.
        let (family, is_session) = unsafe { ((*slot).facts.family, http1::is_session(&*slot)) };
        // What is sent at the address of a Unix socket may be another one's.
        if !is_session && family != AF_UNIX {
            // A response to a request that was not followed.
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
        if http1::passes(&*slot) && length <= (*slot).cursor.left {
            http1::pass(&mut *slot, length, now);
        } else if let Some(buffer) = buffer() {
            let taken = payload::head(buffer, slot, origin, length, now);
            if taken != length {
                rest_sent(buffer, slot, origin, length, taken, now);
            }
        }
        http1::end_send(&mut *slot, now);
        if (*slot).facts.phase == Phase::IDLE {
            emit(slot);
        }
        end_write(slot);
    }
}

/// What of a send is neither a head that lies in one piece nor a plain body: all but the first
/// `taken` of its `length` bytes.
///
/// # Safety
/// `slot` is a slot of the array and is being written.
#[inline(always)]
unsafe fn rest_sent<O: Origin>(
    buffer: *mut Buffer,
    slot: *mut Slot,
    origin: O,
    length: u64,
    taken: u64,
    now: u64,
) {
    // SAFETY: the caller's promise; this CPU's buffer.
    unsafe {
        let before = (*slot).facts.phase;
        let mut left_over = length.wrapping_sub(taken);
        if before != Phase::IDLE {
            let mut ahead = 0;
            if taken == 0 {
                match payload::event(buffer, slot, origin, length, now) {
                    Ok(()) => return,
                    Err(read) => ahead = read,
                }
            }
            payload::follow(buffer, slot, origin, length, (taken, ahead), now);
            left_over = (*buffer).window.remaining();
        }
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

/// The last that is seen of a socket that has a slot.
#[inline(always)]
pub(super) fn destroyed(socket: u64, slot: *mut Slot) {
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        if (*slot).facts.phase != Phase::IDLE {
            begin_write(slot);
            http1::closed(&mut *slot, false, now());
            emit(slot);
            end_write(slot);
        }
    }
    release(socket, slot);
}
