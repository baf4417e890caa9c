//! Requests: follows each socket of a service through what it receives and sends.
//!
//! The hooks see every family and every way to read and write. They run after the copy and
//! inside the system call; the state is the socket's, never a thread's or a descriptor's.

mod payload;
mod slots;

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_kernel,
};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext as _, Global};
use core::ffi::c_void;
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;
use profiler_ebpf::http1::{self, FRONT, Start, mask};
use profiler_ebpf::owners::FIRST_SERVICE;
use profiler_ebpf::request::{CLIENT_CLOSED, LINE_WHOLE, METHOD_CUT, Phase, REQUEST_LINE, Slot};

use super::cost::Running;
use super::owners::owner_of;
use payload::{Buffer, Direction};
use slots::{allocate, begin_write, buffer, count, emit, end_write, find, next_id, release};

const MSG_PEEK: i32 = 2;
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Socket states in which a server answers what it reads; in any other it drains.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

#[unsafe(no_mangle)]
static SOCK_FAMILY: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_STATE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_PORT: Global<u32> = Global::new(ABSENT);

/// A member of the socket at an offset from the kernel's own types.
///
/// # Safety
/// `sock` must be the tracepoint's own argument; then the verifier checks the offset.
#[inline(always)]
unsafe fn sock_field<T: Copy>(sock: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: see above.
    unsafe { *sock.add(offset.load() as usize).cast::<T>() }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// `sock_recv_length(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_recv_length")]
fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SockRecvLength);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE {
        return 0;
    }
    let length: i32 = ctx.arg(1);
    // Nothing to read yet: every event loop asks once too often.
    if length < 0 && length != -ECONNRESET {
        return 0;
    }
    let sock: *const u8 = ctx.arg(0);
    let found = find(sock as u64);
    if length <= 0 {
        if !found.is_null() {
            client_left(found, length != 0);
        }
        return 0;
    }
    let flags: i32 = ctx.arg(2);
    if flags & MSG_PEEK != 0 {
        return 0;
    }
    let Some(buffer) = buffer() else { return 0 };
    received(sock, found, buffer, length as u64, tgid, owner);
    0
}

/// Bytes were received.
#[inline(always)]
fn received(
    sock: *const u8,
    found: *mut Slot,
    buffer: *mut Buffer,
    length: u64,
    tgid: u32,
    owner: u8,
) {
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
    payload::open(buffer, Direction::Received, length);
    let wanted = if length < REQUEST_LINE as u64 {
        length
    } else {
        REQUEST_LINE as u64
    };
    let filled = payload::fill(buffer, wanted);
    if filled == 0 {
        if phase != Phase::IDLE {
            more_received(found, length);
        }
        count!(unreadable);
        return;
    }
    if kept != 0 {
        if !found.is_null() {
            continued(sock, found, buffer, kept, filled, length, tgid, owner);
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
    // SAFETY: the tracepoint's own argument.
    let state: u8 = unsafe { sock_field(sock, &SOCK_STATE) };
    if state != ESTABLISHED && state != CLOSE_WAIT {
        // The server has closed and throws away what still comes; the client will ask again.
        count!(drained);
        return;
    }
    let slot = if found.is_null() {
        allocate(sock as u64)
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
        begin(sock, slot, start, tgid, owner);
        append_line(slot, buffer, 0, filled);
        (*slot).facts.request_bytes = length;
        (*slot).facts.request_end = now;
        end_write(slot);
    }
}

/// A request line that came in pieces goes on.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined: the call's own values")]
fn continued(
    sock: *const u8,
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
                start => begin(sock, slot, start, tgid, owner),
            }
        }
        end_write(slot);
    }
}

/// A request begins, if its method is known: `start`, `request_bytes` and the line are the
/// caller's.
///
/// # Safety
/// `slot` is a slot of the array and is being written; `sock` is the tracepoint's argument.
#[inline(always)]
unsafe fn begin(sock: *const u8, slot: *mut Slot, start: Start, tgid: u32, owner: u8) {
    let Start::Request(flags) = start else { return };
    // SAFETY: the caller's promise.
    unsafe {
        let whole = (*slot).facts.flags & LINE_WHOLE;
        http1::begin_request(&mut *slot, flags | whole);
        let facts = &mut (*slot).facts;
        facts.id = next_id();
        facts.tgid = tgid;
        facts.service = u32::from(owner);
        facts.family = sock_field(sock, &SOCK_FAMILY);
        facts.port = if facts.family == AF_INET || facts.family == AF_INET6 {
            sock_field(sock, &SOCK_PORT)
        } else {
            0
        };
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
fn client_left(slot: *mut Slot, gone: bool) {
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        if (*slot).facts.phase == Phase::IDLE {
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

/// `sock_send_length(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SockSendLength);
    // Only a service's sockets are in the table: one lookup tells a foreign process's.
    let slot = find(ctx.arg::<*const u8>(0) as u64);
    if slot.is_null() {
        return 0;
    }
    let length: i32 = ctx.arg(1);
    // SAFETY: a slot of the array.
    let phase = unsafe { (*slot).facts.phase };
    if phase == Phase::IDLE {
        // SAFETY: as above.
        if length > 0 && !http1::is_session(unsafe { &*slot }) {
            // A response to a request that was not followed.
            count!(pipelined);
        }
        return 0;
    }
    if length <= 0 {
        if length == -EPIPE || length == -ECONNRESET {
            client_left(slot, true);
        }
        return 0;
    }
    let length = length as u64;
    let now = now();
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        http1::begin_send(&mut *slot, length, now);
        if http1::passes(&*slot) && length <= (*slot).cursor.left {
            http1::pass(&mut *slot, length, now);
        } else if let Some(buffer) = buffer()
            && let Err(ahead) = payload::event(buffer, slot, length, now)
        {
            payload::follow(buffer, slot, length, ahead, now);
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
            } else if (*slot).facts.phase == Phase::LOST && phase != Phase::LOST {
                count!(malformed);
            }
        }
        http1::end_send(&mut *slot, now);
        if (*slot).facts.phase == Phase::IDLE {
            emit(slot);
        }
        end_write(slot);
    }
    0
}

/// `tcp_destroy_sock(struct sock *sk)`: the last a TCP socket is seen of.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::TcpDestroySock);
    let socket = ctx.arg::<*const u8>(0) as u64;
    let slot = find(socket);
    if slot.is_null() {
        return 0;
    }
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
    0
}
