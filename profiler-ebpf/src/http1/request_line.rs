//! Does what was received begin a request?

use crate::request::{BODYLESS, HEAD};

/// What the first bytes of a receive are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// No request begins here.
    No,
    /// Too short to tell: it may be the beginning of a method.
    Partial,
    /// A request, with the flags its method sets.
    Request(u16),
    /// An HTTP/2 client's preface.
    Http2,
}

const fn pattern(bytes: &[u8]) -> (u64, u64, u64) {
    let (mut word, mut mask) = (0, 0);
    let mut i = bytes.len();
    while i > 0 {
        i -= 1;
        word = word << 8 | bytes[i] as u64;
        mask = mask << 8 | 0xff;
    }
    (word, mask, bytes.len() as u64)
}

/// Looks at the first `length` bytes of a receive, given as words with the first byte lowest
/// (what lies behind `length` does not count). A request is a METHOD of RFC 9110 or PATCH, a
/// blank, and a path, `http` for a whole URL, or `*`. CONNECT begins no request.
#[inline(always)]
pub fn classify(first: u64, second: u64, length: u64) -> Start {
    let length = if length < 16 { length } else { 16 };
    let known = if length >= 8 {
        u64::MAX
    } else {
        (1 << (8 * (length & 7))) - 1
    };
    let mut start = Start::No;
    let methods = const {
        [
            (pattern(b"GET "), BODYLESS),
            (pattern(b"POST "), 0),
            (pattern(b"HEAD "), HEAD | BODYLESS),
            (pattern(b"PUT "), 0),
            (pattern(b"PATCH "), 0),
            (pattern(b"DELETE "), 0),
            (pattern(b"TRACE "), BODYLESS),
        ]
    };
    macro_rules! method {
        ($($i:literal)*) => {$(
            let ((word, mask, bytes), flags) = methods[$i];
            if (first ^ word) & mask & known == 0 {
                if length <= bytes {
                    start = Start::Partial;
                } else {
                    let behind = first >> (8 * bytes) | second << (64 - 8 * bytes);
                    return target(behind, length - bytes, flags);
                }
            }
        )*};
    }
    method!(0 1 2 3 4 5 6);
    let (options, _, _) = const { pattern(b"OPTIONS ") };
    if (first ^ options) & known == 0 {
        if length <= 8 {
            start = Start::Partial;
        } else {
            return target(second, length - 8, BODYLESS);
        }
    }
    // RFC 9113, section 3.4: no method, so that no HTTP/1 server takes it for a request.
    let ((preface, _, _), (rest, _, _)) = const { (pattern(b"PRI * HT"), pattern(b"TP/2.0\r\n")) };
    if (first ^ preface) & known == 0 {
        if length < 16 {
            start = Start::Partial;
        } else if second == rest {
            return Start::Http2;
        }
    }
    start
}

/// What the `length` (at least 1) bytes behind the method say.
#[inline(always)]
fn target(word: u64, length: u64, flags: u16) -> Start {
    if word & 0xff == u64::from(b'/') {
        return Start::Request(flags);
    }
    let (url, star) = const { (pattern(b"http"), pattern(b"* ")) };
    for (text, mask, bytes) in [url, star] {
        let known = if length < bytes {
            mask >> (8 * (bytes - length))
        } else {
            mask
        };
        if (word ^ text) & known == 0 {
            return if length < bytes {
                Start::Partial
            } else {
                Start::Request(flags)
            };
        }
    }
    Start::No
}
