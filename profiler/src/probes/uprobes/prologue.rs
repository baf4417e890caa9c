//! Where in a function a probe is cheap.
//!
//! A probe replaces an instruction by a breakpoint. A few kinds of instruction the kernel then
//! carries out itself; any other it steps through, which costs several times as much. So a probe
//! at a function's entry is put at the first instruction of the cheap kind, if none before it
//! changes an argument. One at a function's return needs the function's first.

#[cfg(any(target_arch = "aarch64", test))]
mod aarch64;
#[cfg(not(target_arch = "aarch64"))]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(in crate::probes) use aarch64::{entry, first, passes_on_to};
#[cfg(not(target_arch = "aarch64"))]
pub(in crate::probes) use x86_64::{entry, first, passes_on_to};

/// The most of a function that is looked at.
pub(in crate::probes) const LOOKED_AT: usize = 64;

/// Where to put a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::probes) struct Place {
    /// Bytes behind the function's first.
    pub(in crate::probes) offset: u64,
    /// True where the kernel carries the instruction out itself.
    pub(in crate::probes) emulated: bool,
}
