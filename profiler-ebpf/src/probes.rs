//! One module a subject; the agent's `probes` has the same names.

mod cost;
mod cuda;
mod events;
mod owners;
mod registers;
mod requests;
mod sched;
mod stacks;
mod syscalls;

/// `BPF_F_MMAPABLE`: the agent reads the array as memory, without a system call.
const MMAPABLE: u32 = 1 << 10;
