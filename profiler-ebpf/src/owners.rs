//! Which owner a process belongs to: one byte a process, written by the agent, read by every
//! probe that must tell a service's processes from foreign ones, and inherited at fork.

/// A process's owner, as the kernel side knows it: an index into the agent's own list.
pub type OwnerIndex = u8;

/// Processes of no service; every process the agent has not named.
pub const OTHER: OwnerIndex = 0;
/// The idle task of each CPU (process 0).
pub const IDLE: OwnerIndex = 1;
/// The agent itself. Not inherited: a command that the agent starts is not the agent.
pub const AGENT: OwnerIndex = 2;
/// The first service's index.
pub const FIRST_SERVICE: OwnerIndex = 3;
/// The agent while a probe tests itself: followed as a service is, told to nobody. Not inherited.
pub const SELF_TEST: OwnerIndex = OwnerIndex::MAX;
/// Owners in all, and so the length of every array that has one cell an owner.
pub const OWNERS: usize = 256;

/// Processes that share one entry of the table. BPF array entries are padded to 8 bytes, so a
/// byte a process needs many to an entry.
pub const PROCESSES_PER_ENTRY: usize = 64;

/// The table's entry for `tgid`.
pub const fn entry_of(tgid: u32) -> u32 {
    tgid / PROCESSES_PER_ENTRY as u32
}

/// Entries that cover every process id below `pid_max`.
pub const fn entries_for(pid_max: u32) -> u32 {
    pid_max.div_ceil(PROCESSES_PER_ENTRY as u32)
}
