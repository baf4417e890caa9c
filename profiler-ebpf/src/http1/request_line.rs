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
/// (what lies behind `length` does not count). A request is METHOD, a blank and a path.
#[inline(always)]
pub fn classify(first: u64, second: u64, length: u64) -> Start {
    let known = if length >= 8 {
        u64::MAX
    } else {
        (1 << (8 * (length & 7))) - 1
    };
    let mut start = Start::No;
    // The longest method comes without its path's slash: nine bytes.
    let methods = const {
        [
            (pattern(b"GET /"), BODYLESS),
            (pattern(b"POST /"), 0),
            (pattern(b"HEAD /"), HEAD | BODYLESS),
            (pattern(b"PUT /"), 0),
            (pattern(b"PATCH /"), 0),
            (pattern(b"DELETE /"), 0),
        ]
    };
    macro_rules! method {
        ($($i:literal)*) => {$(
            let ((word, mask, bytes), flags) = methods[$i];
            if (first ^ word) & mask & known == 0 {
                if length >= bytes {
                    return Start::Request(flags);
                }
                start = Start::Partial;
            }
        )*};
    }
    method!(0 1 2 3 4 5);
    let (options, _, _) = const { pattern(b"OPTIONS ") };
    if (first ^ options) & known == 0 {
        if length <= 8 {
            start = Start::Partial;
        } else if second & 0xff == u64::from(b'/') {
            return Start::Request(BODYLESS);
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
