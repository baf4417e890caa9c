//! The last tier, for kernels with none of the others' hooks: the exits of system calls. It taxes
//! every system call of the machine, and sees only the calls it knows: not `sendmmsg`,
//! `recvmmsg`, io_uring, nor 32-bit processes.

use core::mem::offset_of;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::FIRST_SERVICE;

use super::calls::{receive_matters, receive_returned, send_returned};
use super::descriptors::socket_of;
use super::socket::{Untrusted, read_kernel};
use super::source::{Direction, Registers};
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;
use crate::probes::syscalls::is_32_bit;

/// `sys_exit(struct pt_regs *regs, long ret)`
#[raw_tracepoint(tracepoint = "sys_exit")]
#[inline(always)]
fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SysExit);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE {
        return 0;
    }
    #[cfg(bpf_target_arch = "x86_64")]
    {
        let registers: u64 = ctx.arg(0);
        let register = |offset: usize| read_kernel::<u64>(registers, offset as u32).unwrap_or(0);
        let Some::<u64>(number) = read_kernel(registers, offset_of!(Registers, orig_ax) as u32)
        else {
            return 0;
        };
        let first = offset_of!(Registers, di);
        let third = offset_of!(Registers, dx);
        // Only `recvfrom` and `recvmsg` can peek.
        let (direction, descriptor, flags) = match number {
            // read, readv
            0 | 19 => (Direction::Received, first, 0),
            // recvfrom
            45 => (
                Direction::Received,
                first,
                register(offset_of!(Registers, r10)),
            ),
            // recvmsg
            47 => (Direction::Received, first, register(third)),
            // write, sendto, writev, sendmsg; sendfile, whose first descriptor is the socket
            1 | 44 | 20 | 46 | 40 => (Direction::Sent, first, 0),
            // splice, whose third is
            275 => (Direction::Sent, third, 0),
            _ => return 0,
        };
        let returned: i64 = ctx.arg(1);
        let returned = returned as i32;
        if !receive_matters(returned) && direction == Direction::Received {
            return 0;
        }
        if is_32_bit() {
            return 0;
        }
        let Some(socket) = socket_of(register(descriptor)) else {
            return 0;
        };
        if direction == Direction::Received {
            receive(socket, returned, flags as i32, tgid, owner);
        } else {
            send(socket, returned);
        }
    }
    0
}

/// Two functions with a frame each: those of one do not lie on the stack under the other's callees.
#[inline(never)]
fn receive(socket: Untrusted, returned: i32, flags: i32, tgid: u32, owner: u8) {
    receive_returned(socket, returned, flags, tgid, owner);
}

#[inline(never)]
fn send(socket: Untrusted, returned: i32) {
    send_returned(socket, returned);
}
