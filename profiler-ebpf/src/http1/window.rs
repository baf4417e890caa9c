//! A window of a send: up to [`WINDOW`] of its bytes, with room in front for the beginning of a
//! line that an earlier window cut.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::request::{Phase, Slot};

/// Where a window's bytes begin; what lies before is the kept beginning of a line.
pub const FRONT: usize = 64;

/// The most bytes of one window.
pub const WINDOW: usize = 1008;

/// The buffer's size: any masked offset (≤ 2,047) and the 512 bytes from there lie in it.
pub const BYTES: usize = 2560;

/// The most bytes one search looks at.
const SEARCH: u64 = 128;

/// The longest line of a head that is taken at once.
const LONGEST_LINE: u64 = 128;

/// Carriage return and newline.
const LINE_BREAK: u64 = 0x0a0d;

const OFFSET: i32 = 0x7ff;

/// `x & M`, such that the verifier sees it too: LLVM would drop a mask it can prove redundant,
/// and the verifier cannot follow the proof.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn mask<const M: i32>(mut x: u64) -> u64 {
    // SAFETY: one AND on a register.
    unsafe {
        core::arch::asm!("{x} &= {m}", x = inout(reg) x, m = const M, options(pure, nomem, nostack));
    }
    x
}

/// `x & M`.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub fn mask<const M: i32>(x: u64) -> u64 {
    x & M as u64
}

/// A loop's counter (≤ 2,047), such that LLVM does not unroll the loop: a program that runs
/// now and then finds little of its code in the CPU's caches, and every line of it counts.
#[inline(always)]
pub(super) fn rolled(counter: u64) -> u64 {
    mask::<OFFSET>(counter)
}

/// The buffer and where the parser stands in it. Positions are offsets into `bytes`. They are
/// read and written as volatile, so that the verifier forgets what it knew of a value.
#[repr(C)]
#[derive(Debug)]
pub struct Window {
    bytes: [u8; BYTES],
    cursor: u64,
    end: u64,
    line: u64,
    remaining: u64,
    now: u64,
    unreadable: u64,
    limit: u64,
    found: u64,
    ahead: u64,
}

macro_rules! volatile_fields {
    ($($get:ident, $set:ident, $field:ident: $doc:literal;)*) => {$(
        #[doc = $doc]
        #[inline(always)]
        pub fn $get(&self) -> u64 {
            // SAFETY: a field of `self`, initialised and aligned.
            unsafe { read_volatile(addr_of!(self.$field)) }
        }

        #[doc = $doc]
        #[inline(always)]
        pub fn $set(&mut self, value: u64) {
            // SAFETY: a field of `self`, aligned.
            unsafe { write_volatile(addr_of_mut!(self.$field), value) }
        }
    )*};
}

impl Window {
    /// An empty window.
    pub const fn new() -> Self {
        Self {
            bytes: [0; BYTES],
            cursor: 0,
            end: 0,
            line: 0,
            remaining: 0,
            now: 0,
            unreadable: 0,
            limit: 0,
            found: 0,
            ahead: 0,
        }
    }

    volatile_fields! {
        cursor, set_cursor, cursor: "The next byte to look at.";
        line, set_line, line: "The first byte of the present line.";
        remaining, set_remaining, remaining: "Bytes of the send not yet looked at.";
        now, set_now, now: "When the bytes were sent, nanoseconds.";
        end, set_end_offset, end: "Behind the last byte.";
        limit, set_limit, limit: "Behind the last byte that can belong to the present line.";
        found, set_found, found: "1 if the last search found a newline.";
        unreadable, set_unreadable_to, unreadable: "1 if a buffer could not be read.";
        ahead, set_ahead, ahead: "Bytes at [`FRONT`] that were read before they were followed.";
    }

    /// Prepares for a send of `bytes` bytes at `now`, of which `ahead` lie at [`FRONT`] already.
    #[inline(always)]
    pub fn begin(&mut self, bytes: u64, now: u64, ahead: u64) {
        self.set_remaining(bytes);
        self.set_now(now);
        self.set_unreadable_to(0);
        self.set_ahead(ahead);
    }

    /// Notes that a buffer could not be read.
    #[inline(always)]
    pub fn set_unreadable(&mut self) {
        self.set_unreadable_to(1);
    }

    /// Sets how many bytes lie at [`FRONT`].
    #[inline(always)]
    pub fn set_end(&mut self, filled: u64) {
        self.set_end_offset(FRONT as u64 + filled);
    }

    /// Bytes behind the cursor.
    #[inline(always)]
    pub fn left_over(&self) -> u64 {
        self.end().wrapping_sub(self.cursor())
    }

    /// The first 16 bytes as words.
    #[inline(always)]
    pub fn beginning(&self) -> (u64, u64) {
        let front = FRONT as u64;
        (self.word(front, 0), self.word(front, 8))
    }

    /// Whether a line ends in the first `filled` (≤ 64) bytes, and how many bytes it has there.
    #[inline(always)]
    pub fn line_end(&mut self, filled: u64) -> (bool, u64) {
        let front = FRONT as u64;
        self.find_newline(front, front.wrapping_add(filled));
        (self.found() != 0, self.cursor().wrapping_sub(front))
    }

    /// Where the bytes go.
    #[inline(always)]
    pub fn bytes(&mut self) -> &mut [u8; BYTES] {
        &mut self.bytes
    }

    /// The 8 bytes at `at + ahead`, first byte lowest; `ahead` ≤ 128.
    #[inline(always)]
    pub(crate) fn word(&self, at: u64, ahead: usize) -> u64 {
        let offset = mask::<OFFSET>(at) as usize;
        // SAFETY: offset ≤ 2,047 and ahead ≤ 128, so the word ends within BYTES. BPF
        // targets and x86 load unaligned words; elsewhere `read_unaligned` does.
        unsafe {
            let word = addr_of!(self.bytes)
                .cast::<u8>()
                .add(offset)
                .add(ahead)
                .cast::<u64>();
            #[cfg(target_arch = "bpf")]
            let value = read_volatile(word);
            #[cfg(not(target_arch = "bpf"))]
            let value = word.read_unaligned();
            u64::from_le(value)
        }
    }

    /// Address of the byte at `at`; 512 bytes from there lie in the buffer.
    #[inline(always)]
    pub(super) fn address(&self, at: u64) -> *const u8 {
        // SAFETY: offset ≤ 2,047 < BYTES.
        unsafe {
            addr_of!(self.bytes)
                .cast::<u8>()
                .add(mask::<OFFSET>(at) as usize)
        }
    }

    /// Writes the 8 bytes at `at + ahead`.
    #[inline(always)]
    pub(crate) fn set_word(&mut self, at: u64, ahead: usize, value: u64) {
        let offset = mask::<OFFSET>(at) as usize;
        let value = value.to_le();
        // SAFETY: as in `word`.
        unsafe {
            let word = addr_of_mut!(self.bytes)
                .cast::<u8>()
                .add(offset)
                .add(ahead)
                .cast::<u64>();
            #[cfg(target_arch = "bpf")]
            write_volatile(word, value);
            #[cfg(not(target_arch = "bpf"))]
            word.write_unaligned(value);
        }
    }

    /// Looks for a newline in the 128 bytes from `cursor`, before `limit`; sets `found`, and the
    /// cursor to where to go on.
    #[inline(always)]
    pub(super) fn find_newline(&mut self, cursor: u64, limit: u64) {
        let mut block = 0;
        let mut next = cursor.wrapping_add(SEARCH);
        self.set_found(0);
        while block < SEARCH {
            let at = cursor.wrapping_add(block);
            // Four words a test: most of them hold no newline.
            let first_word = newlines(self.word(at, 0));
            let second_word = newlines(self.word(at, 8));
            let third_word = newlines(self.word(at, 16));
            let fourth_word = newlines(self.word(at, 24));
            if (first_word | second_word | third_word | fourth_word) & MARKS != 0 {
                let (marks, ahead) = if first_word & MARKS != 0 {
                    (first_word, 0)
                } else if second_word & MARKS != 0 {
                    (second_word, 8)
                } else if third_word & MARKS != 0 {
                    (third_word, 16)
                } else {
                    (fourth_word, 24)
                };
                let at = at.wrapping_add(ahead + first(marks & MARKS));
                next = at.wrapping_add(1);
                if at < limit {
                    self.set_found(1);
                }
                break;
            }
            block = rolled(block + 32);
        }
        self.set_cursor(if next < limit { next } else { limit });
    }

    /// Looks for the line break of the line at `line`, of up to 128 bytes; sets `found` if it is
    /// the line's first control character, and then the cursor to what lies behind it.
    #[inline(always)]
    pub(super) fn find_line_break(&mut self, line: u64) {
        let mut block = 0;
        self.set_found(0);
        macro_rules! look {
            ($at:ident $ahead:literal) => {
                let marks = controls(self.word($at, $ahead)) & MARKS;
                if marks != 0 {
                    let at = $at.wrapping_add($ahead).wrapping_add(first(marks));
                    self.set_cursor(at.wrapping_add(2));
                    self.set_found(u64::from(self.is_line_break(at)));
                    return;
                }
            };
        }
        while block < LONGEST_LINE {
            let at = line.wrapping_add(block);
            look!(at 0);
            look!(at 8);
            look!(at 16);
            look!(at 24);
            block = rolled(block + 32);
        }
    }

    /// True if a line break lies at `at`.
    #[inline(always)]
    pub(super) fn is_line_break(&self, at: u64) -> bool {
        self.word(at, 0) & 0xffff == LINE_BREAK
    }

    /// True if there is no newline, nor any other control character, in the `bytes` (32 to
    /// [`WINDOW`]) that begin `from` (≤ 63) bytes behind [`FRONT`].
    #[inline(always)]
    pub fn is_text(&self, from: u64, bytes: u64) -> bool {
        let start = (FRONT as u64).wrapping_add(mask::<0x3f>(from));
        let marks = |at: u64| {
            controls(self.word(at, 0))
                | controls(self.word(at, 8))
                | controls(self.word(at, 16))
                | controls(self.word(at, 24))
        };
        // The last block overlaps the one before.
        let mut seen = marks(start.wrapping_add(bytes).wrapping_sub(32));
        let mut behind = 32;
        while behind <= WINDOW as u64 {
            if behind > bytes {
                break;
            }
            seen |= marks(start.wrapping_add(behind).wrapping_sub(32));
            behind = rolled(behind + 32);
        }
        seen & MARKS == 0
    }

    /// Passes over a newline at the cursor, if it lies before the limit: a blank line. True if
    /// there is one.
    #[inline(always)]
    pub(super) fn pass_newline(&mut self) -> bool {
        let cursor = self.cursor();
        let here = cursor < self.limit() && self.word(cursor, 0) & 0xff == u64::from(b'\n');
        if here {
            self.set_cursor(cursor.wrapping_add(1));
        }
        here
    }

    /// Passes over the line end behind a chunk's data, if all of it is here.
    #[inline(always)]
    pub(super) fn pass_line_end(&mut self) {
        let cursor = self.cursor();
        let here = cursor.wrapping_add(2) <= self.end();
        if here && self.is_line_break(cursor) {
            self.set_cursor(cursor.wrapping_add(2));
        }
    }

    /// Before a window is filled: puts the kept beginning of a cut line in front.
    #[inline(always)]
    pub(super) fn open(&mut self, slot: &Slot) {
        let front = FRONT as u64;
        self.set_cursor(front);
        if slot.facts.phase == Phase::DATA {
            return;
        }
        let kept = u64::from(slot.cursor.line_len);
        let line = front.wrapping_sub(kept);
        self.set_line(line);
        if kept != 0 {
            let [a, b, c, d, e] = slot.cursor.line;
            self.set_word(line, 0, a);
            self.set_word(line, 8, b);
            self.set_word(line, 16, c);
            self.set_word(line, 24, d);
            self.set_word(line, 32, e);
        }
    }

    /// Before data is looked at: puts the kept beginning of a cut line of data before the
    /// cursor, over bytes that have been used.
    #[inline(always)]
    pub(crate) fn enter_data(&mut self, slot: &Slot) {
        let cursor = self.cursor();
        let kept = u64::from(slot.cursor.data_len);
        let line = cursor.wrapping_sub(kept);
        self.set_line(line);
        if kept != 0 {
            let ahead = (self.word(cursor, 0), self.word(cursor, 8));
            let [a, b] = slot.cursor.data;
            self.set_word(line, 0, a);
            self.set_word(line, 8, b);
            // Kept bytes may be fewer than 16: what was written too far is put back.
            self.set_word(cursor, 0, ahead.0);
            self.set_word(cursor, 8, ahead.1);
        }
    }

    /// Keeps the beginning of the line of data that is cut at `limit`.
    #[inline(always)]
    pub(super) fn keep_data(&self, slot: &mut Slot) {
        let line = self.line();
        let length = self.limit().wrapping_sub(line);
        let cursor = &mut slot.cursor;
        cursor.data = [self.word(line, 0), self.word(line, 8)];
        cursor.data_len = if length < 16 { length as u8 } else { 16 };
    }

    /// Keeps the beginning of the framing line that is cut at `limit`.
    #[inline(always)]
    pub(super) fn keep_line(&self, slot: &mut Slot) {
        let line = self.line();
        let length = self.limit().wrapping_sub(line);
        let cursor = &mut slot.cursor;
        cursor.line = [
            self.word(line, 0),
            self.word(line, 8),
            self.word(line, 16),
            self.word(line, 24),
            self.word(line, 32),
        ];
        cursor.line_len = if length < 40 { length as u8 } else { 40 };
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

/// The bits of [`newlines`] that count.
const MARKS: u64 = 0x8080_8080_8080_8080;

/// Marks the control characters of a word by their bytes' highest bits; exact up to the first.
#[inline(always)]
fn controls(word: u64) -> u64 {
    word.wrapping_sub(0x2020_2020_2020_2020) & !word
}

/// Marks the newlines of a word by their bytes' highest bits; exact up to the first.
#[inline(always)]
fn newlines(word: u64) -> u64 {
    let zeros = word ^ 0x0a0a_0a0a_0a0a_0a0a;
    zeros.wrapping_sub(0x0101_0101_0101_0101) & !zeros
}

/// Index of the first marked byte: a multiplication, since BPF has no count of trailing zeros.
#[inline(always)]
fn first(marks: u64) -> u64 {
    ((marks & marks.wrapping_neg()) >> 7).wrapping_mul(0x0001_0203_0405_0607) >> 56
}
