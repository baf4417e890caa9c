//! One direction of a connection: where the walk stands between two reads, and what a frame's
//! nine header bytes say. Source: RFC 9113, sections 4 and 6.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::http1::Window;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
/// Not a frame: the client's preface, which comes before the first.
const PREFACE: u8 = 0xff;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// Bytes of a frame's header.
const HEADER: u8 = 9;

/// In place of the header's bytes so far: it is not known where a frame begins.
const LOST: u8 = 0xff;

/// Bytes of the client's preface.
const PREFACE_BYTES: u32 = 24;

/// The largest payload a peer may send unless told otherwise; what is told is not followed, so
/// more is believed where the walk is in step.
const USUAL_PAYLOAD: u64 = 16_384;

/// Where the walk stands in one direction. Read and written as volatile: see [`crate::http1`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    /// The first bytes of a header that is not whole, or the number that a payload begins with.
    word: u64,
    /// Payload bytes still to come of the present frame, padding included.
    left: u32,
    /// The present frame's stream.
    stream: u32,
    /// Header bytes so far.
    have: u8,
    kind: u8,
    flags: u8,
    /// Bytes of padding at the payload's end.
    padding: u8,
    /// Bytes before the payload's content: padding's length, priority, promised stream.
    front: u8,
    /// END_STREAM of the header block that is open, and whether one is.
    block: u8,
    /// Pieces of header blocks so far.
    number: u16,
}

/// A header block is open.
pub(super) const BLOCK_OPEN: u8 = 0x80;
/// No piece of it has been given to the agent.
pub(super) const BLOCK_NEW: u8 = 0x40;
/// It is a promised stream's.
pub(super) const BLOCK_PROMISED: u8 = 0x20;
/// Something else than the rest of it has come.
const BLOCK_BROKEN: u8 = 0x10;

/// Bit of `front`: the next byte is the padding's length.
const PADDING_NEXT: u8 = 0x80;

macro_rules! volatile_fields {
    ($($get:ident, $set:ident, $field:ident: $type:ty;)*) => {$(
        #[inline(always)]
        pub(super) fn $get(&self) -> $type {
            // SAFETY: a field of `self`, initialised and aligned.
            unsafe { read_volatile(addr_of!(self.$field)) }
        }

        #[inline(always)]
        pub(super) fn $set(&mut self, value: $type) {
            // SAFETY: a field of `self`, aligned.
            unsafe { write_volatile(addr_of_mut!(self.$field), value) }
        }
    )*};
}

impl Frames {
    volatile_fields! {
        word, set_word, word: u64;
        left, set_left, left: u32;
        stream, set_stream, stream: u32;
        have, set_have, have: u8;
        kind, set_kind, kind: u8;
        flags, set_flags, flags: u8;
        padding, set_padding, padding: u8;
        front, set_front, front: u8;
        block, set_block, block: u8;
        number, set_number, number: u16;
    }

    /// Before anything has come.
    #[inline(always)]
    pub(super) fn reset(&mut self) {
        self.set_word(0);
        self.set_left(0);
        self.set_stream(0);
        self.set_have(0);
        self.set_kind(0);
        self.set_flags(0);
        self.set_padding(0);
        self.set_front(0);
        self.set_block(0);
        self.set_number(0);
    }

    /// The client's preface follows, of which `before` bytes have passed.
    #[inline(always)]
    pub(super) fn expect_preface(&mut self, before: u32) {
        self.set_have(HEADER);
        self.set_kind(PREFACE);
        self.set_left(PREFACE_BYTES.wrapping_sub(before));
    }

    /// Forgets where frames begin. What was lost may have held a header block: the numbers say so.
    #[inline(always)]
    pub(super) fn lose(&mut self) {
        self.set_have(LOST);
        self.set_block(0);
        self.set_number(self.number().wrapping_add(1));
    }

    #[inline(always)]
    pub(super) fn is_lost(&self) -> bool {
        self.have() == LOST
    }

    /// A frame begins with the next byte.
    #[inline(always)]
    pub(super) fn expect_frame(&mut self) {
        self.set_have(0);
        self.set_word(0);
    }

    #[inline(always)]
    pub(super) fn in_header(&self) -> bool {
        self.have() < HEADER
    }

    /// True where the payload matters: everything else is passed over by counting.
    #[inline(always)]
    pub(super) fn is_read(&self) -> bool {
        matches!(
            self.kind(),
            HEADERS | PUSH_PROMISE | CONTINUATION | RST_STREAM | GOAWAY
        )
    }

    /// Content bytes still to come: without what stands before them, and without padding.
    #[inline(always)]
    pub(super) fn content(&self) -> u64 {
        let (left, padding) = (self.left(), u32::from(self.padding()));
        if left > padding {
            u64::from(left.wrapping_sub(padding))
        } else {
            0
        }
    }

    /// Takes header bytes at the window's cursor; true once the header is whole.
    #[inline(always)]
    pub(super) fn take_header(&mut self, window: &mut Window) -> bool {
        let at = window.cursor();
        let have = self.have();
        if have == 0 && window.left_over() >= u64::from(HEADER) {
            self.set_word(window.word(at, 0));
            self.open(window.word(at, 8) as u8);
            window.set_cursor(at.wrapping_add(9));
            return true;
        }
        let byte = window.word(at, 0) & 0xff;
        window.set_cursor(at.wrapping_add(1));
        if have == HEADER - 1 {
            self.open(byte as u8);
            return true;
        }
        self.set_word(self.word() | byte << (8 * u32::from(have & 7)));
        self.set_have(have.wrapping_add(1));
        false
    }

    /// The header is `word` and the byte behind it.
    #[inline(always)]
    fn open(&mut self, last: u8) {
        let word = self.word();
        self.set_left(length(word) as u32);
        self.set_kind((word >> 24) as u8);
        self.set_flags((word >> 32) as u8);
        let stream = stream(word, last);
        let goes_on = self.kind() == CONTINUATION && stream == self.stream();
        if self.block() & BLOCK_OPEN != 0 && !goes_on {
            self.set_block(BLOCK_BROKEN);
        }
        self.set_stream(stream);
        self.set_padding(0);
        self.set_have(HEADER);
        self.set_word(0);
        let mut front = match self.kind() {
            HEADERS if self.flags() & WITH_PRIORITY != 0 => 5,
            PUSH_PROMISE => 4,
            _ => 0,
        };
        if self.flags() & PADDED != 0 && matches!(self.kind(), DATA | HEADERS | PUSH_PROMISE) {
            front = (front + 1) | PADDING_NEXT;
        }
        self.set_front(front);
    }

    /// Takes what stands before the content, `available` bytes at most; returns how many they
    /// were, 0 if the frame makes no sense.
    #[inline(always)]
    pub(super) fn take_front(&mut self, window: &Window, available: u64) -> u64 {
        let front = self.front();
        if front & PADDING_NEXT != 0 {
            let padding = window.word(window.cursor(), 0) as u8;
            let behind = (front & !PADDING_NEXT).wrapping_sub(1);
            // This byte, the rest of the front, and the padding must fit the payload.
            if 1 + u32::from(behind) + u32::from(padding) > self.left() {
                return 0;
            }
            self.set_padding(padding);
            self.set_front(behind);
            return 1;
        }
        let front = u64::from(front);
        let taken = if front < available { front } else { available };
        self.set_front(front.wrapping_sub(taken) as u8);
        taken
    }

    /// Collects the 31-bit number that a payload begins with; `have` counts on above the header.
    #[inline(always)]
    pub(super) fn take_number(&mut self, window: &Window) {
        let byte = window.word(window.cursor(), 0) & 0xff;
        if self.have() < HEADER + 4 {
            self.set_word(self.word() << 8 | byte);
            self.set_have(self.have().wrapping_add(1));
        }
    }

    /// The number collected, without its reserved bit.
    #[inline(always)]
    pub(super) fn number_taken(&self) -> u32 {
        self.word() as u32 & 0x7fff_ffff
    }

    /// True if the present frame's header is one that a peer may send. Where it is not, the walk
    /// has lost its step (or the peer its mind): better blind than to invent requests.
    #[inline(always)]
    pub(super) fn is_plausible(&self) -> bool {
        self.block() & BLOCK_BROKEN == 0
            && may_be(self.kind(), u64::from(self.left()), self.stream())
    }
}

/// Payload bytes of the frame whose header begins with `word`.
#[inline(always)]
const fn length(word: u64) -> u64 {
    (word & 0xff) << 16 | (word & 0xff00) | (word >> 16 & 0xff)
}

/// The stream of the frame whose header is `word` and `last`.
#[inline(always)]
const fn stream(word: u64, last: u8) -> u32 {
    ((word >> 40) as u32 & 0x7f) << 24
        | ((word >> 48) as u32 & 0xff) << 16
        | ((word >> 56) as u32 & 0xff) << 8
        | last as u32
}

/// True if a frame of that length and kind may be on that stream.
#[inline(always)]
fn may_be(kind: u8, length: u64, stream: u32) -> bool {
    match kind {
        DATA | HEADERS | CONTINUATION => stream != 0,
        PRIORITY => stream != 0 && length == 5,
        RST_STREAM => stream != 0 && length == 4,
        SETTINGS => stream == 0 && length.is_multiple_of(6) && length <= 0x4000,
        PUSH_PROMISE => stream != 0 && length >= 4,
        PING => stream == 0 && length == 8,
        GOAWAY => stream == 0 && length >= 8,
        WINDOW_UPDATE => length == 4,
        // Extensions must be ignored; those in use are small.
        _ => length <= USUAL_PAYLOAD,
    }
}

/// What the first bytes of a read say of a connection in whose midst they may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No frame for certain.
    Nothing,
    /// A request's header block begins here: `HEADERS` of a client.
    Request,
}

/// Is this the beginning of a request on an HTTP/2 connection whose own beginning was not seen?
/// In: the first `length` bytes, at least 9 of which must be there.
///
/// Certain is a `HEADERS` frame of a usual size, with no flag that is not defined, on a client's
/// stream, whose block begins with what a request begins with: in its leading indexed fields one
/// of `:method`, `:path` and `:scheme` from the static table, and no `:status`.
#[inline(always)]
pub fn find(window: &Window, length: u64) -> Found {
    let at = crate::http1::FRONT as u64;
    let word = window.word(at, 0);
    let (kind, flags) = ((word >> 24) as u8, (word >> 32) as u8);
    let payload = self::length(word);
    let stream = stream(word, window.word(at, 8) as u8);
    let defined = END_STREAM | END_HEADERS | PADDED | WITH_PRIORITY;
    if length < 18
        || kind != HEADERS
        || flags & !defined != 0
        || flags & END_HEADERS == 0
        || !(4..=USUAL_PAYLOAD).contains(&payload)
        || stream & 1 == 0
        || word >> 40 & 0x80 != 0
    {
        return Found::Nothing;
    }
    let mut block = at.wrapping_add(9);
    if flags & PADDED != 0 {
        block = block.wrapping_add(1);
    }
    if flags & WITH_PRIORITY != 0 {
        block = block.wrapping_add(5);
    }
    // Offsets below 18 + 6 + 8 lie in the window, whatever was read of it.
    let fields = window.word(block, 0);
    let mut at = 0;
    while at < 8 {
        match (fields >> (8 * at)) as u8 {
            // Methods, paths and schemes.
            0x82..=0x87 => return Found::Request,
            // Status, or no field at all.
            0x80 | 0x88..=0x8e | 0xff => return Found::Nothing,
            0x81 | 0x8f..=0xfe => {}
            _ => return Found::Nothing,
        }
        at = crate::http1::mask::<0xf>(at + 1);
    }
    Found::Nothing
}

/// May a frame of a server begin here, whose stream is known to be open? In: the first 9 bytes.
/// Out: the stream that must be open, 0 where none need be, `None` if no frame begins here.
#[inline(always)]
pub(super) fn server_frame(window: &Window) -> Option<u32> {
    let at = crate::http1::FRONT as u64;
    let word = window.word(at, 0);
    let stream = stream(word, window.word(at, 8) as u8);
    let kind = (word >> 24) as u8;
    let reserved = word >> 40 & 0x80 != 0;
    if reserved
        || kind > CONTINUATION
        || kind == PUSH_PROMISE
        || !may_be(kind, length(word), stream)
    {
        return None;
    }
    if kind == WINDOW_UPDATE && stream != 0 {
        return Some(stream);
    }
    if length(word) > USUAL_PAYLOAD {
        return None;
    }
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_length_kind_flags_and_stream() {
        let mut window = Window::new();
        let at = crate::http1::FRONT;
        let header = [0x01, 0x02, 0x03, 1, 5, 0x81, 2, 3, 4];
        window.bytes()[at..at + 9].copy_from_slice(&header);
        window.set_cursor(at as u64);
        window.set_end(9);
        let mut frames = Frames::default();
        assert!(frames.take_header(&mut window));
        assert_eq!(frames.left(), 0x010203);
        assert_eq!((frames.kind(), frames.flags()), (HEADERS, 5));
        assert_eq!(frames.stream(), 0x0102_0304);
    }
}
