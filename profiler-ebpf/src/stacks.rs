//! Stacks: what a CPU's timer, and what a thread that waited, leave in the ring, and what they could not
//! leave there.

/// Addresses of kernel code that a sample holds at most.
pub const KERNEL_FRAMES: usize = 127;
/// Addresses of the process's own code that a sample holds at most: where the kernel stops too,
/// unless `kernel.perf_event_max_stack` was raised.
pub const USER_FRAMES: usize = 127;
/// Room for the addresses of one sample.
pub const FRAMES: usize = 256;

/// What stands before the addresses of a sample: first the kernel's, then the process's, each from
/// the innermost out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Head {
    /// Nanoseconds of `CLOCK_BOOTTIME`: of a wait, its end.
    pub at: u64,
    /// Nanoseconds that a thread waited here; 0 for one that was seen on a CPU.
    pub waited: u64,
    /// The process.
    pub tgid: u32,
    /// The CPU.
    pub cpu: u32,
    /// The process's owner, as an index.
    pub owner: u8,
    /// Why it waited, a [`Reason`](crate::sched::waits::Reason).
    pub reason: u8,
    /// How many addresses are the kernel's.
    pub kernel_frames: u8,
    /// How many are the process's.
    pub user_frames: u8,
    /// Nothing; there is no padding.
    pub reserved: u32,
}

/// A sample before it is cut to its length.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Sample {
    /// What and whose.
    pub head: Head,
    /// Its addresses.
    pub frames: [u64; FRAMES],
}

/// Places for stacks of threads that wait, by thread id. A power of two.
pub const WAITING: usize = 2_048;
/// Addresses of kernel code that is kept of a wait: those of the scheduler lie on top.
pub const WAITING_KERNEL_FRAMES: usize = 31;
/// Addresses of the process's own code that are kept of a wait.
pub const WAITING_USER_FRAMES: usize = 95;

/// Where a thread began to wait.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Waiting {
    /// The thread.
    pub tid: u64,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// What is told once it has waited for long enough.
    pub head: Head,
    /// Its addresses.
    pub frames: [u64; 128],
}

/// One CPU's counters, written by that CPU only and read through shared memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CpuSamples {
    /// Samples of services' threads.
    pub taken: u64,
    /// Those of them for which the ring had no room.
    pub lost: u64,
    /// Those whose stack is deeper than a sample holds: their outermost frames are missing.
    pub cut: u64,
    /// Waits of services' threads that were long enough.
    pub waits: u64,
    /// Those of them for which the ring had no room.
    pub waits_lost: u64,
    /// Those whose place another thread had taken meanwhile.
    pub waits_replaced: u64,
    /// Keeps two CPUs' counters off one cache line.
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<Head>() == 32);
const _: () = assert!(KERNEL_FRAMES + USER_FRAMES < FRAMES);
const _: () = assert!(WAITING_KERNEL_FRAMES + WAITING_USER_FRAMES < 128);
