//! What threads wait for, as values: the scheduler's probe makes them, metrics and reports show
//! them.

use profiler_ebpf::sched::waits::{BUCKETS, REASONS};

pub use profiler_ebpf::sched::waits::Reason;

/// What the threads of one service did, summed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// Nanoseconds in the run queue: since waking up, or since losing the CPU.
    pub run_queue: u64,
    /// Such waits by length: bucket `b` holds those of 2^b to 2^(b+1) nanoseconds, the last one also
    /// all that are longer.
    pub histogram: [u64; BUCKETS],
    /// Waits for a disk (or another uninterruptible wait) that have ended, in the same buckets.
    pub disk_histogram: [u64; BUCKETS],
    pub(crate) off_cpu: [u64; REASONS],
    /// Switches by which threads blocked.
    pub voluntary: u64,
    /// Switches by which threads stayed runnable.
    pub involuntary: u64,
    /// Times threads ran on another CPU than before.
    pub migrations: u64,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            run_queue: 0,
            histogram: [0; BUCKETS],
            disk_histogram: [0; BUCKETS],
            off_cpu: [0; REASONS],
            voluntary: 0,
            involuntary: 0,
            migrations: 0,
        }
    }
}

impl Waits {
    /// Nanoseconds off CPU for a reason. What is preempted is a part of [`Self::run_queue`].
    pub fn off_cpu(&self, reason: Reason) -> u64 {
        self.off_cpu.get(reason as usize).copied().unwrap_or(0)
    }

    /// Adds nanoseconds off CPU.
    pub fn add_off_cpu(&mut self, reason: Reason, nanos: u64) {
        if let Some(sum) = self.off_cpu.get_mut(reason as usize) {
            *sum += nanos;
        }
    }

    /// Adds what came later.
    pub fn add(&mut self, more: &Self) {
        self.run_queue += more.run_queue;
        self.voluntary += more.voluntary;
        self.involuntary += more.involuntary;
        self.migrations += more.migrations;
        let buckets = self.histogram.iter_mut().zip(more.histogram);
        let disk = self.disk_histogram.iter_mut().zip(more.disk_histogram);
        for (sum, more) in buckets
            .chain(disk)
            .chain(self.off_cpu.iter_mut().zip(more.off_cpu))
        {
            *sum += more;
        }
    }
}

/// What one thread did since it was first seen, the state that lasts included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadTimes {
    /// The thread.
    pub tid: u32,
    /// Its process.
    pub tgid: u32,
    /// Nanoseconds on CPU.
    pub on_cpu: u64,
    /// Nanoseconds in the run queue.
    pub run_queue: u64,
    pub(crate) off_cpu: [u64; REASONS],
    /// Switches by which it blocked.
    pub voluntary: u64,
    /// Switches by which it stayed runnable.
    pub involuntary: u64,
    /// Times it ran on another CPU than before.
    pub migrations: u64,
}

impl ThreadTimes {
    /// Nanoseconds off CPU for a reason. What is preempted is a part of [`Self::run_queue`].
    pub fn off_cpu(&self, reason: Reason) -> u64 {
        self.off_cpu.get(reason as usize).copied().unwrap_or(0)
    }
}

impl ThreadTimes {
    /// Nothing yet.
    pub const fn none(tid: u32, tgid: u32) -> Self {
        Self {
            tid,
            tgid,
            on_cpu: 0,
            run_queue: 0,
            off_cpu: [0; REASONS],
            voluntary: 0,
            involuntary: 0,
            migrations: 0,
        }
    }

    /// Adds nanoseconds off CPU.
    pub fn add_off_cpu(&mut self, reason: Reason, nanos: u64) {
        if let Some(sum) = self.off_cpu.get_mut(reason as usize) {
            *sum += nanos;
        }
    }
}
