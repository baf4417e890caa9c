//! Where followed sockets live: a table from socket to slot, the slots, the ring of finished
//! requests, and the counters of what was lost.

use core::ffi::c_void;
use core::ptr::{null_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ringbuf_output};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf, Stack};
use profiler_ebpf::http1::KEPT;
use profiler_ebpf::request::{
    Counters, Ended, Facts, NOTICE, Notice, Outcome, Phase, SLOTS, STREAMS, Slot, TAIL,
};

use super::payload::Buffer;
use super::tail::{copy, tail};
use crate::probes::MMAPABLE;

const NO_WAKEUP: u64 = 1;

/// Enough for a slot's index.
const SLOT_BITS: u32 = 16;
const _: () = assert!(SLOTS + STREAMS <= 1 << SLOT_BITS);

/// Sized by the loader, as are the others.
#[map]
static REQUEST_SOCKETS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
#[map]
static REQUEST_SLOTS: Array<Slot> = Array::with_max_entries(1, MMAPABLE);
/// Indices of free slots, filled by the agent, lowest on top: a slot that is freed is the next to
/// be used, so that the slots in use stay few at the array's beginning.
#[map]
static REQUEST_FREE_SLOTS: Stack<u32> = Stack::with_max_entries(1, 0);
#[map]
static REQUEST_RING: RingBuf = RingBuf::with_byte_size(4096, 0);
/// One entry a CPU. Not a per-CPU map: those cannot be read without a system call.
#[map]
static REQUEST_COUNTERS: Array<Counters> = Array::with_max_entries(1, MMAPABLE);
/// Streams of HTTP/2 connections: {connection, stream} to slot.
#[map]
static REQUEST_STREAMS: HashMap<[u64; 2], u32> = HashMap::with_max_entries(1, 0);
#[map]
static REQUEST_BUFFER: PerCpuArray<Buffer> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's buffer. The hooks run in a process's system call and do not nest on a CPU.
#[inline(always)]
pub(super) fn buffer() -> Option<*mut Buffer> {
    REQUEST_BUFFER.get_ptr_mut(0)
}

/// Adds one to a counter of this CPU.
macro_rules! count {
    ($field:ident) => {
        if let Some(counters) = $crate::probes::requests::slots::counters() {
            // SAFETY: this CPU's own counters.
            unsafe { (*counters).$field = (*counters).$field.wrapping_add(1) };
        }
    };
}
pub(super) use count;

#[inline(always)]
pub(super) fn counters() -> Option<*mut Counters> {
    // SAFETY: the helper has no preconditions.
    REQUEST_COUNTERS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// The slot of a followed socket; null for any other. Not an `Option` of a pointer: that is two
/// registers, of which the verifier finds the second without a value.
#[inline(always)]
pub(super) fn find(socket: u64) -> *mut Slot {
    let Some(index) = REQUEST_SOCKETS.get_ptr(socket) else {
        return null_mut();
    };
    // SAFETY: an entry of the table.
    match REQUEST_SLOTS.get_ptr_mut(unsafe { *index }) {
        Some(slot) => slot,
        None => null_mut(),
    }
}

/// A slot for a socket that is not yet followed; null if there is none.
#[inline(always)]
pub(super) fn allocate(socket: u64) -> *mut Slot {
    allocate_in(&REQUEST_SOCKETS, socket, socket)
}

/// A slot for a stream that begins; null if there is none.
#[inline(never)]
pub(super) fn allocate_stream(connection: u64, stream: u32) -> *mut Slot {
    allocate_in(&REQUEST_STREAMS, [connection, u64::from(stream)], 0)
}

/// A slot to which `key` leads in `table` from now on.
#[inline(always)]
fn allocate_in<K>(table: &HashMap<K, u32>, key: K, socket: u64) -> *mut Slot {
    let Ok(Some(index)) = REQUEST_FREE_SLOTS.pop() else {
        count!(slots_exhausted);
        return null_mut();
    };
    let Some(slot) = REQUEST_SLOTS.get_ptr_mut(index) else {
        return null_mut();
    };
    if table.insert(key, index, u64::from(BPF_NOEXIST)).is_err() {
        let _ = REQUEST_FREE_SLOTS.push(index, 0);
        count!(slots_exhausted);
        return null_mut();
    }
    // SAFETY: the slot is the key's from now on.
    unsafe {
        begin_write(slot);
        (*slot).facts.socket = socket;
        (*slot).facts.slot = index;
        (*slot).facts.phase = Phase::IDLE;
        (*slot).facts.flags = 0;
        (*slot).facts.connection = 0;
        (*slot).facts.stream = 0;
        (*slot).facts.line_len = 0;
        (*slot).cursor.tls = 0;
        end_write(slot);
    }
    if let Some(counters) = counters() {
        // SAFETY: this CPU's own counters.
        unsafe {
            if (*counters).high_water <= u64::from(index) {
                (*counters).high_water = u64::from(index) + 1;
            }
        }
    }
    slot
}

/// The slot of an open stream; null if there is none.
#[inline(always)]
pub(super) fn find_stream(connection: u64, stream: u32) -> *mut Slot {
    let Some(index) = REQUEST_STREAMS.get_ptr([connection, u64::from(stream)]) else {
        return null_mut();
    };
    // SAFETY: an entry of the table.
    match REQUEST_SLOTS.get_ptr_mut(unsafe { *index }) {
        Some(slot) => slot,
        None => null_mut(),
    }
}

/// Forgets a stream that has ended: true for the first who does, whose slot it then is.
#[inline(always)]
pub(super) fn forget_stream(connection: u64, stream: u32) -> bool {
    REQUEST_STREAMS
        .remove([connection, u64::from(stream)])
        .is_ok()
}

/// Gives back the slot of a stream that was forgotten.
#[inline(always)]
pub(super) fn free(slot: *mut Slot) {
    // SAFETY: a slot of the array.
    let index = unsafe { (*slot).facts.slot };
    let _ = REQUEST_FREE_SLOTS.push(index, 0);
}

/// Gives the agent a notice of a connection, with what lies behind it: `length` bytes.
///
/// # Safety
/// So many bytes must lie at `notice`.
#[inline(always)]
pub(super) unsafe fn put_notice(notice: *const u8, length: u64) {
    // SAFETY: the caller's promise, which the verifier proves.
    let put = unsafe {
        bpf_ringbuf_output(
            (&raw const REQUEST_RING).cast_mut().cast::<c_void>(),
            notice.cast_mut().cast::<c_void>(),
            length,
            NO_WAKEUP,
        )
    };
    if put != 0 {
        count!(notices_lost);
    }
}

/// Tells the agent that a connection ended at `at`, or its streams above `stream`.
#[inline(never)]
pub(super) fn put_end(connection: u64, stream: u32, kind: u32, at: u64) {
    let Some(mut record) = REQUEST_RING.reserve::<Notice>(0) else {
        count!(notices_lost);
        return;
    };
    let to = record.as_mut_ptr();
    // SAFETY: the reserved record, every field of which is written.
    unsafe {
        (*to).mark = NOTICE;
        (*to).connection = connection;
        (*to).stream = stream;
        (*to).number = 0;
        (*to).length = 0;
        (*to).kind = kind;
        (*to).padding = 0;
        (*to).at = at;
    }
    record.submit(NO_WAKEUP);
}

/// A new connection's identity: the CPU it began on, and its number there.
#[inline(always)]
pub(super) fn next_connection() -> u64 {
    let Some(counters) = counters() else { return 0 };
    // SAFETY: this CPU's own counters; the helper has no preconditions.
    unsafe {
        let connections = (*counters).connections.wrapping_add(1);
        (*counters).connections = connections;
        u64::from(bpf_get_smp_processor_id()) << 48 | connections
    }
}

/// Forgets a socket that is gone.
#[inline(always)]
pub(super) fn release(socket: u64, slot: *mut Slot) {
    // SAFETY: a slot of the array.
    let index = unsafe { (*slot).facts.slot };
    if REQUEST_SOCKETS.remove(socket).is_ok() {
        let _ = REQUEST_FREE_SLOTS.push(index, 0);
    }
}

/// The identity of a request that begins in a slot, which is being written: what the slot's
/// sequence is now it never is again.
///
/// # Safety
/// `slot` must be an entry of the slots.
#[inline(always)]
pub(super) unsafe fn next_id(slot: *const Slot) -> u64 {
    count!(started);
    // SAFETY: the caller's promise.
    unsafe { (*slot).sequence << SLOT_BITS | u64::from((*slot).facts.slot) }
}

/// Puts `value` in a word and returns what was there, in one step.
///
/// # Safety
/// `at` must be a word of a map.
#[inline(always)]
pub(super) unsafe fn swap(at: *mut u64, mut value: u64) -> u64 {
    // SAFETY: one instruction; the caller's promise.
    unsafe {
        core::arch::asm!(
            "{value} = xchg_64({at} + 0, {value})",
            at = in(reg) at,
            value = inout(reg) value,
        );
    }
    value
}

/// Keeps the compiler from moving memory accesses across. One real instruction: an empty one
/// would leave a line record without code, which the kernel refuses.
#[inline(always)]
fn barrier() {
    let mut register = 0u64;
    // SAFETY: a move of a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) register) };
    let _ = &mut register;
}

/// Before a slot is written: its sequence becomes odd.
///
/// # Safety
/// `slot` must be an entry of the slots.
#[inline(always)]
pub(super) unsafe fn begin_write(slot: *mut Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        let sequence = read_volatile(&raw const (*slot).sequence);
        write_volatile(&raw mut (*slot).sequence, sequence | 1);
    }
    barrier();
}

/// After a slot was written: its sequence becomes even, and another than before.
///
/// # Safety
/// `slot` must be an entry of the slots.
#[inline(always)]
pub(super) unsafe fn end_write(slot: *mut Slot) {
    barrier();
    // SAFETY: the caller's promise.
    unsafe {
        let sequence = read_volatile(&raw const (*slot).sequence);
        write_volatile(&raw mut (*slot).sequence, (sequence | 1).wrapping_add(1));
    }
}

/// Gives the agent the request that has just ended. The slot is idle already and its sequence
/// still odd, so that a reader who finds the record can no longer take the slot for alive.
#[inline(always)]
pub(super) fn emit(slot: *mut Slot) {
    // SAFETY: a slot of the array.
    let has_tail = unsafe { (*slot).facts.flags & TAIL != 0 };
    // Where there is no room for the response's end there may be for the request.
    if (has_tail && submit_with_tail(slot)) || submit(slot) {
        count!(finished);
    } else {
        count!(ring_full);
    }
    // SAFETY: a slot of the array.
    unsafe { (*slot).facts.outcome = Outcome::OPEN };
}

#[inline(always)]
fn submit(slot: *mut Slot) -> bool {
    let Some(mut record) = REQUEST_RING.reserve::<Facts>(0) else {
        return false;
    };
    // SAFETY: both are whole `Facts`.
    unsafe {
        core::ptr::copy_nonoverlapping(&raw const (*slot).facts, record.as_mut_ptr(), 1);
    }
    record.submit(NO_WAKEUP);
    true
}

#[inline(always)]
fn submit_with_tail(slot: *mut Slot) -> bool {
    let Some(tail) = tail(slot) else { return false };
    let Some(mut record) = REQUEST_RING.reserve::<Ended>(0) else {
        return false;
    };
    let (length, chunks, bytes) = tail.kept();
    let ended = record.as_mut_ptr();
    // SAFETY: a slot of the array.
    let facts = unsafe { &raw const (*slot).facts };
    copy(
        ended.cast::<u8>(),
        facts.cast::<u8>(),
        size_of::<Facts>() as u64,
    );
    // SAFETY: the record's own fields.
    let to = unsafe {
        (*ended).kept.length = length;
        (*ended).kept.chunks = chunks;
        (&raw mut (*ended).kept.bytes).cast::<u8>()
    };
    copy(to, bytes, KEPT as u64);
    record.submit(NO_WAKEUP);
    true
}
