//! A client that comes or leaves, as the connection's own state says it. A server need not read
//! that its client has left: one that learns from epoll that it has hung up closes at once.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext as _, Global};
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;

use super::clients;
use super::exchange::client_left;
use super::slots::find;
use super::socket::{Socket as _, Trusted};
use crate::probes::cost::Running;

/// `TCP_*` of include/net/tcp_states.h.
const ESTABLISHED: i32 = 1;
const SYN_SENT: i32 = 2;
const CLOSE: i32 = 7;
const CLOSE_WAIT: i32 = 8;

/// May be absent; then only a close in good order is noticed here.
#[unsafe(no_mangle)]
static SOCK_ERROR: Global<u32> = Global::new(ABSENT);
/// May be absent; then a client is known from its first send on.
#[unsafe(no_mangle)]
static SOCK_LOCK_OWNED: Global<u32> = Global::new(ABSENT);

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::InetSockSetState);
    let (from, to): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let sock: *const u8 = ctx.arg(0);
    if from == SYN_SENT && to == ESTABLISHED {
        // SAFETY: the tracepoint's own argument.
        unsafe { connected(sock, ctx.tgid()) };
        return 0;
    }
    let was_open = from == ESTABLISHED || from == CLOSE_WAIT;
    if !was_open || (to != CLOSE_WAIT && to != CLOSE) {
        return 0;
    }
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

/// A client's connection stands. On this machine the whole handshake runs inside `connect`, which
/// holds the socket; one that a soft interrupt finishes runs on anybody's account, and says nothing.
///
/// # Safety
/// `sock` must be an argument of the program; then the verifier checks the offset.
#[inline(always)]
unsafe fn connected(sock: *const u8, tgid: u32) {
    let owned = SOCK_LOCK_OWNED.load();
    // SAFETY: the caller's promise; `sk_lock.owned`.
    unsafe {
        let socket = Trusted::new(sock);
        if owned != ABSENT && socket.member::<i32>(owned) != 0 {
            clients::note(socket, tgid);
        }
    }
}

/// # Safety
/// `sock` must be an argument of the program; then the verifier checks the offset.
#[inline(always)]
unsafe fn has_error(sock: *const u8) -> bool {
    let error = SOCK_ERROR.load();
    // SAFETY: the caller's promise; `sk_err`.
    error != ABSENT && unsafe { Trusted::new(sock).member::<i32>(error) } != 0
}
