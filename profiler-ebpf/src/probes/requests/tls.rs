//! The tier of TLS libraries: plaintext at `SSL_read` and `SSL_write`, in front of the same
//! exchange as the bytes of plain sockets, and on the session's own socket.
//!
//! A session's socket is the one its thread received on last when the session first reads data:
//! inside the read where the library reads the socket itself, before it where the server does and
//! hands the bytes over. From then on what the socket hooks see of that socket is ciphertext.
//!
//! Programs of this kind can be preempted, also by each other. So they use no per-CPU buffer,
//! and no per-CPU stack: see [`stay_on_the_threads_stack`].

use aya_ebpf::helpers::generated::{
    bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
};
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use aya_ebpf::{EbpfContext, Global};
use core::ptr::{read_volatile, write_volatile};
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::{FIRST_SERVICE, OWNERS};
use profiler_ebpf::request::{CLIENT_CLOSED, HTTP2, Phase, Slot};
use profiler_ebpf::tls::{
    BUFFERS_PER_CPU, CIPHERTEXT, Counters, EXTENDED, REFUSED, Written, written,
};

use super::exchange::{client_left, received, sent};
use super::payload::{Buffer, read_user};
use super::slots::{begin_write, end_write, find, swap};
use super::socket::Untrusted;
use super::source::{Direction, Origin, Source};
use crate::probes::MMAPABLE;
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;

/// 1 if plaintext is read at all; else the verifier removes what this adds to other hooks.
#[unsafe(no_mangle)]
static TLS: Global<u8> = Global::new(0);

/// Owners that use a TLS library, one byte each, written by the agent.
#[map]
static TLS_OWNERS: Array<[u8; OWNERS]> = Array::with_max_entries(1, MMAPABLE);
/// Sized by the loader, as are the others.
#[map]
static TLS_THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(1, 0);
#[map]
static TLS_SESSIONS: LruHashMap<Session, Binding> = LruHashMap::with_max_entries(1, 0);
/// Whose socket it is.
#[map]
static TLS_SOCKETS: LruHashMap<u64, Session> = LruHashMap::with_max_entries(1, 0);
#[map]
static TLS_BUFFERS: Array<Scratch> = Array::with_max_entries(1, 0);
#[map]
static TLS_COUNTERS: Array<Counters> = Array::with_max_entries(1, MMAPABLE);
/// Always empty: see [`stay_on_the_threads_stack`].
#[map]
static NO_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// A thread of a service that uses TLS.
#[repr(C)]
#[derive(Clone, Copy)]
struct Thread {
    /// The socket it received on last.
    socket: u64,
    /// Its receives so far.
    receives: u64,
    /// `receives` when the read that is under way began.
    receives_before: u64,
    /// The session of that read; 0 if none is under way.
    session: u64,
    /// Where its plaintext goes.
    buffer: u64,
    /// Where its length goes; 0 if it is the result.
    length_at: u64,
}

/// A TLS session: the library's object in its process.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Session {
    object: u64,
    tgid: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Binding {
    socket: u64,
    /// Bytes the session's latest write offered.
    latest: u64,
    /// 1 if the library reads and writes the socket itself.
    owns_socket: u64,
}

/// A buffer, and whether a program uses it.
#[repr(C)]
struct Scratch {
    busy: u64,
    buffer: Buffer,
}

/// Plaintext in the process's memory.
#[derive(Clone, Copy)]
struct Plaintext {
    address: u64,
    buffer: *mut Buffer,
}

impl Origin for Plaintext {
    const BELOW_TLS: bool = false;

    #[inline(always)]
    fn source(self, _: Direction) -> Source {
        Source::Plain(self.address)
    }

    #[inline(always)]
    fn buffer(self) -> Option<*mut Buffer> {
        Some(self.buffer)
    }
}

#[inline(always)]
pub(super) fn is_on() -> bool {
    TLS.load() != 0
}

#[inline(always)]
fn this_thread() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_pid_tgid() }
}

#[inline(always)]
fn uses_tls(owner: u8) -> bool {
    let Some(owners) = TLS_OWNERS.get_ptr(0) else {
        return false;
    };
    // SAFETY: an owner's index is less than the array's length; the agent writes single bytes.
    unsafe { read_volatile(owners.cast::<u8>().add(owner as usize)) != 0 }
}

/// True if what the hooks of this slot's socket see is ciphertext.
#[inline(always)]
pub(super) fn is_ciphertext(slot: *mut Slot) -> bool {
    // SAFETY: a slot of the array.
    is_on() && unsafe { read_volatile(&raw const (*slot).cursor.tls) } & CIPHERTEXT != 0
}

/// A process of `owner`'s service received bytes on a socket. True if they are ciphertext of a
/// session: then that is all there is to do.
#[inline(always)]
pub(super) fn receives(socket: u64, found: *mut Slot, owner: u8) -> bool {
    if !is_on() || !uses_tls(owner) {
        return false;
    }
    let id = this_thread();
    if let Some(thread) = TLS_THREADS.get_ptr_mut(id) {
        // SAFETY: this thread's own entry.
        unsafe {
            (*thread).socket = socket;
            (*thread).receives = (*thread).receives.wrapping_add(1);
        }
    } else {
        let thread = Thread {
            socket,
            receives: 1,
            receives_before: 0,
            session: 0,
            buffer: 0,
            length_at: 0,
        };
        let _ = TLS_THREADS.insert(id, thread, 0);
    }
    if found.is_null() || !is_ciphertext(found) {
        return false;
    }
    // SAFETY: a slot of the array.
    let (phase, flags) = unsafe { ((*found).facts.phase, (*found).facts.flags) };
    // With a request open a client says little that is no data, but goodbye (`close_notify`). If
    // it turns out to be data, the read takes this back. On HTTP/2 clients say much.
    if phase != Phase::IDLE && flags & HTTP2 == 0 {
        client_left(found, false);
    }
    true
}

/// The socket of `slot` took no more bytes for now.
#[inline(always)]
pub(super) fn refused(slot: *mut Slot) {
    if is_ciphertext(slot) {
        // SAFETY: a slot of the array.
        unsafe { write_volatile(&raw mut (*slot).cursor.tls, CIPHERTEXT | REFUSED) };
    }
}

/// A socket that has a slot is gone.
#[inline(always)]
pub(super) fn destroyed(socket: u64, slot: *mut Slot) {
    if is_ciphertext(slot)
        && let Some(session) = TLS_SOCKETS.get_ptr(socket)
    {
        // SAFETY: an entry of the table.
        let _ = TLS_SESSIONS.remove(unsafe { *session });
        let _ = TLS_SOCKETS.remove(socket);
    }
}

#[inline(always)]
fn counters() -> Option<*mut Counters> {
    // SAFETY: the helper has no preconditions.
    TLS_COUNTERS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// Keeps the kernel from giving this program a per-CPU stack, as it does since 6.13 to programs
/// of this kind with more than 64 bytes of stack: one that preempts another on its CPU would
/// write over it. A program that holds a tail call stays on the thread's own stack
/// (`check_max_stack_depth` in kernel/bpf/verifier.c), and it need not be reached.
#[inline(always)]
fn stay_on_the_threads_stack<C: EbpfContext>(ctx: &C) {
    if TLS.load() == u8::MAX {
        // SAFETY: the array holds no program: nothing is called.
        unsafe { NO_PROGRAMS.tail_call(ctx, 0) };
    }
}

/// The process that runs, if its service uses TLS.
#[inline(always)]
fn owned() -> Option<(u64, u8)> {
    let id = this_thread();
    let owner = owner_of((id >> 32) as u32);
    (owner >= FIRST_SERVICE).then_some((id, owner))
}

/// A buffer of this program's own, until it is dropped.
struct Claimed(*mut Scratch);

impl Claimed {
    #[inline(always)]
    fn any() -> Option<Self> {
        // SAFETY: the helper has no preconditions.
        let first = unsafe { bpf_get_smp_processor_id() } * BUFFERS_PER_CPU;
        let mut i = 0;
        while i < BUFFERS_PER_CPU {
            let scratch = TLS_BUFFERS.get_ptr_mut(first + i)?;
            // SAFETY: an entry of the array.
            if unsafe { swap(&raw mut (*scratch).busy, 1) } == 0 {
                return Some(Self(scratch));
            }
            i += 1;
        }
        if let Some(counters) = counters() {
            // SAFETY: this CPU's counters; a preempted count may be lost.
            unsafe { (*counters).busy = (*counters).busy.wrapping_add(1) };
        }
        None
    }

    #[inline(always)]
    fn at(&self, address: u64) -> Plaintext {
        Plaintext {
            address,
            // SAFETY: an entry of the array.
            buffer: unsafe { &raw mut (*self.0).buffer },
        }
    }
}

impl Drop for Claimed {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: an entry of the array, which this program claimed.
        unsafe { write_volatile(&raw mut (*self.0).busy, 0) };
    }
}

/// `SSL_read(SSL *, void *, int)`, `SSL_read_ex(SSL *, void *, size_t, size_t *)`: begins.
#[uprobe]
fn ssl_read(ctx: ProbeContext) -> u32 {
    let _cost = Running::enter(Program::SslRead);
    stay_on_the_threads_stack(&ctx);
    let Some((id, _)) = owned() else { return 0 };
    let (Some(session), Some(buffer), Some(length_at)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(3))
    else {
        return 0;
    };
    // SAFETY: the program's own context.
    let length_at = match unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } {
        EXTENDED => length_at,
        _ => 0,
    };
    if let Some(thread) = TLS_THREADS.get_ptr_mut(id) {
        // SAFETY: this thread's own entry.
        unsafe {
            (*thread).receives_before = (*thread).receives;
            (*thread).session = session;
            (*thread).buffer = buffer;
            (*thread).length_at = length_at;
        }
    } else {
        let thread = Thread {
            socket: 0,
            receives: 0,
            receives_before: 0,
            session,
            buffer,
            length_at,
        };
        let _ = TLS_THREADS.insert(id, thread, 0);
    }
    0
}

/// They return.
#[uretprobe]
fn ssl_read_return(ctx: RetProbeContext) -> u32 {
    let _cost = Running::enter(Program::SslReadReturn);
    stay_on_the_threads_stack(&ctx);
    let Some((id, owner)) = owned() else { return 0 };
    let Some(thread) = TLS_THREADS.get_ptr_mut(id) else {
        return 0;
    };
    // SAFETY: this thread's own entry.
    let Thread {
        session,
        buffer,
        length_at,
        ..
    } = unsafe { *thread };
    if session == 0 {
        return 0;
    }
    // SAFETY: as above.
    unsafe { (*thread).session = 0 };
    let result: i32 = ctx.ret();
    if result <= 0 {
        return 0;
    }
    let mut length = result as u64;
    if length_at != 0 {
        let to = (&raw mut length).cast::<u8>();
        // SAFETY: room for a word.
        if !unsafe { read_user(to, 8, length_at) } {
            return 0;
        }
    }
    let session = Session {
        object: session,
        tgid: id >> 32,
    };
    let socket = bind(session, thread);
    if length == 0 || socket == 0 {
        return 0;
    }
    let Some(claimed) = Claimed::any() else {
        return 0;
    };
    let found = find(socket);
    if !found.is_null() {
        take_back_goodbye(found);
    }
    let socket_read = Untrusted::new(socket);
    let plaintext = claimed.at(buffer);
    received(
        socket_read,
        found,
        plaintext,
        length,
        (id >> 32) as u32,
        owner,
    );
    let slot = find(socket);
    if !slot.is_null() {
        // SAFETY: a slot of the array.
        unsafe {
            let bits = read_volatile(&raw const (*slot).cursor.tls);
            write_volatile(&raw mut (*slot).cursor.tls, bits | CIPHERTEXT);
        }
    }
    0
}

/// The socket of a session that has read data; 0 if it is not known.
#[inline(always)]
fn bind(session: Session, thread: *mut Thread) -> u64 {
    // SAFETY: this thread's own entry.
    let Thread {
        socket,
        receives,
        receives_before,
        ..
    } = unsafe { *thread };
    // The library itself received on it a moment ago: there is no doubt.
    let inside = receives != receives_before;
    let bound = TLS_SESSIONS.get_ptr_mut(session);
    if let Some(binding) = bound {
        // SAFETY: an entry of the table.
        let known = unsafe { (*binding).socket };
        if !inside || known == socket {
            if inside {
                // SAFETY: as above.
                unsafe { (*binding).owns_socket = 1 };
            }
            return known;
        }
    }
    let mut unknown = socket == 0;
    if let Some(other) = TLS_SOCKETS.get_ptr(socket) {
        // SAFETY: an entry of the table.
        let other = unsafe { *other };
        if other != session {
            if inside {
                let _ = TLS_SESSIONS.remove(other);
            } else {
                // Another session's: this one's data came before, or on another thread.
                unknown = true;
            }
        }
    }
    if unknown {
        if let Some(counters) = counters() {
            // SAFETY: this CPU's counters; a preempted count may be lost.
            unsafe { (*counters).unbound = (*counters).unbound.wrapping_add(1) };
        }
        return 0;
    }
    let binding = Binding {
        socket,
        latest: 0,
        owns_socket: u64::from(inside),
    };
    if TLS_SESSIONS.insert(session, binding, 0).is_err() {
        return 0;
    }
    let _ = TLS_SOCKETS.insert(socket, session, 0);
    socket
}

/// What came was data: the client has not left.
#[inline(always)]
fn take_back_goodbye(slot: *mut Slot) {
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        if (*slot).facts.flags & CLIENT_CLOSED != 0 {
            begin_write(slot);
            (*slot).facts.flags &= !CLIENT_CLOSED;
            (*slot).facts.end = 0;
            end_write(slot);
        }
    }
}

/// `SSL_write(SSL *, const void *, int)`, `SSL_write_ex(SSL *, const void *, size_t, size_t *)`:
/// begins. Its result is not seen; see [`written`].
#[uprobe]
fn ssl_write(ctx: ProbeContext) -> u32 {
    let _cost = Running::enter(Program::SslWrite);
    stay_on_the_threads_stack(&ctx);
    let Some((id, _)) = owned() else { return 0 };
    let (Some(object), Some(address), Some(length)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2))
    else {
        return 0;
    };
    // SAFETY: the program's own context.
    let length = match unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } {
        EXTENDED => length,
        // An int: the register's upper half has no meaning.
        _ => length as u32 as u64,
    };
    if length == 0 || length > i32::MAX as u64 {
        return 0;
    }
    let session = Session {
        object,
        tgid: id >> 32,
    };
    let Some(binding) = TLS_SESSIONS.get_ptr_mut(session) else {
        return 0;
    };
    // SAFETY: an entry of the table.
    let Binding {
        socket,
        latest,
        owns_socket,
    } = unsafe { *binding };
    let slot = find(socket);
    if slot.is_null() {
        return 0;
    }
    // SAFETY: as above, and a slot of the array.
    let refused = unsafe {
        (*binding).latest = length;
        let bits = read_volatile(&raw const (*slot).cursor.tls);
        write_volatile(&raw mut (*slot).cursor.tls, CIPHERTEXT);
        bits & REFUSED != 0
    };
    if written(latest, length, refused && owns_socket != 0) == Written::Before {
        return 0;
    }
    if let Some(claimed) = Claimed::any() {
        sent(slot, claimed.at(address), length);
    }
    0
}

/// `SSL_free(SSL *)`: another session may get the same object's memory.
#[uprobe]
fn ssl_free(ctx: ProbeContext) -> u32 {
    let _cost = Running::enter(Program::SslFree);
    stay_on_the_threads_stack(&ctx);
    let Some((id, _)) = owned() else { return 0 };
    let Some(object) = ctx.arg::<u64>(0) else {
        return 0;
    };
    let session = Session {
        object,
        tgid: id >> 32,
    };
    let Some(binding) = TLS_SESSIONS.get_ptr(session) else {
        return 0;
    };
    // SAFETY: an entry of the table.
    let socket = unsafe { (*binding).socket };
    let _ = TLS_SESSIONS.remove(session);
    if let Some(bound) = TLS_SOCKETS.get_ptr(socket) {
        // SAFETY: an entry of the table.
        if unsafe { *bound } == session {
            let _ = TLS_SOCKETS.remove(socket);
        }
    }
    0
}
