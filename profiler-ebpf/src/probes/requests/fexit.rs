//! The tier of function exits, for kernels without the tracepoints. A service's calls are seen as
//! they leave the functions behind `recv` and `send` of TCP and of Unix stream sockets: the copy
//! is done, and the system call still runs.
//!
//! `inet_*` rather than `tcp_*`: they stand above kernel TLS, whose plaintext is then seen, and
//! their arguments never moved.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::{fexit, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::FExitContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::FIRST_SERVICE;

use super::calls::{receive_returned, send_returned};
use super::slots::count;
use super::socket::Trusted;
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;

/// Not 0 while a program of this tier runs on this CPU. Unlike tracepoints these can be
/// preempted, by a process that calls another of the functions: the buffer is the first one's.
#[map]
static REQUEST_EXIT_BUSY: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn alone(work: impl FnOnce()) {
    let Some(busy) = REQUEST_EXIT_BUSY.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own entry; programs do not change the CPU.
    unsafe {
        if core::ptr::read_volatile(busy) != 0 {
            count!(unreadable);
            return;
        }
        core::ptr::write_volatile(busy, 1);
        work();
        core::ptr::write_volatile(busy, 0);
    }
}

/// `int (struct socket *sock, struct msghdr *msg, size_t size, int flags)`; the result lies behind
/// the arguments. Not through the helper for it: verifiers from 5.17 to 6.7 can take what that
/// returns for zero, and leave out the branch in which it is not.
#[inline(always)]
fn receive(ctx: &FExitContext, program: Program) -> i32 {
    let _cost = Running::enter(program);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE {
        return 0;
    }
    // SAFETY: the function's own argument.
    let socket = unsafe { Trusted::behind_socket(ctx.arg(0)) };
    let (flags, returned) = (ctx.arg(3), ctx.arg(4));
    alone(|| receive_returned(socket, returned, flags, tgid, owner));
    0
}

/// `int (struct socket *sock, …)` of as many arguments; see [`receive`].
#[inline(always)]
fn send<const ARGUMENTS: usize>(ctx: &FExitContext, program: Program) -> i32 {
    let _cost = Running::enter(program);
    // SAFETY: the function's own argument.
    let socket = unsafe { Trusted::behind_socket(ctx.arg(0)) };
    let returned = ctx.arg(ARGUMENTS);
    alone(|| send_returned(socket, returned));
    0
}

#[fexit]
fn inet_recvmsg(ctx: FExitContext) -> i32 {
    receive(&ctx, Program::InetRecvmsg)
}

#[fexit]
fn inet6_recvmsg(ctx: FExitContext) -> i32 {
    receive(&ctx, Program::Inet6Recvmsg)
}

#[fexit]
fn unix_stream_recvmsg(ctx: FExitContext) -> i32 {
    receive(&ctx, Program::UnixStreamRecvmsg)
}

#[fexit]
fn inet_sendmsg(ctx: FExitContext) -> i32 {
    send::<3>(&ctx, Program::InetSendmsg)
}

#[fexit]
fn inet6_sendmsg(ctx: FExitContext) -> i32 {
    send::<3>(&ctx, Program::Inet6Sendmsg)
}

#[fexit]
fn unix_stream_sendmsg(ctx: FExitContext) -> i32 {
    send::<3>(&ctx, Program::UnixStreamSendmsg)
}

/// `(struct socket *sock, struct page *page, int offset, size_t size, int flags)`: what `sendfile`
/// sends, before Linux 6.5; later it goes through `sendmsg`.
#[fexit]
fn inet_sendpage(ctx: FExitContext) -> i32 {
    send::<5>(&ctx, Program::InetSendpage)
}
