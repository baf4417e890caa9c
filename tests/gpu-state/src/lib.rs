//! Shared memory between inference-sim's engine and nvml-sim: what the simulated GPU does.
//!
//! In: the engine publishes each step as a [`Segment`] of energy *above idle*, before the step
//! begins, and the processes that hold a context. Out: the exact cumulative energy above idle at
//! any moment that has passed, for any number of readers in any process.
//!
//! What idles is not written: a GPU with no segment at some moment is idle then, and how many
//! watts that means is the reader's knowledge (nvml-sim's scenario). So a GPU idles before the
//! first engine starts and after the last one has gone.
//!
//! The file is a header page and, for each of [`MAX_DEVICES`] devices, a page of processes and a
//! ring of segments. It is sparse: a device that nobody uses takes no memory. Times are
//! `CLOCK_BOOTTIME` nanoseconds.

mod layout;
mod processes;
mod ring;
mod state;

pub use processes::{Process, ProcessSlot};
pub use ring::{PublishError, Segment, Writer, publish_together};
pub use state::{GpuState, OpenError};

/// Devices a state file has room for.
pub const MAX_DEVICES: usize = 16;

/// Segments a device's ring remembers: about 20 minutes of decoding at 100 steps a second.
pub const RING_CAPACITY: usize = 1 << 17;

/// Processes that can hold a context on one device.
pub const MAX_PROCESSES: usize = 64;

/// The present moment, nanoseconds of `CLOCK_BOOTTIME`.
pub fn boottime_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to write; CLOCK_BOOTTIME exists since
    // Linux 2.6.39, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
