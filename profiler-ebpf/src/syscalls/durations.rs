//! How long calls took, as counts between powers of two.

/// Counts by duration: up to 128 ns, then doubling up to 69 s, and one for what took longer.
pub const BUCKETS: usize = 31;

/// Words of one cell: nanoseconds, then the counts. A power of two.
pub const TIME_WORDS: usize = BUCKETS + 1;

/// The first count's upper bound is 2 to this power, in nanoseconds.
pub const FIRST_BOUND_BITS: u32 = 7;

/// The count that holds a duration: a bound belongs to the count below it.
#[inline(always)]
pub const fn bucket_of(nanos: u64) -> u64 {
    let mut rest = nanos.saturating_sub(1) >> FIRST_BOUND_BITS;
    if rest >> (BUCKETS - 1) != 0 {
        return BUCKETS as u64 - 1;
    }
    // The number of bits, for a kernel side that has no instruction for it.
    let mut bits = 0;
    if rest >> 16 != 0 {
        rest >>= 16;
        bits += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        bits += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        bits += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        bits += 2;
    }
    if rest >> 1 != 0 {
        rest >>= 1;
        bits += 1;
    }
    bits + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lies_at_or_below_its_counts_bound_and_above_the_one_before() {
        let mut nanos = 0_u64;
        while nanos < 1 << 40 {
            let bucket = bucket_of(nanos);
            let last = BUCKETS as u64 - 1;
            let bound = |bucket: u64| 1_u64 << (u64::from(FIRST_BOUND_BITS) + bucket);
            assert!(bucket <= last);
            assert!(bucket == last || nanos <= bound(bucket), "{nanos}");
            assert!(bucket == 0 || nanos > bound(bucket - 1), "{nanos}");
            // Around each power of two, and in between.
            nanos += 1 + nanos / 97;
        }
        for bits in FIRST_BOUND_BITS..36 {
            let bound = 1_u64 << bits;
            assert_eq!(bucket_of(bound) + 1, bucket_of(bound + 1), "{bound}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS as u64 - 1);
    }
}
