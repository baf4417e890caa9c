//! What threads of services do while they do not run: the reasons, the threads' own slots, and the
//! counters of each service.
//!
//! A thread is running, in the run queue, or blocked. The kernel side books a state's time when it
//! ends; a slot also says which state lasts and since when, so that a reader can add what has not
//! ended.

/// Why a thread is off its CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Blocked in a call of none of the other kinds: a pipe, a child, a device.
    Other,
    /// Asked to sleep for a time.
    Sleep,
    /// Uninterruptible (state D), which is nearly always input or output, or in a call that waits
    /// for a disk.
    Disk,
    /// For another thread: a lock, a condition.
    Futex,
    /// For one of several descriptors: poll, select, epoll.
    Poll,
    /// In a read, write, accept or connect of a socket.
    Socket,
    /// Runnable, and put off its CPU for somebody else: a part of the run queue's time.
    Preempted,
}

impl Reason {
    /// All of them; a reason's place is its index.
    pub const ALL: [Self; 7] = [
        Self::Other,
        Self::Sleep,
        Self::Disk,
        Self::Futex,
        Self::Poll,
        Self::Socket,
        Self::Preempted,
    ];

    /// Its label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Sleep => "sleep",
            Self::Disk => "disk",
            Self::Futex => "futex",
            Self::Poll => "poll",
            Self::Socket => "socket",
            Self::Preempted => "preempted",
        }
    }
}

/// Cells for reasons; a power of two, so that a masked index stays inside.
pub const REASONS: usize = 8;

/// A state that is not known: the slot is new.
pub const UNKNOWN: u8 = 0;
/// On a CPU.
pub const RUNNING: u8 = 1;
/// In the run queue since it woke up.
pub const WOKEN: u8 = 2;
/// In the run queue since it lost its CPU.
pub const PUT_OFF: u8 = 3;
/// Not runnable, for the slot's reason.
pub const BLOCKED: u8 = 4;

/// One thread of a service. Only the CPU that holds its run queue's lock writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ThreadSlot {
    /// Thread id, and its process's id in the upper half; 0 = free.
    pub holder: u64,
    /// Since when the state lasts, nanoseconds of `CLOCK_MONOTONIC`. Written before `state`.
    pub since: u64,
    /// The state, the reason in the second byte, and the last CPU in the upper half.
    pub state: u64,
    /// Nanoseconds on CPU.
    pub on_cpu: u64,
    /// Nanoseconds in the run queue, after waking and after losing the CPU.
    pub run_queue: u64,
    /// Switches by which it blocked.
    pub voluntary: u64,
    /// Switches by which it stayed runnable.
    pub involuntary: u64,
    /// Times it ran on another CPU than before.
    pub migrations: u64,
    /// Nanoseconds off CPU by reason.
    pub off_cpu: [u64; REASONS],
}

/// Slots of threads: 2 MiB. A power of two.
pub const SLOTS: usize = 16_384;

/// So many slots from its home on a thread may lie.
pub const REACH: u32 = 8;

/// The slot at which the search for thread `tid` begins. Neighbours' homes lie apart, so that the
/// threads of two processes do not pile up behind each other.
pub const fn home_of(tid: u32) -> u32 {
    tid.wrapping_mul(0x9e37_79b1) >> (32 - SLOTS.trailing_zeros())
}

/// In place of the last CPU of a thread that has not been seen on one.
pub const NO_CPU: u32 = u32::MAX;

/// `state` of a slot.
pub const fn packed(state: u8, reason: u8, cpu: u32) -> u64 {
    (cpu as u64) << 32 | (reason as u64) << 8 | state as u64
}

/// Rows of the services' counters; row 0 is nobody's. A power of two.
pub const ROWS: usize = 32;

/// Nanoseconds in the run queue.
pub const RUN_QUEUE: usize = 0;
/// Switches by which threads blocked.
pub const VOLUNTARY: usize = 1;
/// Switches by which threads stayed runnable.
pub const INVOLUNTARY: usize = 2;
/// Times threads ran on another CPU than before.
pub const MIGRATIONS: usize = 3;
/// Looks for a slot that found none.
pub const REFUSED: usize = 4;
/// Threads found in a state that they cannot be in: a switch or a wake-up before was not seen.
pub const UNSEEN: usize = 5;
/// The first of [`REASONS`] cells: nanoseconds off CPU.
pub const OFF_CPU: usize = 8;
/// The first of [`BUCKETS`] cells: waits in the run queue by length.
pub const WAITS: usize = 24;
/// The first of [`BUCKETS`] cells: waits for a disk by length.
pub const DISK_WAITS: usize = WAITS + BUCKETS;
/// Cells of a row.
pub const CELLS: usize = 128;
/// Buckets of waits: one for each power of two of nanoseconds, up to nine minutes.
pub const BUCKETS: usize = 40;

/// One CPU's counters, row by row.
pub type CpuWaits = [u64; ROWS * CELLS];

/// The bucket of a wait: bucket `b` holds those from 2^b to 2^(b+1) nanoseconds, the last one also
/// all that are longer, the first one also 0.
#[inline(always)]
pub const fn bucket_of(nanos: u64) -> usize {
    // A tree of comparisons: BPF has no instruction that counts zeros.
    let (mut rest, mut bucket) = (nanos, 0);
    if rest >= 1 << 32 {
        rest >>= 32;
        bucket += 32;
    }
    if rest >= 1 << 16 {
        rest >>= 16;
        bucket += 16;
    }
    if rest >= 1 << 8 {
        rest >>= 8;
        bucket += 8;
    }
    if rest >= 1 << 4 {
        rest >>= 4;
        bucket += 4;
    }
    if rest >= 1 << 2 {
        rest >>= 2;
        bucket += 2;
    }
    if rest >= 2 {
        bucket += 1;
    }
    if bucket < BUCKETS {
        bucket
    } else {
        BUCKETS - 1
    }
}

const _: () = assert!(size_of::<ThreadSlot>() == 128);
const _: () = assert!(Reason::ALL.len() <= REASONS && OFF_CPU + REASONS <= WAITS);
const _: () = assert!(DISK_WAITS + BUCKETS <= CELLS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reasons_place_is_its_index() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[test]
    fn a_wait_lies_in_the_bucket_of_its_power_of_two() {
        assert_eq!((bucket_of(0), bucket_of(1)), (0, 0));
        for power in 1..BUCKETS as u32 {
            assert_eq!(bucket_of(1 << power), power as usize);
            assert_eq!(bucket_of((1 << power) - 1), power as usize - 1);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_threads_of_a_process_do_not_pile_up() {
        let mut taken = [0u8; SLOTS];
        for tid in 30_000..34_000 {
            let home = home_of(tid) as usize;
            assert!(home < SLOTS);
            taken[home] += 1;
        }
        assert!(taken.iter().all(|threads| *threads <= 2));
    }
}
