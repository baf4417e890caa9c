//! The bytes of a receive or send, read from the process's own buffers. The hooks fire after the
//! copy, so the pages are there. A system call's buffers are found through its registers.
//!
//! Calls whose buffers are not plain (sendfile, splice, sendmmsg) give nothing.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_loop, bpf_probe_read_user, bpf_task_pt_regs,
};
use profiler_ebpf::http1::{self, FRONT, KEPT, Memory, Payload, Tail, WINDOW, Window, mask};
use profiler_ebpf::request::{Phase, Slot};

use super::io_uring;
use super::slots;
use super::tail::{copy, tail};

/// The most windows of one send: 63 KiB of what must be read (a plain body is not read at all).
const WINDOWS: u32 = 64;

/// Bytes of a head that are read at a time: the body behind it may not be needed.
const HEAD_WINDOW: u64 = 384;

/// The most pieces a window is put together from.
const SEGMENTS: u32 = 64;

/// How many segments' addresses are read at a time.
const BATCH: u64 = 4;

/// Which way the bytes went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Received,
    Sent,
}

/// Registers of a system call as the kernel saves them: `struct pt_regs`, an ABI.
#[cfg(bpf_target_arch = "x86_64")]
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Registers {
    unused: [u64; 7],
    pub(super) r10: u64,
    unused_too: [u64; 4],
    pub(super) dx: u64,
    pub(super) si: u64,
    pub(super) di: u64,
    pub(super) orig_ax: u64,
}

/// A window of payload and where the rest of it lies in the process's memory.
#[repr(C)]
pub(super) struct Buffer {
    pub(super) window: Window,
    /// An array of {address, length} in the process.
    segments: u64,
    segment_count: u64,
    next_segment: u64,
    /// Up to four of them, read together; the room is what the verifier allows for.
    batch: [[u64; 2]; 7],
    /// What is left of the present segment.
    address: u64,
    left: u64,
    /// Bytes to pass over before the next that is read.
    skip: u64,
    /// The present fill: bytes read, and wanted.
    filled: u64,
    wanted: u64,
    failed: u64,
}

/// Fields are read and written as volatile: see [`http1`].
macro_rules! get {
    ($buffer:ident.$field:ident) => {
        // SAFETY: a field of the per-CPU buffer.
        unsafe { read_volatile(&raw const (*$buffer).$field) }
    };
}
macro_rules! set {
    ($buffer:ident.$field:ident = $value:expr) => {
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*$buffer).$field, $value) }
    };
}

/// Reads `length` bytes of the process's memory; false if they are not there.
///
/// # Safety
/// `to` must have room for `length` bytes.
#[inline(always)]
pub(super) unsafe fn read_user(to: *mut u8, length: u64, from: u64) -> bool {
    // SAFETY: the helper checks `from`; `to` is the caller's promise, which the verifier proves.
    unsafe { bpf_probe_read_user(to.cast::<c_void>(), length as u32, from as *const c_void) == 0 }
}

/// Where bytes lie.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// At this address.
    Plain(u64),
    /// In segments: the address of an array of {address, length}, and how many there are.
    Segments(u64, u64),
    /// In no plain buffers: sendfile, splice, sendmmsg.
    Unknown,
}

/// Says where the bytes of a receive or send lie. It is asked only where they must be read.
pub(super) trait Origin: Copy {
    /// True where a TLS session's bytes are ciphertext.
    const BELOW_TLS: bool = true;

    /// Where they are.
    fn source(self, direction: Direction) -> Source;

    /// Where they can be put.
    #[inline(always)]
    fn buffer(self) -> Option<*mut Buffer> {
        slots::buffer()
    }
}

/// In the buffers of the system call that is running, if it is one on this socket.
#[derive(Clone, Copy)]
pub(super) struct Syscall {
    /// The socket's address.
    pub(super) socket: u64,
}

impl Origin for Syscall {
    #[inline(always)]
    fn source(self, direction: Direction) -> Source {
        syscall_source(direction, self.socket)
    }
}

/// Finds the bytes of the running system call, if it is one on `socket`, through its registers.
#[inline(always)]
fn syscall_source(direction: Direction, socket: u64) -> Source {
    #[cfg(bpf_target_arch = "x86_64")]
    {
        // SAFETY: the current task always exists; the helper returns a trusted pointer.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: as above.
        let registers = unsafe { bpf_task_pt_regs(task) } as *const Registers;
        // SAFETY: a trusted pointer to `pt_regs`.
        let (number, second, third) =
            unsafe { ((*registers).orig_ax, (*registers).si, (*registers).dx) };
        if io_uring::works_for(socket) {
            return Source::Unknown;
        }
        let (plain, plain_to, vector, message) = match direction {
            // read, recvfrom, readv, recvmsg; write, sendto, writev, sendmsg
            Direction::Received => (0, 45, 19, 47),
            Direction::Sent => (1, 44, 20, 46),
        };
        if number == plain || number == plain_to {
            return Source::Plain(second);
        }
        if number == vector {
            return Source::Segments(second, third);
        }
        if number == message {
            return message_source(second);
        }
    }
    Source::Unknown
}

/// The segments of the `struct msghdr` at this address of the process.
#[inline(always)]
pub(super) fn message_source(address: u64) -> Source {
    let mut vector = MaybeUninit::<[u64; 2]>::uninit();
    let to = vector.as_mut_ptr().cast::<u8>();
    // SAFETY: two words; `msg_iov` and `msg_iovlen`.
    if unsafe { read_user(to, 16, address.wrapping_add(16)) } {
        // SAFETY: just read.
        let [segments, count] = unsafe { vector.assume_init() };
        return Source::Segments(segments, count);
    }
    Source::Unknown
}

/// Prepares to read the `total` bytes at `origin`. Of bytes in no plain buffers nothing will be
/// read.
#[inline(always)]
pub(super) fn open<O: Origin>(buffer: *mut Buffer, origin: O, direction: Direction, total: u64) {
    set!(buffer.segment_count = 0);
    set!(buffer.next_segment = 0);
    set!(buffer.left = 0);
    set!(buffer.skip = 0);
    match origin.source(direction) {
        Source::Plain(address) => {
            set!(buffer.address = address);
            set!(buffer.left = total);
        }
        Source::Segments(address, count) => {
            set!(buffer.segments = address);
            set!(buffer.segment_count = count);
        }
        Source::Unknown => {}
    }
}

#[inline(always)]
fn buffer_mut<'a>(buffer: *mut Buffer) -> &'a mut Buffer {
    // SAFETY: the per-CPU buffer, which one program at a time uses: programs do not nest on it.
    unsafe { &mut *buffer }
}

/// Reads the {address, length} of `count` segments, at most four, from an array of them.
#[inline(always)]
fn read_batch(buffer: *mut Buffer, from: u64, count: u64) -> bool {
    let count = if count < BATCH { count } else { BATCH };
    let to = (&raw mut buffer_mut(buffer).batch).cast::<u8>();
    // SAFETY: room for seven.
    unsafe { read_user(to, mask::<0x70>(count * 16), from) }
}

/// The `n`th segment, modulo four, of those read together.
#[inline(always)]
fn segment(buffer: *mut Buffer, n: u64) -> [u64; 2] {
    let place = mask::<{ BATCH as i32 - 1 }>(n) as usize;
    // SAFETY: less than the batch's length.
    unsafe {
        read_volatile(
            (&raw const buffer_mut(buffer).batch)
                .cast::<[u64; 2]>()
                .add(place),
        )
    }
}

/// Reads up to `wanted` (≤ [`WINDOW`]) bytes to [`FRONT`]; returns how many, 0 if none can be.
#[inline(always)]
pub(super) fn fill(buffer: *mut Buffer, wanted: u64) -> u64 {
    let wanted = if wanted < WINDOW as u64 {
        wanted
    } else {
        WINDOW as u64
    };
    set!(buffer.wanted = wanted);
    set!(buffer.filled = 0);
    set!(buffer.failed = 0);
    let mut context = buffer;
    // Most calls have one segment.
    // SAFETY: the context it takes.
    unsafe { fill_step(0, &raw mut context) };
    if get!(buffer.filled) >= wanted {
        return get!(buffer.filled);
    }
    // SAFETY: the callback takes this context; both live until the loop returns.
    unsafe {
        bpf_loop(
            SEGMENTS,
            fill_step as *const () as *mut c_void,
            (&raw mut context).cast::<c_void>(),
            0,
        );
    }
    if get!(buffer.failed) != 0 {
        return 0;
    }
    get!(buffer.filled)
}

/// Reads from one segment, or moves on to the next. 1 = stop.
#[inline(never)]
unsafe extern "C" fn fill_step(_: u64, context: *mut *mut Buffer) -> i64 {
    // SAFETY: the context `fill` passed.
    let buffer = unsafe { *context };
    let filled = get!(buffer.filled);
    let wanted = get!(buffer.wanted);
    if filled >= wanted {
        return 1;
    }
    let mut left = get!(buffer.left);
    let mut address = get!(buffer.address);
    if left == 0 {
        let next = get!(buffer.next_segment);
        if next >= get!(buffer.segment_count) {
            return 1;
        }
        set!(buffer.next_segment = next + 1);
        if next % BATCH == 0 {
            let from = get!(buffer.segments).wrapping_add(next * 16);
            if !read_batch(buffer, from, get!(buffer.segment_count) - next) {
                set!(buffer.failed = 1);
                return 1;
            }
        }
        [address, left] = segment(buffer, next);
    }
    let skip = get!(buffer.skip);
    if skip != 0 {
        let passed = if skip < left { skip } else { left };
        set!(buffer.skip = skip - passed);
        set!(buffer.address = address.wrapping_add(passed));
        set!(buffer.left = left - passed);
        return 0;
    }
    let room = wanted - filled;
    let length = mask::<0x3ff>(if left < room { left } else { room });
    let at = FRONT + mask::<0x3ff>(filled) as usize;
    let to = buffer_mut(buffer).window.bytes().as_mut_ptr();
    // SAFETY: FRONT + 1,023 + 1,023 lies in the window's bytes.
    if !unsafe { read_user(to.add(at), length, address) } {
        set!(buffer.failed = 1);
        return 1;
    }
    set!(buffer.filled = filled + length);
    set!(buffer.address = address.wrapping_add(length));
    set!(buffer.left = left - length);
    0
}

/// Passes over bytes without reading them.
#[inline(always)]
pub(super) fn skip(buffer: *mut Buffer, bytes: u64) {
    set!(buffer.skip = get!(buffer.skip).wrapping_add(bytes));
}

/// A send of a followed socket. It lies on the stack, and holds nothing but two pointers into
/// maps: loops' callbacks get at it through a stack pointer.
#[repr(C)]
struct Send {
    buffer: *mut Buffer,
    slot: *mut Slot,
}

impl Memory for Send {
    #[inline(always)]
    unsafe fn copy(to: *mut u8, from: *const u8, bytes: u64) {
        copy(to, from, bytes);
    }
}

impl Payload for Send {
    #[inline(always)]
    fn parts(&mut self) -> (&mut Window, &mut Slot) {
        // SAFETY: entries of two maps; this program alone uses them while it runs (a second
        // system call on the same socket at the same moment can garble a request, no more).
        unsafe { (&mut (*self.buffer).window, &mut *self.slot) }
    }

    #[inline(always)]
    fn with_tail(&mut self) -> (&mut Window, &mut Slot, Option<&mut Tail>) {
        let tail = tail(self.slot);
        let (window, slot) = self.parts();
        (window, slot, tail)
    }

    #[inline(always)]
    fn fill(&mut self) -> u64 {
        let (window, slot) = self.parts();
        let remaining = window.remaining();
        let in_head = slot.facts.phase == Phase::WAITING || slot.facts.phase == Phase::HEAD;
        let wanted = if in_head && remaining > HEAD_WINDOW {
            HEAD_WINDOW
        } else {
            remaining
        };
        fill(self.buffer, wanted)
    }

    #[inline(always)]
    fn skip(&mut self, bytes: u64) {
        skip(self.buffer, bytes);
    }

    #[inline(always)]
    fn steps(&mut self) {
        // SAFETY: entries of two maps.
        unsafe { follow_lines(self.buffer, self.slot) };
    }
}

/// Follows the lines that the window holds, whose place and end its caller has set.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn follow_lines(buffer: *mut Buffer, slot: *mut Slot) -> u64 {
    if buffer.is_null() || slot.is_null() {
        return 0;
    }
    let mut send = Send { buffer, slot };
    // Every step takes a byte at least, so this many always do.
    // SAFETY: the callback takes this context; it lives until the loop returns.
    unsafe {
        bpf_loop(
            WINDOW as u32 + 1,
            step as *const () as *mut c_void,
            (&raw mut send).cast::<c_void>(),
            0,
        );
    }
    0
}

#[inline(never)]
unsafe extern "C" fn step(_: u64, send: *mut Send) -> i64 {
    // SAFETY: the context `steps` passed.
    i64::from(http1::step(unsafe { &mut *send }))
}

#[inline(never)]
unsafe extern "C" fn window(_: u64, send: *mut Send) -> i64 {
    // SAFETY: the context `follow` passed.
    i64::from(http1::window(unsafe { &mut *send }))
}

/// Takes a send of `total` bytes that is one event of a stream. If it is not, returns how many
/// bytes it has read ahead.
#[inline(always)]
pub(super) fn event<O: Origin>(
    buffer: *mut Buffer,
    slot: *mut Slot,
    origin: O,
    total: u64,
    now: u64,
) -> Result<(), u64> {
    // SAFETY: a slot of the array.
    if !http1::may_be_event(unsafe { &*slot }, total) || !read_small(buffer, origin, total) {
        return Err(0);
    }
    if http1::event(&mut Send { buffer, slot }, total, now) {
        Ok(())
    } else {
        Err(total)
    }
}

/// Reads the last `bytes` (≤ [`KEPT`]) of a send's `total` to `to`; false if they cannot be read.
#[inline(always)]
pub(super) fn read_end<O: Origin>(
    buffer: *mut Buffer,
    to: *mut u8,
    origin: O,
    total: u64,
    bytes: u64,
) -> bool {
    let before = total.wrapping_sub(bytes);
    if let Source::Plain(address) = origin.source(Direction::Sent) {
        let bytes = if bytes < KEPT as u64 {
            bytes
        } else {
            KEPT as u64
        };
        // SAFETY: the caller's room.
        return unsafe { read_user(to, bytes, address.wrapping_add(before)) };
    }
    open(buffer, origin, Direction::Sent, total);
    set!(buffer.skip = before);
    if fill(buffer, bytes) != bytes {
        return false;
    }
    let from = buffer_mut(buffer).window.bytes().as_ptr();
    // SAFETY: `fill` has put them there.
    copy(to, unsafe { from.add(FRONT) }, KEPT as u64);
    true
}

/// Reads all of a send's `total` (≤ [`WINDOW`]) bytes to [`FRONT`], if they lie in few segments.
#[inline(always)]
fn read_small<O: Origin>(buffer: *mut Buffer, origin: O, total: u64) -> bool {
    let to = buffer_mut(buffer).window.bytes().as_mut_ptr();
    let count = match origin.source(Direction::Sent) {
        Source::Plain(address) => {
            // SAFETY: FRONT + 1,023 lies in the window's bytes.
            return unsafe { read_user(to.add(FRONT), mask::<0x3ff>(total), address) };
        }
        Source::Segments(address, count) if count <= BATCH => {
            if !read_batch(buffer, address, count) {
                return false;
            }
            count
        }
        _ => return false,
    };
    let mut filled = 0;
    let mut i = 0;
    while i < BATCH {
        if i >= count {
            break;
        }
        let [address, length] = segment(buffer, i);
        let room = total.wrapping_sub(filled);
        let length = mask::<0x3ff>(if length < room { length } else { room });
        // SAFETY: FRONT + 1,023 + 1,023 lies in the window's bytes.
        if !unsafe {
            read_user(
                to.add(FRONT + mask::<0x3ff>(filled) as usize),
                length,
                address,
            )
        } {
            return false;
        }
        filled = filled.wrapping_add(length);
        i += 1;
    }
    filled == total
}

/// Follows a send of `total` bytes, of which `ahead` (all or none) lie at [`FRONT`]. What it
/// leaves in the window as remaining lies behind the response's end.
#[inline(always)]
pub(super) fn follow<O: Origin>(
    buffer: *mut Buffer,
    slot: *mut Slot,
    origin: O,
    total: u64,
    ahead: u64,
    now: u64,
) {
    open(buffer, origin, Direction::Sent, total);
    buffer_mut(buffer).window.begin(total, now, ahead);
    // SAFETY: entries of two maps.
    unsafe { follow_windows(buffer, slot) };
}

/// Follows what is open in the buffer.
///
/// # Safety
/// Both are entries of their maps, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn follow_windows(buffer: *mut Buffer, slot: *mut Slot) -> u64 {
    if buffer.is_null() || slot.is_null() {
        return 0;
    }
    let mut send = Send { buffer, slot };
    // SAFETY: the callback takes this context; it lives until the loop returns.
    unsafe {
        bpf_loop(
            WINDOWS,
            window as *const () as *mut c_void,
            (&raw mut send).cast::<c_void>(),
            0,
        );
    }
    0
}
