//! What a process sends and receives through an io_uring: told by the ring's completions, each of
//! which knows its request, and so the socket and the buffer.
//!
//! The socket hooks fire for the same bytes, in the midst of whatever call the ring works behind.
//! They leave them to the completion where completions are followed; else the bytes
//! cannot be found. A completion comes before the process is told of it, so the buffer still holds
//! what was moved. It runs in the process, or in a thread of the ring's that shares its memory.
//!
//! A buffer that the kernel chose (provided buffers, and so every multishot receive) is no longer
//! known by then: such bytes are counted as unreadable.

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext as _, Global};
use core::ptr::{null_mut, read_volatile, write_volatile};
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;
use profiler_ebpf::io_uring::Rings;
use profiler_ebpf::owners::FIRST_SERVICE;

use super::descriptors::{leads_to, socket_of_file};
use super::exchange::{received, sent};
use super::slots::{count, find};
use super::socket::{Socket as _, Untrusted, read_kernel};
use super::source::{Direction, Origin, Source, message_source};
use crate::probes::MMAPABLE;
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;
use crate::probes::registers::{self, calls};

/// Where a task has its part of io_uring; it is null until it uses one.
#[unsafe(no_mangle)]
static TASK_IO_URING: Global<u32> = Global::new(ABSENT);
/// What a ring's own worker thread has, and no other thread of a process.
#[unsafe(no_mangle)]
static TASK_WORKER: Global<u32> = Global::new(ABSENT);

/// Members of `struct io_kiocb`, a ring's request.
#[unsafe(no_mangle)]
static RING_FILE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static RING_OPCODE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static RING_RESULT: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static RING_FLAGS: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static RING_COMMAND: Global<u32> = Global::new(ABSENT);
/// Members of its command: `struct io_sr_msg`, `struct io_rw`.
#[unsafe(no_mangle)]
static MESSAGE_BUFFER: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static MESSAGE_DONE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static MESSAGE_FLAGS: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static MESSAGE_MODE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static TRANSFER_BUFFER: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static TRANSFER_LENGTH: Global<u32> = Global::new(ABSENT);

/// `IORING_OP_*`, an ABI.
mod operation {
    pub(super) const READV: u8 = 1;
    pub(super) const WRITEV: u8 = 2;
    pub(super) const READ_FIXED: u8 = 4;
    pub(super) const WRITE_FIXED: u8 = 5;
    pub(super) const SENDMSG: u8 = 9;
    pub(super) const RECVMSG: u8 = 10;
    pub(super) const READ: u8 = 22;
    pub(super) const WRITE: u8 = 23;
    pub(super) const SEND: u8 = 26;
    pub(super) const RECV: u8 = 27;
    pub(super) const SPLICE: u8 = 30;
    pub(super) const SEND_ZC: u8 = 47;
    pub(super) const SENDMSG_ZC: u8 = 48;
}

const MSG_PEEK: u32 = 2;
/// `IORING_CQE_F_BUFFER`: the kernel chose the buffer, and the request has forgotten which.
const CHOSEN_BUFFER: u32 = 1;
/// Where a completion (`struct io_uring_cqe`, an ABI) has its result and its flags.
const COMPLETION_RESULT: u32 = 8;
const COMPLETION_FLAGS: u32 = 12;
/// `IORING_RECVSEND_BUNDLE`, `IORING_SEND_VECTORIZED`: several buffers.
const SEVERAL_BUFFERS: u16 = 1 << 4 | 1 << 5;

/// Shared with the agent.
#[map]
static REQUEST_RINGS: Array<Rings> = Array::with_max_entries(1, MMAPABLE);

/// True if completions are followed; else the agent is told that they should be.
#[inline(always)]
pub(super) fn are_followed() -> bool {
    let Some(rings) = REQUEST_RINGS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the entry of the array, whose words the agent reads and writes whole.
    unsafe {
        write_volatile(&raw mut (*rings).seen, 1);
        read_volatile(&raw const (*rings).followed) != 0
    }
}

/// True if it is a ring that works on `socket`, not the system call that runs. A ring works on the
/// way out of any call, or in threads of its own: in a process that uses one, the call's own
/// descriptor must lead to the socket.
#[inline(always)]
pub(super) fn works_for(socket: u64) -> bool {
    // SAFETY: the current task always exists; the helper returns a trusted pointer.
    let task = unsafe { bpf_get_current_task_btf() };
    if is_set(task as *const u8, TASK_WORKER.load()) {
        return true;
    }
    if !is_set(task as *const u8, TASK_IO_URING.load()) {
        return false;
    }
    // SAFETY: as above.
    let registers = unsafe { bpf_task_pt_regs(task) } as *const u8;
    // SAFETY: a trusted pointer to `pt_regs`.
    let (number, descriptor) = unsafe {
        (
            registers::number(registers),
            registers::argument_of(registers, 0),
        )
    };
    match number {
        // A ring's polling thread still has the registers of the call that made it.
        calls::IO_URING_SETUP | calls::IO_URING_ENTER => true,
        // Its socket is another of its arguments.
        calls::SPLICE => false,
        _ => !leads_to(descriptor, socket),
    }
}

/// True if the pointer at `offset` of the task is not null.
#[inline(always)]
fn is_set(task: *const u8, offset: u32) -> bool {
    // SAFETY: a trusted pointer to a task, and a pointer among its members.
    offset != ABSENT && unsafe { !(*task.add(offset as usize).cast::<*const u8>()).is_null() }
}

/// Bytes that a ring has moved on a socket. They are told through a map, not in registers: the
/// verifier would walk all that follows once for each kind of request.
#[repr(C)]
struct Moved {
    /// The socket's address.
    socket: u64,
    length: u64,
    /// Where the bytes are if `segments` is 0, else the segments; 0 if not known.
    address: u64,
    segments: u64,
}

#[map]
static REQUEST_MOVED: PerCpuArray<Moved> = PerCpuArray::with_max_entries(1, 0);

/// The buffers of a ring's request.
#[derive(Clone, Copy)]
struct Buffers(*mut Moved);

impl Origin for Buffers {
    #[inline(always)]
    fn source(self, _: Direction) -> Source {
        // SAFETY: this CPU's entry.
        let (address, segments) = unsafe {
            (
                read_volatile(&raw const (*self.0).address),
                read_volatile(&raw const (*self.0).segments),
            )
        };
        match (address, segments) {
            (0, _) => Source::Unknown,
            (_, 0) => Source::Plain(address),
            _ => Source::Segments(address, segments),
        }
    }
}

/// What a finished request, the `struct io_kiocb` at this address, moved in this direction; null
/// if nothing.
#[inline(always)]
fn moved(request: u64, direction: Direction) -> *mut Moved {
    match REQUEST_MOVED.get_ptr_mut(0) {
        Some(to) if find_moved(request, direction == Direction::Sent, to) => to,
        _ => null_mut(),
    }
}

/// A function of its own, of which nothing but the result stays in registers.
#[inline(never)]
fn find_moved(request: u64, sent: bool, to: *mut Moved) -> bool {
    let direction = if sent {
        Direction::Sent
    } else {
        Direction::Received
    };
    let Some(found) = read_request(request, direction) else {
        return false;
    };
    // SAFETY: this CPU's entry.
    unsafe { write_volatile(to, found) };
    true
}

#[inline(always)]
fn read_request(request: u64, direction: Direction) -> Option<Moved> {
    let operation: u8 = read_kernel(request, RING_OPCODE.load())?;
    let result: i32 = read_kernel(request, RING_RESULT.load())?;
    // The socket hooks tell of what failed, and of an end.
    if result <= 0 {
        return None;
    }
    let command = request.wrapping_add(u64::from(RING_COMMAND.load()));
    let source = match (direction, operation) {
        (Direction::Received, operation::RECV)
        | (Direction::Sent, operation::SEND | operation::SEND_ZC) => buffer_of_message(command)?,
        (Direction::Received, operation::RECVMSG)
        | (Direction::Sent, operation::SENDMSG | operation::SENDMSG_ZC) => {
            segments_of_message(command)?
        }
        (Direction::Received, operation::READ | operation::READ_FIXED)
        | (Direction::Sent, operation::WRITE | operation::WRITE_FIXED) => {
            Source::Plain(read_kernel(command, TRANSFER_BUFFER.load())?)
        }
        (Direction::Received, operation::READV) | (Direction::Sent, operation::WRITEV) => {
            segments_of_transfer(command)?
        }
        (Direction::Sent, operation::SPLICE) => Source::Unknown,
        _ => return None,
    };
    let flags: u32 = read_kernel(request, RING_FLAGS.load())?;
    let (address, segments) = match source {
        _ if flags & CHOSEN_BUFFER != 0 => (0, 0),
        Source::Plain(address) => (address, 0),
        Source::Segments(address, count) if count != 0 => (address, count),
        _ => (0, 0),
    };
    Some(Moved {
        socket: socket_of_file(read_kernel(request, RING_FILE.load())?)?.key(),
        length: result as u64,
        address,
        segments,
    })
}

#[inline(always)]
fn peeks(command: u64) -> Option<bool> {
    let flags: u32 = read_kernel(command, MESSAGE_FLAGS.load())?;
    Some(flags & MSG_PEEK != 0)
}

/// Of a plain send or receive. `None` if it only peeked.
#[inline(always)]
fn buffer_of_message(command: u64) -> Option<Source> {
    if peeks(command)? {
        return None;
    }
    let mode: u16 = read_kernel(command, MESSAGE_MODE.load())?;
    if mode & SEVERAL_BUFFERS != 0 {
        return Some(Source::Unknown);
    }
    let address: u64 = read_kernel(command, MESSAGE_BUFFER.load())?;
    // What was moved in several steps: the address is the last one's.
    let before: u32 = read_kernel(command, MESSAGE_DONE.load())?;
    Some(Source::Plain(address.wrapping_sub(u64::from(before))))
}

/// Of a send or receive of segments, whose description is the process's own.
#[inline(always)]
fn segments_of_message(command: u64) -> Option<Source> {
    if peeks(command)? {
        return None;
    }
    Some(message_source(read_kernel(command, MESSAGE_BUFFER.load())?))
}

#[inline(always)]
fn segments_of_transfer(command: u64) -> Option<Source> {
    let address: u64 = read_kernel(command, TRANSFER_BUFFER.load())?;
    let count: u32 = read_kernel(command, TRANSFER_LENGTH.load())?;
    Some(Source::Segments(address, u64::from(count)))
}

/// Counts what a multishot receive has put in a buffer: such a completion names no request.
///
/// Older kernels (6.1) have the process's own number in this place, and no pointer of the kernel's.
#[inline(always)]
fn count_multishot(completion: u64) {
    let is_kernels = completion >> 63 != 0;
    if is_kernels
        && let Some(result) = read_kernel::<i32>(completion, COMPLETION_RESULT)
        && let Some(flags) = read_kernel::<u32>(completion, COMPLETION_FLAGS)
        && result > 0
        && flags & CHOSEN_BUFFER != 0
    {
        count!(unreadable);
    }
}

/// `io_uring_complete(struct io_ring_ctx *ctx, void *req, struct io_uring_cqe *cqe)`; on older
/// kernels (6.1) the third and more are other values.
#[btf_tracepoint(function = "io_uring_complete")]
#[inline(always)]
fn io_uring_received(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::IoUringReceived);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE {
        return 0;
    }
    let request: u64 = ctx.arg(1);
    if request == 0 {
        count_multishot(ctx.arg(2));
        return 0;
    }
    let moved = moved(request, Direction::Received);
    if !moved.is_null() {
        // SAFETY: this CPU's entry.
        let (socket, length) = unsafe { ((*moved).socket, (*moved).length) };
        let found = find(socket);
        let socket = Untrusted::new(socket);
        received(socket, found, Buffers(moved), length, tgid, owner);
    }
    0
}

/// The same tracepoint.
#[btf_tracepoint(function = "io_uring_complete")]
fn io_uring_sent(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::IoUringSent);
    if owner_of(ctx.tgid()) < FIRST_SERVICE {
        return 0;
    }
    let moved = moved(ctx.arg(1), Direction::Sent);
    if !moved.is_null() {
        // SAFETY: this CPU's entry.
        let (socket, length) = unsafe { ((*moved).socket, (*moved).length) };
        let slot = find(socket);
        if !slot.is_null() {
            sent(slot, Buffers(moved), length);
        }
    }
    0
}
