//! A client that leaves, as the connection's own state says it. A server need not read it: one
//! that learns from epoll that the client has hung up closes at once.

use aya_ebpf::Global;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;

use super::exchange::client_left;
use super::slots::find;
use super::socket::{Socket as _, Trusted};
use crate::probes::cost::Running;

/// `TCP_*` of include/net/tcp_states.h.
const ESTABLISHED: i32 = 1;
const CLOSE: i32 = 7;
const CLOSE_WAIT: i32 = 8;

/// May be absent; then only a close in good order is noticed here.
#[unsafe(no_mangle)]
static SOCK_ERROR: Global<u32> = Global::new(ABSENT);

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::InetSockSetState);
    let (from, to): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let was_open = from == ESTABLISHED || from == CLOSE_WAIT;
    if !was_open || (to != CLOSE_WAIT && to != CLOSE) {
        return 0;
    }
    let sock: *const u8 = ctx.arg(0);
    let slot = find(sock as u64);
    if slot.is_null() {
        return 0;
    }
    // Without an error it was the server that cut the connection off. With one the server may
    // still say something, to nobody: what it does next ends the request.
    // SAFETY: the tracepoint's own argument; `sk_err`.
    if to == CLOSE_WAIT || unsafe { has_error(sock) } {
        client_left(slot, false);
    }
    0
}

/// # Safety
/// `sock` must be an argument of the program; then the verifier checks the offset.
#[inline(always)]
unsafe fn has_error(sock: *const u8) -> bool {
    let error = SOCK_ERROR.load();
    // SAFETY: the caller's promise; `sk_err`.
    error != ABSENT && unsafe { Trusted::new(sock).member::<i32>(error) } != 0
}
