//! What services did beside serving: plain values that probes tell and sinks sum up.

use crate::ledger::ServiceId;

/// What a service asked of its GPUs through CUDA's driver library, since it was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaCalls {
    /// Whose.
    pub service: ServiceId,
    /// Kernels launched one by one.
    pub kernels: u64,
    /// Graphs launched.
    pub graphs: u64,
    /// Calls that waited for the GPU, and returned.
    pub syncs: u64,
    /// Nanoseconds inside them, summed over threads.
    pub sync_nanos: u64,
    /// Nanoseconds for which all this was looked at.
    pub watched_nanos: u64,
    /// False once the probes were taken off: there were more.
    pub complete: bool,
}

/// What hardware counted while a service's threads ran, since it was told last. `None` where the
/// machine does not count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardwareCounts {
    /// Whose.
    pub service: ServiceId,
    /// Cycles in which its CPUs were not halted.
    pub cycles: Option<u64>,
    /// Instructions retired.
    pub instructions: Option<u64>,
    /// Cache misses, as the kernel's generic event has them.
    pub cache_misses: Option<u64>,
    /// Nanoseconds for which its threads ran with the counters wanted.
    pub wanted_nanos: u64,
    /// Nanoseconds of these for which they counted; the rest is extrapolated.
    pub counted_nanos: u64,
}
