//! The end of a response that may hold the server's own token counts: the last bytes of its last
//! line of data that may.
//!
//! Servers put the counts at the end of an event's JSON, so a line is kept only if it ends as
//! counts do: in a brace behind a digit, or behind another brace that does not close over a text.
//! Most chunks of output end otherwise, and cost one comparison. A line that is cut, by the end
//! of a send or of a window, is kept piece by piece: of any cut, the same bytes remain.

use core::ptr::{addr_of, read_volatile};

use super::{Window, mask};

/// Bytes kept of a line.
pub const KEPT: usize = 512;

/// Sockets of which an end is kept: those in the first so many slots, which are used first.
pub const TAILS: u32 = 4_096;

/// The least bytes of a line that is kept: no counts are shorter.
const LEAST_LINE: u64 = 8;

/// The kept line of a socket's response, and the one on its way.
#[repr(C)]
#[derive(Debug)]
pub struct Tail {
    /// Bytes so far of the line on its way; only of a line that is cut.
    line: u64,
    /// Bytes that the kept line had.
    length: u64,
    /// The request's chunks when it was kept.
    chunks: u64,
    /// Where in `bytes` the kept line lies: 0 or [`KEPT`]. The other half is for the next.
    half: u64,
    /// Two halves, each a ring of a line's last bytes, and room that the verifier allows for.
    bytes: [u8; 3 * KEPT],
}

/// A kept line as the agent gets it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Bytes the line had; the last [`KEPT`] of them are here.
    pub length: u32,
    /// The request's chunks when it was kept.
    pub chunks: u32,
    /// The byte at offset `n` of the line lies at `n` modulo [`KEPT`].
    pub bytes: [u8; KEPT],
}

/// How bytes are copied from map to map.
pub trait Memory {
    /// Copies `bytes` (≤ [`KEPT`]) bytes.
    ///
    /// # Safety
    /// Both must have so many.
    unsafe fn copy(to: *mut u8, from: *const u8, bytes: u64);
}

/// True if a line that ends with these bytes, the last of them highest, may hold token counts.
#[inline(always)]
pub(super) const fn may_count(end: u64) -> bool {
    let brace = b'}' as u64;
    let before = end >> 48 & 0xff;
    end >> 56 == brace
        && (before.wrapping_sub(b'0' as u64) <= 9
            || (before == brace && end >> 40 & 0xff != b'"' as u64))
}

/// The same without the carriage return of a line's end.
#[inline(always)]
const fn without_return(end: u64) -> u64 {
    if end >> 56 == b'\r' as u64 {
        end << 8
    } else {
        end
    }
}

impl Tail {
    /// Of nothing.
    pub const fn new() -> Self {
        Self {
            line: 0,
            length: 0,
            chunks: 0,
            half: 0,
            bytes: [0; 3 * KEPT],
        }
    }

    /// A piece of a line, from `from` to before `to` in the window, behind which the line goes
    /// on. `first` says that the line begins with it.
    #[inline(always)]
    pub(super) fn piece<M: Memory>(&mut self, window: &Window, from: u64, to: u64, first: bool) {
        let so_far = if first { 0 } else { self.line() };
        let bytes = to.wrapping_sub(from);
        let passed = bytes.saturating_sub(KEPT as u64);
        let (from, bytes) = (from.wrapping_add(passed), bytes.wrapping_sub(passed));
        let at = so_far.wrapping_add(passed);
        let room = (KEPT as u64).wrapping_sub(mask::<{ KEPT as i32 - 1 }>(at));
        let here = if bytes < room { bytes } else { room };
        self.copy::<M>(at, window.address(from), here);
        if here < bytes {
            // Behind the ring's end it goes on at its beginning.
            let from = window.address(from.wrapping_add(here));
            self.copy::<M>(at.wrapping_add(here), from, bytes.wrapping_sub(here));
        }
        self.line = at.wrapping_add(bytes);
    }

    /// The line ends, without its newline, at `to`; what is not yet here of it begins at `from`.
    /// `cut` says that pieces of it are here. True if it may hold token counts; then it is kept.
    #[inline(always)]
    pub(super) fn line_ends<M: Memory>(
        &mut self,
        window: &Window,
        from: u64,
        to: u64,
        cut: bool,
    ) -> bool {
        if !cut {
            let bytes = to.wrapping_sub(from);
            let end = without_return(window.word(to.wrapping_sub(8), 0));
            if bytes < LEAST_LINE || !may_count(end) {
                return false;
            }
        }
        self.piece::<M>(window, from, to, !cut);
        if cut && (self.line() < LEAST_LINE || !may_count(without_return(self.end_of_line()))) {
            return false;
        }
        self.half ^= KEPT as u64;
        self.length = self.line();
        true
    }

    /// How many chunks there were with the line just kept.
    #[inline(always)]
    pub(super) const fn set_chunks(&mut self, chunks: u32) {
        self.chunks = chunks as u64;
    }

    /// Makes room for `bytes` (≤ [`KEPT`]) that are kept as they are: they go where this points.
    #[inline(always)]
    pub fn keep_whole(&mut self, bytes: u64) -> *mut u8 {
        self.half = 0;
        self.length = bytes;
        self.chunks = 0;
        (&raw mut self.bytes).cast::<u8>()
    }

    /// What is kept, without its bytes, which are the [`KEPT`] from the address.
    #[inline(always)]
    pub fn kept(&self) -> (u32, u32, *const u8) {
        // SAFETY: a field of `self`; a half lies in `bytes`.
        let bytes = unsafe {
            let half = mask::<{ KEPT as i32 }>(read_volatile(addr_of!(self.half)));
            addr_of!(self.bytes).cast::<u8>().add(half as usize)
        };
        (self.length as u32, self.chunks as u32, bytes)
    }

    #[inline(always)]
    fn line(&self) -> u64 {
        // SAFETY: a field of `self`.
        unsafe { read_volatile(addr_of!(self.line)) }
    }

    /// Offset in `bytes` of the half that is not kept.
    #[inline(always)]
    fn other_half(&self) -> usize {
        // SAFETY: a field of `self`.
        let half = unsafe { read_volatile(addr_of!(self.half)) };
        mask::<{ KEPT as i32 }>(half ^ KEPT as u64) as usize
    }

    /// Copies `bytes` (≤ [`KEPT`]) bytes to the other half, where the line's offset `at` lies.
    #[inline(always)]
    fn copy<M: Memory>(&mut self, at: u64, from: *const u8, bytes: u64) {
        let at = mask::<{ KEPT as i32 - 1 }>(at) as usize;
        let bytes = mask::<0x3ff>(bytes);
        let bytes = if bytes < KEPT as u64 {
            bytes
        } else {
            KEPT as u64
        };
        // SAFETY: 512 + 511 + 512 bytes lie in `bytes`; so do 512 from any address in a window.
        unsafe {
            let to = (&raw mut self.bytes).cast::<u8>().add(self.other_half());
            M::copy(to.add(at), from, bytes);
        }
    }

    /// The last four bytes of the line on its way, the last highest.
    #[inline(always)]
    fn end_of_line(&self) -> u64 {
        let line = self.line();
        let mut word = 0;
        macro_rules! byte {
            ($($behind:literal)*) => {$(
                let at = mask::<{ KEPT as i32 - 1 }>(line.wrapping_sub($behind)) as usize;
                // SAFETY: 512 + 511 lies in `bytes`.
                let byte = unsafe {
                    read_volatile(
                        addr_of!(self.bytes).cast::<u8>().add(self.other_half()).add(at),
                    )
                };
                word = word << 8 | u64::from(byte);
            )*};
        }
        byte!(1 2 3 4);
        // The last came first: it is the highest of four.
        word << 32
    }
}

impl Default for Tail {
    fn default() -> Self {
        Self::new()
    }
}

impl Kept {
    /// The line's bytes in order, the beginning of a long one missing.
    pub fn in_order(&self) -> ([u8; KEPT], usize) {
        let length = self.length as usize;
        let mut bytes = self.bytes;
        if length <= KEPT {
            return (bytes, length);
        }
        bytes.rotate_left(length % KEPT);
        (bytes, KEPT)
    }
}
