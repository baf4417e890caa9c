//! What the kernel side and the agent share: record types and pure functions.
//!
//! `no_std` and free of aya, so that it builds and is tested on the host with no BPF tools.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod clients;
pub mod cost;
pub mod cuda;
pub mod events;
pub mod http1;
pub mod http2;
pub mod io_uring;
pub mod owners;
pub mod request;
pub mod sched;
pub mod stacks;
pub mod syscalls;
pub mod tls;

/// The value of a field's offset when the running kernel has no such field: a program that can do
/// without compares with it; one that cannot is not loaded.
pub const ABSENT: u32 = u32::MAX;
