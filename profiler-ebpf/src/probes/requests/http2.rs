//! HTTP/2 in the kernel: the maps behind [`profiler_ebpf::http2`]. A connection is its socket's
//! slot; each of its streams has a slot of its own.
//!
//! Every function keeps to a small frame: what is known lies in maps, and each is verified and
//! laid out for itself. A connection's end is told to the agent, which ends its streams: the
//! kernel side has no list of them, and does the same little work for one as for a thousand.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_ebpf::http1::{WINDOW, Window, mask};
use profiler_ebpf::http2::{self, Found, NOTICE_BYTES, Streams};
use profiler_ebpf::request::{CLIENT_CLOSED, ENDED, ENDED_BY_CLIENT, Slot};

use super::clients;
use super::exchange::now;
use super::payload::{self, Buffer};
use super::response::follow_lines;
use super::slots::{
    allocate_stream, begin_write, count, emit, end_write, find_stream, forget_stream, free,
    next_connection, next_id, put_end, put_notice,
};
use super::socket::Socket;
use super::source::{Direction, Origin};

/// The most windows of one receive or send: each is a read of up to [`WINDOW`] bytes, or bytes
/// passed over (a frame's payload is usually passed over at once).
const WINDOWS: u32 = 512;

/// True if an HTTP/2 request begins with the `filled` bytes read: the connection is older than
/// the agent.
#[inline(always)]
pub(super) fn may_join(window: &Window, filled: u64) -> bool {
    http2::find(window, filled) == Found::Request
}

/// The socket's client speaks HTTP/2: `before` bytes of its preface have been received already.
#[inline(always)]
pub(super) fn begin<S: Socket>(socket: S, slot: *mut Slot, before: u64, tgid: u32, owner: u8) {
    // SAFETY: a slot of the array, written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        http2::begin_connection(&mut *slot, before as u32);
        identify(socket, slot, tgid, owner);
        end_write(slot);
    }
}

/// The same for a connection that is found open.
#[inline(always)]
pub(super) fn join<S: Socket>(socket: S, slot: *mut Slot, tgid: u32, owner: u8) {
    // SAFETY: as above.
    unsafe {
        begin_write(slot);
        http2::join_connection(&mut *slot);
        identify(socket, slot, tgid, owner);
        end_write(slot);
    }
}

/// Notes what every stream of the connection has from it.
///
/// # Safety
/// `slot` is a slot of the array and is being written.
#[inline(always)]
unsafe fn identify<S: Socket>(socket: S, slot: *mut Slot, tgid: u32, owner: u8) {
    // SAFETY: the caller's promise.
    let facts = unsafe { &mut (*slot).facts };
    facts.id = next_connection();
    facts.connection = 0;
    facts.stream = 0;
    facts.tgid = tgid;
    facts.service = u32::from(owner);
    facts.family = socket.family();
    (facts.port, facts.peer_port) = socket.ports(facts.family);
    facts.network = socket.network();
    clients::identify(socket, facts);
    facts.start = 0;
    facts.head = 0;
    facts.last_data = 0;
    facts.end = 0;
}

/// `length` bytes were received on an HTTP/2 connection.
#[inline(always)]
pub(super) fn received<O: Origin>(
    connection: *mut Slot,
    buffer: *mut Buffer,
    origin: O,
    length: u64,
    tgid: u32,
    owner: u8,
) {
    // SAFETY: a slot of the array; the agent reads these only with a request that is open.
    unsafe {
        (*connection).facts.tgid = tgid;
        (*connection).facts.service = u32::from(owner);
    }
    payload::open(buffer, origin, Direction::Received, length);
    // SAFETY: entries of two maps.
    unsafe { follow_received(buffer, connection, length) };
    if restart(buffer, connection, length) {
        payload::rewind(buffer);
        // SAFETY: as above.
        unsafe { follow_received(buffer, connection, length) };
    }
}

/// Begins anew where the socket's address has gone over to another connection: true if it has.
#[inline(never)]
fn restart(buffer: *mut Buffer, connection: *mut Slot, length: u64) -> bool {
    // SAFETY: entries of two maps; the slot is written between `begin_write` and `end_write`.
    unsafe {
        if !http2::is_restart(&(*buffer).window, length) {
            return false;
        }
        put_end((*connection).facts.id, 0, ENDED, now());
        begin_write(connection);
        http2::begin_connection(&mut *connection, 0);
        (*connection).facts.id = next_connection();
        (*connection).facts.end = 0;
        end_write(connection);
    }
    true
}

/// `length` bytes were sent on an HTTP/2 connection.
#[inline(always)]
pub(super) fn sent<O: Origin>(connection: *mut Slot, origin: O, length: u64) {
    let Some(buffer) = origin.buffer() else {
        return;
    };
    payload::open(buffer, origin, Direction::Sent, length);
    // SAFETY: entries of two maps.
    unsafe { follow_sent(buffer, connection, length) };
}

/// The client has closed its side of a connection, or is gone.
#[inline(always)]
pub(super) fn client_left(connection: *mut Slot, gone: bool) {
    // SAFETY: a slot of the array; no request is open in it, so that nobody reads these.
    let facts = unsafe { &mut (*connection).facts };
    if facts.flags & CLIENT_CLOSED == 0 {
        facts.flags |= CLIENT_CLOSED;
        facts.end = now();
    }
    if gone {
        put_end(facts.id, 0, ENDED | ENDED_BY_CLIENT, facts.end);
    }
}

/// The last that is seen of a connection.
#[inline(always)]
pub(super) fn destroyed(connection: *mut Slot) {
    // SAFETY: a slot of the array.
    let facts = unsafe { &(*connection).facts };
    if facts.flags & CLIENT_CLOSED != 0 {
        put_end(facts.id, 0, ENDED | ENDED_BY_CLIENT, facts.end);
    } else {
        put_end(facts.id, 0, ENDED, now());
    }
}

/// What was moved on a connection. It lies on the stack, and holds nothing but two pointers into
/// maps: loops' callbacks get at it through a stack pointer.
#[repr(C)]
struct Walk<const SENT: bool> {
    buffer: *mut Buffer,
    connection: *mut Slot,
}

/// Follows what is open in the buffer: `length` bytes that were received.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn follow_received(
    buffer: *mut Buffer,
    connection: *mut Slot,
    length: u64,
) -> u64 {
    if buffer.is_null() || connection.is_null() {
        return 0;
    }
    follow::<false>(buffer, connection, length);
    0
}

/// The same of bytes that were sent.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn follow_sent(buffer: *mut Buffer, connection: *mut Slot, length: u64) -> u64 {
    if buffer.is_null() || connection.is_null() {
        return 0;
    }
    follow::<true>(buffer, connection, length);
    0
}

/// Follows what is open in the buffer: `length` bytes.
#[inline(always)]
fn follow<const SENT: bool>(buffer: *mut Buffer, connection: *mut Slot, length: u64) {
    let now = now();
    // SAFETY: entries of two maps; the time says to the agent that the socket is in use.
    unsafe {
        (*buffer).window.begin(length, now, 0);
        (*connection).facts.request_end = now;
    }
    let mut walk = Walk::<SENT> { buffer, connection };
    // SAFETY: the callback takes this context; it lives until the loop returns.
    unsafe {
        bpf_loop(
            WINDOWS,
            window::<SENT> as *const () as *mut c_void,
            (&raw mut walk).cast::<c_void>(),
            0,
        );
    }
    // SAFETY: this CPU's buffer.
    let window = unsafe { &mut (*buffer).window };
    if window.remaining() != 0 {
        // More windows than are followed.
        http2::lose(&mut walk);
        count!(unreadable);
    } else if window.unreadable() != 0 {
        count!(unreadable);
    }
}

#[inline(never)]
unsafe extern "C" fn window<const SENT: bool>(_: u64, walk: *mut Walk<SENT>) -> i64 {
    // SAFETY: the context `follow` passed.
    i64::from(http2::window(unsafe { &mut *walk }))
}

#[inline(never)]
unsafe extern "C" fn step<const SENT: bool>(_: u64, walk: *mut Walk<SENT>) -> i64 {
    // SAFETY: the context `steps` passed.
    i64::from(http2::step(unsafe { &mut *walk }))
}

impl<const SENT: bool> Streams for Walk<SENT> {
    const SENT: bool = SENT;

    #[inline(always)]
    fn parts(&mut self) -> (&mut Window, &mut Slot) {
        // SAFETY: entries of two maps; see `payload` on who else uses them.
        unsafe { (&mut (*self.buffer).window, &mut *self.connection) }
    }

    #[inline(always)]
    fn fill(&mut self, wanted: u64) -> u64 {
        payload::fill(self.buffer, wanted)
    }

    #[inline(always)]
    fn skip(&mut self, bytes: u64) {
        payload::skip(self.buffer, bytes);
    }

    #[inline(always)]
    fn steps(&mut self) {
        // Every step takes a byte at least, so this many always do.
        // SAFETY: the callback takes this context; it lives until the loop returns.
        unsafe {
            bpf_loop(
                WINDOW as u32 + 1,
                step::<SENT> as *const () as *mut c_void,
                (&raw mut *self).cast::<c_void>(),
                0,
            );
        }
    }

    #[inline(always)]
    fn find(&mut self, stream: u32) -> *mut Slot {
        find(self.connection, stream)
    }

    #[inline(always)]
    fn begin(&mut self, stream: u32, bytes: u64) {
        // SAFETY: this CPU's buffer.
        let now = unsafe { (*self.buffer).window.now() };
        begin_stream(self.connection, stream, bytes, now);
    }

    #[inline(always)]
    fn begin_write(&mut self, slot: *mut Slot) {
        // SAFETY: a slot that `find` gave.
        unsafe { begin_write(slot) };
    }

    #[inline(always)]
    fn end_write(&mut self, slot: *mut Slot) {
        // SAFETY: as above.
        unsafe { end_write(slot) };
    }

    #[inline(always)]
    fn finish(&mut self, stream: u32, slot: *mut Slot) {
        finish(self.connection, stream, slot);
    }

    #[inline(always)]
    fn lines(&mut self, slot: *mut Slot) {
        // SAFETY: entries of two maps.
        unsafe { follow_lines(self.buffer, slot) };
    }

    #[inline(always)]
    fn block(&mut self, stream: u32, kind: u32, number: u16, length: u64) {
        let head = http2::notice_head(stream, number, length);
        block(self.buffer, self.connection, head, kind, length);
    }

    #[inline(always)]
    fn ends_above(&mut self, stream: u32) {
        // SAFETY: entries of two maps.
        let (id, now) = unsafe { ((*self.connection).facts.id, (*self.buffer).window.now()) };
        put_end(id, stream, ENDED, now);
    }
}

#[inline(never)]
fn find(connection: *mut Slot, stream: u32) -> *mut Slot {
    // SAFETY: a slot of the array.
    find_stream(unsafe { (*connection).facts.id }, stream)
}

#[inline(never)]
fn begin_stream(connection: *mut Slot, stream: u32, bytes: u64, now: u64) {
    // SAFETY: a slot of the array.
    let slot = allocate_stream(unsafe { (*connection).facts.id }, stream);
    if slot.is_null() {
        return;
    }
    // SAFETY: slots of the array; the stream's is written between `begin_write` and `end_write`.
    unsafe {
        begin_write(slot);
        http2::begin_stream(&mut *slot, &mut *connection, stream, bytes, now);
        (*slot).facts.id = next_id(slot);
        end_write(slot);
    }
}

/// The stream's request has ended, and its slot is being written.
#[inline(never)]
fn finish(connection: *mut Slot, stream: u32, slot: *mut Slot) {
    // SAFETY: slots of the array.
    unsafe {
        // A reset and an end may meet: the first of them takes the request with it.
        if forget_stream((*connection).facts.id, stream) {
            emit(slot);
            end_write(slot);
            free(slot);
        } else {
            end_write(slot);
        }
    }
}

/// Gives the agent the `length` bytes of a header block at the cursor: the notice takes the place
/// of bytes before it that have been used.
#[inline(never)]
fn block(buffer: *mut Buffer, connection: *mut Slot, head: u64, kind: u32, length: u64) {
    // SAFETY: entries of two maps.
    let (window, id) = unsafe { (&mut (*buffer).window, (*connection).facts.id) };
    let from = http2::write_notice(window, id, head, kind) as usize;
    let bytes = mask::<0x3ff>(length) + NOTICE_BYTES as u64;
    // SAFETY: 24 + 1,023 + 40 + 1,023 lies in the window's bytes.
    unsafe { put_notice(window.bytes().as_ptr().add(from), bytes) };
}
