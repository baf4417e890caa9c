//! Stack samples: what a CPU's timer leaves in the ring, and what it could not leave there.

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
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub at: u64,
    /// The process.
    pub tgid: u32,
    /// The CPU.
    pub cpu: u32,
    /// The process's owner, as an index.
    pub owner: u32,
    /// How many addresses are the kernel's.
    pub kernel_frames: u16,
    /// How many are the process's.
    pub user_frames: u16,
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
    /// Keeps two CPUs' counters off one cache line.
    pub reserved: [u64; 5],
}

const _: () = assert!(size_of::<Head>() == 24);
const _: () = assert!(KERNEL_FRAMES + USER_FRAMES < FRAMES);
