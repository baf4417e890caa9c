//! Where the bytes of a receive or send lie in the process's memory. A system call's buffers are
//! found through its registers.
//!
//! Calls whose buffers are not plain (sendfile, splice, sendmmsg) say nothing.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};

use super::io_uring;
use super::payload::{self, Buffer, read_user};
use super::slots;
use crate::probes::registers::{self, calls};

/// Which way the bytes went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Received,
    Sent,
}

/// Where bytes lie.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// At this address.
    Plain(u64),
    /// In segments: the address of an array of {address, length}, and how many there are.
    Segments(u64, u64),
    /// In no plain buffers: sendfile, splice, sendmmsg.
    Unknown,
}

/// Says where the bytes of a receive or send lie. It is asked only where they must be read.
pub(super) trait Origin: Copy {
    /// True where a TLS session's bytes are ciphertext.
    const BELOW_TLS: bool = true;

    /// Where they are.
    fn source(self, direction: Direction) -> Source;

    /// Where they can be put.
    #[inline(always)]
    fn buffer(self) -> Option<*mut Buffer> {
        slots::buffer()
    }
}

/// In the buffers of the system call that is running, unless it is a ring that works behind it.
#[derive(Clone, Copy)]
pub(super) struct Syscall(*mut Buffer);

impl Syscall {
    /// Of the call that moved bytes on `socket`; `None` where the completion of a ring's request
    /// will tell of them.
    #[inline(always)]
    pub(super) fn on(socket: u64) -> Option<Self> {
        let by_ring = io_uring::works_for(socket);
        if by_ring && io_uring::are_followed() {
            return None;
        }
        let buffer = slots::buffer()?;
        payload::set_by_ring(buffer, by_ring);
        Some(Self(buffer))
    }
}

impl Origin for Syscall {
    #[inline(always)]
    fn source(self, direction: Direction) -> Source {
        if payload::is_by_ring(self.0) {
            return Source::Unknown;
        }
        syscall_source(direction)
    }

    #[inline(always)]
    fn buffer(self) -> Option<*mut Buffer> {
        Some(self.0)
    }
}

/// Finds the bytes of the running system call, through its registers.
#[inline(always)]
fn syscall_source(direction: Direction) -> Source {
    // SAFETY: the current task always exists; the helper returns a trusted pointer.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: as above.
    let registers = unsafe { bpf_task_pt_regs(task) } as *const u8;
    // SAFETY: a trusted pointer to `pt_regs`.
    let (number, second, third) = unsafe {
        (
            registers::number(registers),
            registers::argument_of(registers, 1),
            registers::argument_of(registers, 2),
        )
    };
    let (plain, plain_to, vector, message) = match direction {
        Direction::Received => (calls::READ, calls::RECVFROM, calls::READV, calls::RECVMSG),
        Direction::Sent => (calls::WRITE, calls::SENDTO, calls::WRITEV, calls::SENDMSG),
    };
    if number == plain || number == plain_to {
        return Source::Plain(second);
    }
    if number == vector {
        return Source::Segments(second, third);
    }
    if number == message {
        return message_source(second);
    }
    Source::Unknown
}

/// The segments of the `struct msghdr` at this address of the process.
#[inline(always)]
pub(super) fn message_source(address: u64) -> Source {
    let mut vector = MaybeUninit::<[u64; 2]>::uninit();
    let to = vector.as_mut_ptr().cast::<u8>();
    // SAFETY: two words; `msg_iov` and `msg_iovlen`.
    if unsafe { read_user(to, 16, address.wrapping_add(16)) } {
        // SAFETY: just read.
        let [segments, count] = unsafe { vector.assume_init() };
        return Source::Segments(segments, count);
    }
    Source::Unknown
}
