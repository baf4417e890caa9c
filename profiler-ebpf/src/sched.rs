//! On-CPU time and cycles: what each CPU publishes; and, in [`waits`], what threads wait for.

pub mod calls;
pub mod waits;

use crate::owners::OWNERS;

/// One CPU's account, written by that CPU only and read through shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CpuAccount {
    /// Start of the slice that runs now, nanoseconds of `CLOCK_MONOTONIC`; 0 before the first
    /// switch was seen. Written before the rest at a switch.
    pub since: u64,
    /// The process that runs now.
    pub tgid: u64,
    /// Context switches seen.
    pub switches: u64,
    /// The CPU's cycle counter when the slice began.
    pub cycles_since: u64,
    /// Switches to other processes that no program saw, as the next switch tells.
    pub unseen: u64,
    /// What the kernel's clock of run queues is behind the clock of `since`, nanoseconds, and the least
    /// that the hook comes after the kernel's look at it; modulo 2^64. 0 where it is not known.
    pub clock_lead: u64,
    /// Keeps two CPUs' hot fields off one cache line.
    pub reserved: [u64; 2],
    /// Nanoseconds of ended slices by owner, idle included.
    pub on_cpu: [u64; OWNERS],
    /// Cycles of the same slices, where they are counted.
    pub cycles: [u64; OWNERS],
}

/// Words (8 bytes) of [`CpuAccount`] before `on_cpu`.
pub const HEADER_WORDS: usize = 8;

const _: () = assert!(core::mem::offset_of!(CpuAccount, on_cpu) == HEADER_WORDS * 8);
