//! Why the running thread blocks: from its state and the system call that it is in.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use profiler_ebpf::http1::mask;
#[cfg(bpf_target_arch = "aarch64")]
use profiler_ebpf::sched::calls::AARCH64 as CALLS;
#[cfg(not(bpf_target_arch = "aarch64"))]
use profiler_ebpf::sched::calls::X86_64 as CALLS;
use profiler_ebpf::sched::calls::{BY_DESCRIPTOR, NUMBERS};
use profiler_ebpf::sched::waits::Reason;

use crate::probes::registers;
use crate::probes::requests::descriptors::is_socket;
use crate::probes::syscalls::is_32_bit;

/// 1 if reasons are told apart; else every one is [`Reason::Other`], and the verifier removes what
/// tells them.
#[unsafe(no_mangle)]
static BLOCK_REASONS: Global<u8> = Global::new(0);

const TASK_UNINTERRUPTIBLE: u32 = 2;

/// The [`Reason`] for which the current thread, of this state, blocks.
#[inline(always)]
pub(super) fn of_current(state: u32) -> u8 {
    if BLOCK_REASONS.load() == 0 {
        return Reason::Other as u8;
    }
    if state & TASK_UNINTERRUPTIBLE != 0 {
        return Reason::Disk as u8;
    }
    // SAFETY: the current task always exists; the helpers return trusted pointers.
    let (number, first) = unsafe {
        let registers = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8;
        (
            u64::from(registers::number(registers)),
            registers::argument_of(registers, 0),
        )
    };
    if number >= NUMBERS as u64 || is_32_bit() {
        return Reason::Other as u8;
    }
    // SAFETY: masked below the table's length.
    let reason = unsafe {
        let place = mask::<{ NUMBERS as i32 - 1 }>(number) as usize;
        core::ptr::read_volatile(CALLS.as_ptr().add(place))
    };
    if reason != BY_DESCRIPTOR {
        return reason;
    }
    if is_socket(first) {
        Reason::Socket as u8
    } else {
        Reason::Other as u8
    }
}
