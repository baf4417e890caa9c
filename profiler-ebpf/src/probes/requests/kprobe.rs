//! The tier of kprobes, for kernels that refuse the others. The functions are those of
//! [`super::fexit`]; a call's socket is kept from its entry to its return.
//!
//! The kernel keeps a bounded number of returns in sight (ten, or twice the CPUs): of more
//! threads that block in a receive at once, some returns are not seen. The thread's next call
//! finds the old one and counts it.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{kprobe, kretprobe, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::FIRST_SERVICE;

use super::calls::{receive_returned, send_returned};
use super::slots::count;
use super::socket::{Socket as _, Untrusted};
use crate::probes::cost::Running;
use crate::probes::owners::owner_of;

/// Threads that are in a call at once.
const CALLS: u32 = 4_096;

/// A thread's call that has not returned.
#[repr(C)]
#[derive(Clone, Copy)]
struct Call {
    socket: u64,
    flags: u64,
}

/// By thread.
#[map]
static REQUEST_CALLS: HashMap<u64, Call> = HashMap::with_max_entries(CALLS, 0);

/// Keeps this thread's call until it returns.
#[inline(always)]
fn keep(socket: Untrusted, flags: u64) {
    let thread = bpf_get_current_pid_tgid();
    if REQUEST_CALLS.get_ptr(thread).is_some() {
        // The return of the call before was not seen.
        count!(unreadable);
    }
    let call = Call {
        socket: socket.key(),
        flags,
    };
    if REQUEST_CALLS.insert(thread, call, 0).is_err() {
        count!(unreadable);
    }
}

/// This thread's call, which has returned.
#[inline(always)]
fn take() -> Option<Call> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: an entry that this thread alone writes.
    let call = unsafe { *REQUEST_CALLS.get_ptr(thread)? };
    let _ = REQUEST_CALLS.remove(thread);
    Some(call)
}

/// `(struct socket *sock, struct msghdr *msg, size_t size, int flags)`
#[kprobe]
fn receive_entry(ctx: ProbeContext) -> u32 {
    let _cost = Running::enter(Program::ReceiveEntry);
    if owner_of(ctx.tgid()) < FIRST_SERVICE {
        return 0;
    }
    let (Some(socket), Some(flags)) = (ctx.arg(0), ctx.arg(3)) else {
        return 0;
    };
    if let Some(socket) = Untrusted::behind_socket(socket) {
        keep(socket, flags);
    }
    0
}

#[kretprobe]
#[inline(always)]
fn receive_return(ctx: RetProbeContext) -> u32 {
    let _cost = Running::enter(Program::ReceiveReturn);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE {
        return 0;
    }
    if let Some(call) = take() {
        let socket = Untrusted::new(call.socket);
        let flags = call.flags as i32;
        receive_returned(socket, ctx.ret(), flags, tgid, owner);
    }
    0
}

/// `(struct socket *sock, …)`
#[kprobe]
fn send_entry(ctx: ProbeContext) -> u32 {
    let _cost = Running::enter(Program::SendEntry);
    if owner_of(ctx.tgid()) < FIRST_SERVICE {
        return 0;
    }
    if let Some(socket) = ctx.arg(0)
        && let Some(socket) = Untrusted::behind_socket(socket)
    {
        keep(socket, 0);
    }
    0
}

#[kretprobe]
fn send_return(ctx: RetProbeContext) -> u32 {
    let _cost = Running::enter(Program::SendReturn);
    if owner_of(ctx.tgid()) < FIRST_SERVICE {
        return 0;
    }
    if let Some(call) = take() {
        send_returned(Untrusted::new(call.socket), ctx.ret());
    }
    0
}
