//! Where the bytes of a receive or send lie in the process's memory. A system call's buffers are
//! found through its registers.
//!
//! Calls whose buffers are not plain (sendfile, splice, sendmmsg, io_uring) say nothing.

use core::mem::MaybeUninit;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use profiler_ebpf::ABSENT;

use super::descriptors;
use super::payload::{Buffer, read_user};
use super::slots;

/// Which way the bytes went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Received,
    Sent,
}

/// Where a task has its part of io_uring; it is null until it uses one.
#[unsafe(no_mangle)]
static TASK_IO_URING: Global<u32> = Global::new(ABSENT);

/// Registers of a system call as the kernel saves them: `struct pt_regs`, an ABI.
#[cfg(bpf_target_arch = "x86_64")]
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Registers {
    unused: [u64; 7],
    pub(super) r10: u64,
    unused_too: [u64; 4],
    pub(super) dx: u64,
    pub(super) si: u64,
    pub(super) di: u64,
    pub(super) orig_ax: u64,
}

/// Where bytes lie.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// At this address.
    Plain(u64),
    /// In segments: the address of an array of {address, length}, and how many there are.
    Segments(u64, u64),
    /// In no plain buffers: sendfile, splice, sendmmsg, io_uring.
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

/// In the buffers of the system call that is running, if it is one on this socket.
#[derive(Clone, Copy)]
pub(super) struct Syscall {
    /// The socket's address.
    pub(super) socket: u64,
}

impl Origin for Syscall {
    #[inline(always)]
    fn source(self, direction: Direction) -> Source {
        syscall_source(direction, self.socket)
    }
}

/// Finds the bytes of the running system call, if it is one on `socket`, through its registers.
///
/// The work of an io_uring is done on the way out of any system call, or by threads of its own:
/// in a process that uses one, the call's own descriptor must lead to the socket.
#[inline(always)]
fn syscall_source(direction: Direction, socket: u64) -> Source {
    #[cfg(bpf_target_arch = "x86_64")]
    {
        // SAFETY: the current task always exists; the helper returns a trusted pointer.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: as above.
        let registers = unsafe { bpf_task_pt_regs(task) } as *const Registers;
        // SAFETY: a trusted pointer to `pt_regs`.
        let (number, first, second, third) = unsafe {
            (
                (*registers).orig_ax,
                (*registers).di,
                (*registers).si,
                (*registers).dx,
            )
        };
        if uses_io_uring(task as *const u8) && !descriptors::leads_to(first, socket) {
            return Source::Unknown;
        }
        let (plain, plain_to, vector, message) = match direction {
            // read, recvfrom, readv, recvmsg; write, sendto, writev, sendmsg
            Direction::Received => (0, 45, 19, 47),
            Direction::Sent => (1, 44, 20, 46),
        };
        if number == plain || number == plain_to {
            return Source::Plain(second);
        }
        if number == vector {
            return Source::Segments(second, third);
        }
        if number == message {
            let mut vector = MaybeUninit::<[u64; 2]>::uninit();
            let to = vector.as_mut_ptr().cast::<u8>();
            // SAFETY: two words; `msg_iov` and `msg_iovlen` of `struct msghdr`.
            if unsafe { read_user(to, 16, second.wrapping_add(16)) } {
                // SAFETY: just read.
                let [address, count] = unsafe { vector.assume_init() };
                return Source::Segments(address, count);
            }
        }
    }
    Source::Unknown
}

/// True if the task uses an io_uring, or once did.
#[inline(always)]
fn uses_io_uring(task: *const u8) -> bool {
    match TASK_IO_URING.load() {
        // Built without: there is none to use.
        ABSENT => false,
        // SAFETY: a trusted pointer to a task, and a pointer among its members.
        offset => unsafe { !(*task.add(offset as usize).cast::<*const u8>()).is_null() },
    }
}
