//! What the kernel side and the agent share: record types and pure functions.
//!
//! `no_std` and free of aya, so that it builds and is tested on the host with no BPF tools.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod http1;
pub mod request;
