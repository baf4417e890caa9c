//! The lines that matter: status, three headers, chunk sizes, and lines of a stream. Nothing
//! beyond a line's first 40 bytes is read, which is what is kept of a line cut in two.

use super::tail::may_count;
use super::window::rolled;
use super::{FRONT, Window};
use crate::request::{CHUNKED, ENCODED, JSON, LENGTH, NDJSON, Phase, SSE, Slot};

/// A whole line, its newline included.
#[derive(Debug)]
pub(super) struct Line<'a> {
    window: &'a Window,
    start: u64,
}

/// ASCII letters in lower case; some other bytes change too, none into a letter, `:`, `-` or `/`
/// that a pattern below could meet in a well-formed line.
const fn lower(word: u64) -> u64 {
    word | 0x2020_2020_2020_2020
}

/// A pattern of up to 8 bytes as a word.
const fn pattern(text: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = text.len();
    while i > 0 {
        i -= 1;
        word = word << 8 | text[i] as u64;
    }
    word
}

/// The first `bytes` of a word.
const fn low(word: u64, bytes: u32) -> u64 {
    word & (u64::MAX >> (64 - 8 * bytes))
}

impl<'a> Line<'a> {
    /// The line the window stands at.
    #[inline(always)]
    pub(super) fn new(window: &'a Window) -> Self {
        Self {
            window,
            start: window.line(),
        }
    }

    #[inline(always)]
    fn word(&self, ahead: usize) -> u64 {
        self.window.word(self.start, ahead)
    }

    #[inline(always)]
    fn byte(&self, at: u64) -> u64 {
        self.window.word(at, 0) & 0xff
    }

    /// True for an empty line, with or without carriage return.
    #[inline(always)]
    pub(super) fn is_blank(&self) -> bool {
        let word = self.word(0);
        low(word, 1) == b'\n'.into() || low(word, 2) == const { pattern(b"\r\n") }
    }

    /// Position of a header's value: behind up to four blanks.
    #[inline(always)]
    fn value(&self, ahead: u64) -> u64 {
        let mut at = self.start.wrapping_add(ahead);
        let mut blanks = 0;
        while blanks < 4 {
            let byte = self.byte(at);
            if byte != b' '.into() && byte != b'\t'.into() {
                break;
            }
            at = at.wrapping_add(1);
            blanks = rolled(blanks + 1);
        }
        at
    }

    /// The number at `at`: up to 19 digits. `None` if there is no digit.
    #[inline(always)]
    fn decimal(&self, at: u64) -> Option<u64> {
        let mut value = 0u64;
        let mut digits = 0u64;
        while digits < 19 {
            let digit = self.byte(at.wrapping_add(digits)).wrapping_sub(b'0'.into());
            if digit > 9 {
                break;
            }
            value = value.wrapping_mul(10).wrapping_add(digit);
            digits = rolled(digits + 1);
        }
        if digits == 0 { None } else { Some(value) }
    }

    /// The hexadecimal number the line begins with: up to 15 digits. `None` if there is none,
    /// or a longer one.
    #[inline(always)]
    pub(super) fn hexadecimal(&self) -> Option<u64> {
        let mut value = 0u64;
        let mut digits = 0u64;
        while digits < 16 {
            let at = self.start.wrapping_add(digits);
            if !is_hexadecimal(self.byte(at)) {
                break;
            }
            // Read anew: what the test found would double the verifier's states at each digit.
            let byte = self.byte(at);
            value = value << 4 | (byte & 0xf).wrapping_add(9 * (byte >> 6 & 1));
            digits = rolled(digits + 1);
        }
        if digits == 0 || digits == 16 {
            None
        } else {
            Some(value)
        }
    }
}

#[inline(always)]
fn is_hexadecimal(byte: u64) -> bool {
    byte.wrapping_sub(b'0'.into()) <= 9 || (byte | 0x20).wrapping_sub(b'a'.into()) <= 5
}

/// True if a line of a stream is a chunk of output: SSE data other than `[DONE]`, or an NDJSON
/// line that is not blank.
#[inline(always)]
pub(super) fn is_chunk(line: &Line<'_>, flags: u16) -> bool {
    let start = line.word(0);
    if flags & SSE == 0 {
        return !line.is_blank();
    }
    low(start, 5) == const { pattern(b"data:") }
        && start != const { pattern(b"data: [D") }
        && low(start, 7) != const { pattern(b"data:[D") }
}

/// The least bytes [`event`] takes: a search looks at 32 at a time, and up to 9 are framing.
pub(super) const LEAST_EVENT: u64 = 41;

/// A send that is one chunk of output.
pub(super) struct Event {
    /// Where its line begins.
    pub(super) from: u64,
    /// Where its newline is.
    pub(super) to: u64,
    /// It ends as token counts do.
    pub(super) may_count: bool,
}

/// The event, if the `length` (at least [`LEAST_EVENT`]) bytes at [`FRONT`] are one chunk, its
/// size of two or three digits, whose data is a chunk of output, and the blank line behind it, which
/// NDJSON may lack. It is one line if it is text, which is left to ask.
#[inline(always)]
pub(super) fn event(window: &Window, length: u64, flags: u16) -> Option<Event> {
    let front = FRONT as u64;
    let word = window.word(front, 0);
    let digit = |n: u32| {
        let byte = word >> (8 * n) & 0xff;
        let value = (byte & 0xf).wrapping_add(9 * (byte >> 6 & 1));
        if is_hexadecimal(byte) { value } else { 0x1000 }
    };
    let (size, line) = if low(word >> 16, 2) == const { pattern(b"\r\n") } {
        (digit(0) << 4 | digit(1), 4)
    } else if low(word >> 24, 2) == const { pattern(b"\r\n") } {
        (digit(0) << 8 | digit(1) << 4 | digit(2), 5)
    } else {
        return None;
    };
    if size.wrapping_add(line + 2) != length {
        return None;
    }
    // The end of the data, and of the chunk.
    let last = window.word(front.wrapping_add(length).wrapping_sub(8), 0);
    let (behind, end) = if last >> 32 == const { pattern(b"\n\n\r\n") } {
        (4, last << 32)
    } else if last >> 40 == const { pattern(b"\n\r\n") } && flags & SSE == 0 {
        (3, last << 24)
    } else {
        return None;
    };
    let start = Line {
        window,
        start: front + line,
    };
    let text = length.wrapping_sub(line + behind);
    is_chunk(&start, flags).then_some(Event {
        from: front + line,
        to: (front + line).wrapping_add(text),
        may_count: may_count(end),
    })
}

/// A line before the headers: the status line, or something that is none.
#[inline(always)]
pub(super) fn status(line: &Line<'_>, slot: &mut Slot) {
    if low(line.word(0), 7) != const { pattern(b"HTTP/1.") } {
        return;
    }
    let code = line.word(8);
    let hundreds = (code >> 8 & 0xff).wrapping_sub(b'0'.into());
    let tens = (code >> 16 & 0xff).wrapping_sub(b'0'.into());
    let ones = (code >> 24 & 0xff).wrapping_sub(b'0'.into());
    if hundreds > 9 || tens > 9 || ones > 9 || hundreds == 0 {
        return;
    }
    slot.facts.status = (hundreds * 100 + tens * 10 + ones) as u16;
    slot.facts.phase = Phase::HEAD;
}

/// A header line: what says how the body ends, and whether it streams.
#[inline(always)]
pub(super) fn header(line: &Line<'_>, slot: &mut Slot) {
    let name = lower(line.word(0));
    if name == const { pattern(b"content-") } {
        let rest = lower(line.word(8));
        if low(rest, 7) == const { pattern(b"length:") } {
            if let Some(length) = line.decimal(line.value(15)) {
                slot.cursor.left = length;
                slot.facts.flags |= LENGTH;
            }
        } else if low(rest, 5) == const { pattern(b"type:") } {
            content_type(line, slot);
        } else if rest == const { pattern(b"encoding") } && low(line.word(16), 1) == b':'.into() {
            encoded(line, line.value(17), slot);
        }
    } else if name == const { pattern(b"transfer") }
        && lower(line.word(8)) == const { pattern(b"-encodin") }
        && lower(low(line.word(16), 2)) == lower(const { pattern(b"g:") })
    {
        let value = line.value(18);
        if low(lower(line.window.word(value, 0)), 7) == const { pattern(b"chunked") } {
            slot.facts.flags |= CHUNKED;
        } else if encoded(line, value, slot) {
            // `chunked` is the last of several, or the response ends with its connection.
            slot.facts.flags |= CHUNKED;
        }
    }
}

/// Notes that the body is encoded, if the value says so.
#[inline(always)]
fn encoded(line: &Line<'_>, value: u64, slot: &mut Slot) -> bool {
    let encoded = lower(line.window.word(value, 0)) != const { pattern(b"identity") };
    if encoded {
        slot.cursor.body |= ENCODED;
    }
    encoded
}

/// Notes a content type that streams, and JSON that does not.
#[inline(always)]
fn content_type(line: &Line<'_>, slot: &mut Slot) {
    let value = line.value(13);
    let (first, second, third) = (
        lower(line.window.word(value, 0)),
        lower(line.window.word(value, 8)),
        lower(line.window.word(value, 16)),
    );
    if first == const { pattern(b"text/eve") } && second == const { pattern(b"nt-strea") } {
        slot.facts.flags |= SSE;
    }
    if first == const { pattern(b"applicat") } {
        let json = second == const { pattern(b"ion/json") };
        let named =
            second == const { pattern(b"ion/x-nd") } || second == const { pattern(b"ion/ndjs") };
        // application/jsonl, application/x-jsonl and their longer forms.
        let lines = (json && low(third, 1) == b'l'.into())
            || (second == const { pattern(b"ion/x-js") }
                && low(third, 3) == const { pattern(b"onl") });
        if named || lines {
            slot.facts.flags |= NDJSON;
        } else if json {
            slot.cursor.body |= JSON;
        }
    }
}
