//! The bytes of a receive or send, read from the process's own buffers. The hooks fire after the
//! copy, so the pages are there.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use profiler_ebpf::http1::{FRONT, KEPT, WINDOW, Window, mask};

use super::source::{Direction, Origin, Source};
use super::tail::copy;

/// The most pieces a window is put together from.
const SEGMENTS: u32 = 64;

/// How many segments' addresses are read at a time.
const BATCH: u64 = 4;

/// A window of payload and where the rest of it lies in the process's memory.
#[repr(C)]
pub(super) struct Buffer {
    pub(super) window: Window,
    /// Where the bytes begin, or an array of {address, length} in the process.
    source: u64,
    /// Bytes at `source`; 0 where they lie in segments, or nobody knows where.
    plain: u64,
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
    /// 1 if it is a ring that moved the bytes. In memory, so that the verifier need not walk all
    /// that follows once for each case.
    by_ring: u64,
}

/// Fields are read and written as volatile: see [`profiler_ebpf::http1`].
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

/// Notes where the `total` bytes of a receive or send lie, which are to be read. Of bytes in no
/// plain buffers nothing will be.
#[inline(always)]
pub(super) fn open<O: Origin>(buffer: *mut Buffer, origin: O, direction: Direction, total: u64) {
    let (source, plain, segments) = match origin.source(direction) {
        Source::Plain(address) => (address, total, 0),
        Source::Segments(address, count) => (address, 0, count),
        Source::Unknown => (0, 0, 0),
    };
    set!(buffer.source = source);
    set!(buffer.plain = plain);
    set!(buffer.segment_count = segments);
    rewind(buffer);
}

/// Notes whether a ring moved the bytes that will be open.
#[inline(always)]
pub(super) fn set_by_ring(buffer: *mut Buffer, by_ring: bool) {
    set!(buffer.by_ring = u64::from(by_ring));
}

#[inline(always)]
pub(super) fn is_by_ring(buffer: *mut Buffer) -> bool {
    get!(buffer.by_ring) != 0
}

/// Goes back to the beginning of what is open.
#[inline(always)]
pub(super) fn rewind(buffer: *mut Buffer) {
    set!(buffer.next_segment = 0);
    set!(buffer.skip = 0);
    set!(buffer.address = get!(buffer.source));
    set!(buffer.left = get!(buffer.plain));
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
    // SAFETY: this CPU's buffer.
    unsafe { fill_window(buffer, wanted) }
}

/// # Safety
/// `buffer` is an entry of its map, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn fill_window(buffer: *mut Buffer, wanted: u64) -> u64 {
    if buffer.is_null() {
        return 0;
    }
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
            let from = get!(buffer.source).wrapping_add(next * 16);
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

/// Reads the first bytes to [`FRONT`], at most `most` (≤ 511) and only those of the first piece;
/// returns how many, 0 if they cannot be read.
#[inline(always)]
pub(super) fn read_first(buffer: *mut Buffer, most: u64) -> u64 {
    let mut address = get!(buffer.source);
    let mut piece = get!(buffer.plain);
    if piece == 0 {
        if get!(buffer.segment_count) == 0 || !read_batch(buffer, address, 1) {
            return 0;
        }
        [address, piece] = segment(buffer, 0);
    }
    let length = mask::<0x1ff>(if piece < most { piece } else { most });
    let to = buffer_mut(buffer).window.bytes().as_mut_ptr();
    // SAFETY: FRONT + 511 lies in the window's bytes.
    if unsafe { read_user(to.add(FRONT), length, address) } {
        length
    } else {
        0
    }
}

/// Reads the beginning to [`FRONT`], at most `wanted` (≤ 511) bytes; returns how many, 0 if none
/// can be.
#[inline(always)]
pub(super) fn beginning(buffer: *mut Buffer, total: u64, wanted: u64) -> u64 {
    // SAFETY: this CPU's buffer.
    unsafe { read_beginning(buffer, total, wanted) }
}

/// # Safety
/// `buffer` is an entry of its map, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn read_beginning(buffer: *mut Buffer, total: u64, wanted: u64) -> u64 {
    if buffer.is_null() {
        return 0;
    }
    let wanted = if total < wanted { total } else { wanted };
    let read = read_first(buffer, wanted);
    if read == wanted {
        return read;
    }
    // In several pieces.
    fill(buffer, wanted)
}

/// Reads all `total` (≤ [`WINDOW`]) bytes to [`FRONT`], if they lie in few segments.
#[inline(always)]
pub(super) fn read_small(buffer: *mut Buffer, total: u64) -> bool {
    let to = buffer_mut(buffer).window.bytes().as_mut_ptr();
    let source = get!(buffer.source);
    let count = get!(buffer.segment_count);
    if get!(buffer.plain) != 0 {
        // SAFETY: FRONT + 1,023 lies in the window's bytes.
        return unsafe { read_user(to.add(FRONT), mask::<0x3ff>(total), source) };
    }
    if count == 0 || count > BATCH || !read_batch(buffer, source, count) {
        return false;
    }
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

/// Reads the last `bytes` (≤ [`KEPT`]) of `total` to `to`; false if they cannot be read.
#[inline(always)]
pub(super) fn read_end(buffer: *mut Buffer, to: *mut u8, total: u64, bytes: u64) -> bool {
    let before = total.wrapping_sub(bytes);
    if get!(buffer.plain) != 0 {
        let bytes = if bytes < KEPT as u64 {
            bytes
        } else {
            KEPT as u64
        };
        let from = get!(buffer.source).wrapping_add(before);
        // SAFETY: the caller's room.
        return unsafe { read_user(to, bytes, from) };
    }
    rewind(buffer);
    skip(buffer, before);
    if fill(buffer, bytes) != bytes {
        return false;
    }
    let from = buffer_mut(buffer).window.bytes().as_ptr();
    // SAFETY: `fill` has put them there.
    copy(to, unsafe { from.add(FRONT) }, KEPT as u64);
    true
}
