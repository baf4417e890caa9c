//! A system call's number and arguments, in the registers the kernel saved when it began
//! (`struct pt_regs`, an ABI), and the numbers of the calls that are told apart.
//!
//! Sources: arch/x86/include/asm/ptrace.h and arch/x86/entry/syscalls/syscall_64.tbl;
//! arch/arm64/include/asm/ptrace.h and scripts/syscall.tbl (include/uapi/asm-generic/unistd.h).

pub(crate) use self::machine::{NUMBER, Number, argument};

#[cfg(bpf_target_arch = "x86_64")]
mod machine {
    /// What a call's number is kept as.
    pub(crate) type Number = u64;

    /// `orig_ax`, in bytes from the start.
    pub(crate) const NUMBER: usize = 15 * 8;

    /// Where argument `index` is, in bytes from the start, also after the call has returned.
    pub(crate) const fn argument(index: usize) -> usize {
        // di, si, dx, r10
        8 * match index {
            0 => 14,
            1 => 13,
            2 => 12,
            _ => 7,
        }
    }

    pub(crate) const READ: Number = 0;
    pub(crate) const WRITE: Number = 1;
    pub(crate) const READV: Number = 19;
    pub(crate) const WRITEV: Number = 20;
    pub(crate) const SENDFILE: Number = 40;
    pub(crate) const SENDTO: Number = 44;
    pub(crate) const RECVFROM: Number = 45;
    pub(crate) const SENDMSG: Number = 46;
    pub(crate) const RECVMSG: Number = 47;
    pub(crate) const SPLICE: Number = 275;
}

#[cfg(bpf_target_arch = "aarch64")]
mod machine {
    /// What a call's number is kept as.
    pub(crate) type Number = u32;

    /// `syscallno`, in bytes from the start.
    pub(crate) const NUMBER: usize = 35 * 8;

    /// Where argument `index` is, in bytes from the start, also after the call has returned: the
    /// result is put in the first one's register, which is kept in `orig_x0`.
    pub(crate) const fn argument(index: usize) -> usize {
        8 * match index {
            0 => 34,
            index => index,
        }
    }

    pub(crate) const READ: Number = 63;
    pub(crate) const WRITE: Number = 64;
    pub(crate) const READV: Number = 65;
    pub(crate) const WRITEV: Number = 66;
    pub(crate) const SENDFILE: Number = 71;
    pub(crate) const SPLICE: Number = 76;
    pub(crate) const SENDTO: Number = 206;
    pub(crate) const RECVFROM: Number = 207;
    pub(crate) const SENDMSG: Number = 211;
    pub(crate) const RECVMSG: Number = 212;
}

/// Numbers of calls.
pub(crate) mod calls {
    use super::Number;
    pub(crate) use super::machine::{
        READ, READV, RECVFROM, RECVMSG, SENDFILE, SENDMSG, SENDTO, SPLICE, WRITE, WRITEV,
    };

    /// The same on every machine: newer calls share their numbers.
    pub(crate) const IO_URING_SETUP: Number = 425;
    pub(crate) const IO_URING_ENTER: Number = 426;
}

/// The number of the call that these registers began.
///
/// # Safety
/// `registers` must be what `bpf_task_pt_regs` returned.
#[inline(always)]
pub(crate) unsafe fn number(registers: *const u8) -> Number {
    // SAFETY: a trusted pointer to `pt_regs`, and a member of it.
    unsafe { *registers.add(NUMBER).cast() }
}

/// An argument of the call that these registers began.
///
/// # Safety
/// `registers` must be what `bpf_task_pt_regs` returned.
#[inline(always)]
pub(crate) unsafe fn argument_of(registers: *const u8, index: usize) -> u64 {
    // SAFETY: a trusted pointer to `pt_regs`, and a member of it.
    unsafe { *registers.add(argument(index)).cast() }
}
