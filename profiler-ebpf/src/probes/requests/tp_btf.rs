//! The tier of BTF tracepoints. They see every family and every way to read and write, and fire
//! after the copy, inside the system call.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::FIRST_SERVICE;

use super::calls::{receive_matters, receive_returned, send_returned};
use super::clients;
use super::exchange::destroyed;
use super::slots::find;
use super::socket::Trusted;
use super::tls;
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;

/// `sock_recv_length(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_recv_length")]
#[inline(always)]
fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SockRecvLength);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    let returned: i32 = ctx.arg(1);
    if owner < FIRST_SERVICE || !receive_matters(returned) {
        return 0;
    }
    // SAFETY: the tracepoint's own argument.
    let socket = unsafe { Trusted::new(ctx.arg(0)) };
    receive_returned(socket, returned, ctx.arg(2), tgid, owner);
    0
}

/// `sock_send_length(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SockSendLength);
    // SAFETY: the tracepoint's own argument.
    let socket = unsafe { Trusted::new(ctx.arg(0)) };
    send_returned(socket, ctx.arg(1));
    0
}

/// `tcp_destroy_sock(struct sock *sk)`: the last a TCP socket is seen of, whatever the tier.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::TcpDestroySock);
    let sock: *const u8 = ctx.arg(0);
    let slot = find(sock as u64);
    if slot.is_null() {
        // SAFETY: the tracepoint's own argument.
        clients::forget(unsafe { Trusted::new(sock) });
    } else {
        destroyed(sock as u64, slot);
    }
    0
}
