//! The last tier, for kernels with none of the others' hooks: the exits of system calls. It taxes
//! every system call of the machine, and sees only the calls it knows: not `sendmmsg`,
//! `recvmmsg`, io_uring, nor 32-bit processes.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::FIRST_SERVICE;

use super::calls::{receive_matters, receive_returned, send_returned};
use super::descriptors::socket_of;
use super::socket::read_kernel;
use super::source::{Direction, Registers};
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;
use crate::probes::syscalls::is_32_bit;

/// `sys_exit(struct pt_regs *regs, long ret)`
#[raw_tracepoint(tracepoint = "sys_exit")]
fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SysExit);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE {
        return 0;
    }
    #[cfg(bpf_target_arch = "x86_64")]
    {
        let Some(Registers {
            orig_ax: number,
            di,
            dx,
            r10,
            ..
        }) = read_kernel(ctx.arg(0), 0)
        else {
            return 0;
        };
        // Only `recvfrom` and `recvmsg` can peek.
        let (direction, descriptor, flags) = match number {
            // read, readv
            0 | 19 => (Direction::Received, di, 0),
            // recvfrom
            45 => (Direction::Received, di, r10),
            // recvmsg
            47 => (Direction::Received, di, dx),
            // write, sendto, writev, sendmsg; sendfile, whose first descriptor is the socket
            1 | 44 | 20 | 46 | 40 => (Direction::Sent, di, 0),
            // splice, whose third is
            275 => (Direction::Sent, dx, 0),
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
        let Some(socket) = socket_of(descriptor) else {
            return 0;
        };
        if direction == Direction::Received {
            receive_returned(socket, returned, flags as i32, tgid, owner);
        } else {
            send_returned(socket, returned);
        }
    }
    0
}
