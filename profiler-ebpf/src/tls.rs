//! What both sides know of TLS sessions: whose plaintext is read, and what of it was lost.

/// The attach cookie of functions that say how much they read through a pointer (`SSL_read_ex`)
/// and take a `size_t` (`SSL_write_ex`). The others have cookie 0.
pub const EXTENDED: u64 = 1;

/// The most plaintext of one TLS record (RFC 8446 §5.1).
pub const RECORD: u64 = 16_384;

/// Buffers a CPU. TLS programs can be preempted by each other; a CPU rarely has two under way.
pub const BUFFERS_PER_CPU: u32 = 4;

/// Threads whose latest socket is remembered.
pub const THREADS: u32 = 4_096;

/// The socket's bytes are ciphertext: what the socket hooks see is not looked at.
pub const CIPHERTEXT: u8 = 1;
/// The socket has refused bytes since the session's latest write.
pub const REFUSED: u8 = 1 << 1;

/// Plaintext that was lost, on one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Reads of sessions whose socket is not known.
    pub unbound: u64,
    /// Reads and writes that found no buffer free.
    pub busy: u64,
    /// Keeps two CPUs' counters out of one cache line.
    pub padding: [u64; 6],
}

/// What the kernel side remembers of a session between two writes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// These bytes have not been seen before.
    New,
    /// They were accounted for when an earlier write offered them.
    Before,
}

/// Is a write of `length` bytes new, or does it offer again what the session's `latest` write
/// offered and the library did not take? Only the calls are seen, not their results: a library
/// that takes one record a call is offered the rest, and one whose socket `refused` bytes in the
/// middle of a write is offered the same again.
#[inline(always)]
pub const fn written(latest: u64, length: u64, refused: bool) -> Written {
    let rest = latest > RECORD && length == latest - RECORD;
    let again = refused && length == latest;
    if rest || again {
        Written::Before
    } else {
        Written::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_write_that_is_taken_record_by_record_counts_once() {
        let mut latest = 0;
        let mut left = 50_000;
        let mut seen = 0;
        while left > 0 {
            if written(latest, left, false) == Written::New {
                seen += left;
            }
            latest = left;
            left -= left.min(RECORD);
        }
        assert_eq!(seen, 50_000);
    }

    #[test]
    fn a_write_that_a_full_socket_refused_counts_once() {
        assert_eq!(written(900, 900, true), Written::Before);
        assert_eq!(written(900, 900, false), Written::New);
        assert_eq!(written(900, 901, true), Written::New);
    }

    #[test]
    fn equal_events_of_a_stream_are_events() {
        assert_eq!(written(200, 200, false), Written::New);
        assert_eq!(written(0, RECORD, false), Written::New);
    }
}
