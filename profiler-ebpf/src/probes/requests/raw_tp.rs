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
use super::socket::{Untrusted, read_kernel};
use super::source::Direction;
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;
use crate::probes::registers::{NUMBER, Number, argument, calls};
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
    let registers: u64 = ctx.arg(0);
    let Some::<Number>(number) = read_kernel(registers, NUMBER as u32) else {
        return 0;
    };
    let word = |index| read_kernel::<u64>(registers, argument(index) as u32).unwrap_or(0);
    // Only `recvfrom` and `recvmsg` can peek.
    let (direction, descriptor, flags) = match number {
        calls::READ | calls::READV => (Direction::Received, 0, 0),
        calls::RECVFROM => (Direction::Received, 0, word(3)),
        calls::RECVMSG => (Direction::Received, 0, word(2)),
        // The first descriptor of `sendfile` is the socket.
        calls::WRITE | calls::SENDTO | calls::WRITEV | calls::SENDMSG | calls::SENDFILE => {
            (Direction::Sent, 0, 0)
        }
        calls::SPLICE => (Direction::Sent, 2, 0),
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
    let Some(socket) = socket_of(word(descriptor)) else {
        return 0;
    };
    if direction == Direction::Received {
        receive(socket, returned, flags as i32, tgid, owner);
    } else {
        send(socket, returned);
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
