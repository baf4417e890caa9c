//! The tier of BTF tracepoints. They see every family and every way to read and write, and fire
//! after the copy, inside the system call.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::FIRST_SERVICE;

use super::clients;
use super::exchange::{client_left, destroyed, received, sent};
use super::payload::Syscall;
use super::slots::find;
use super::socket::Trusted;
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;

const MSG_PEEK: i32 = 2;
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

/// `sock_recv_length(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_recv_length")]
fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SockRecvLength);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE {
        return 0;
    }
    let length: i32 = ctx.arg(1);
    // Nothing to read yet: every event loop asks once too often.
    if length < 0 && length != -ECONNRESET {
        return 0;
    }
    let sock: *const u8 = ctx.arg(0);
    let found = find(sock as u64);
    if length <= 0 {
        if !found.is_null() {
            client_left(found, length != 0);
        }
        return 0;
    }
    let flags: i32 = ctx.arg(2);
    if flags & MSG_PEEK != 0 {
        return 0;
    }
    // SAFETY: the tracepoint's own argument.
    let socket = unsafe { Trusted::new(sock) };
    received(socket, found, Syscall, length as u64, tgid, owner);
    0
}

/// `sock_send_length(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SockSendLength);
    let sock: *const u8 = ctx.arg(0);
    let slot = find(sock as u64);
    let length: i32 = ctx.arg(1);
    if slot.is_null() {
        if length > 0 {
            // SAFETY: the tracepoint's own argument.
            clients::note(unsafe { Trusted::new(sock) }, ctx.tgid());
        }
        return 0;
    }
    if length > 0 {
        sent(slot, Syscall, length as u64);
    } else if length == -EPIPE || length == -ECONNRESET {
        client_left(slot, true);
    }
    0
}

/// `tcp_destroy_sock(struct sock *sk)`: the last a TCP socket is seen of.
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
