//! What both sides know of CUDA's driver library: what is counted of an owner's calls.

/// The attach cookie of functions that launch one kernel.
pub const KERNEL: u64 = 0;
/// The attach cookie of functions that launch a graph of them.
pub const GRAPH: u64 = 1;

/// Threads whose latest wait is remembered.
pub const THREADS: u32 = 8_192;

/// An owner's calls so far: one cache line.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels launched one by one.
    pub kernels: u64,
    /// Graphs launched.
    pub graphs: u64,
    /// Calls that waited for the GPU and have returned.
    pub syncs: u64,
    /// Nanoseconds inside them.
    pub sync_ns: u64,
    /// Calls that have returned and whose beginning is not remembered: in neither of the two.
    pub untimed: u64,
    /// Keeps two owners out of one cache line.
    pub padding: [u64; 3],
}
