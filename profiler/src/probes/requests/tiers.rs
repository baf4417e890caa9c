//! The tiers of the request probe: which programs each is made of, and where they are attached.

use crate::probes::health::Tier;
use crate::probes::load_error::ProbeError;
use crate::probes::loader::{Field, Hook, Loader};

const DESTROY: &str = "tcp_destroy_sock";
const STATE: &str = "inet_sock_set_state";

/// Programs that look at a socket before they know it.
const RECEIVERS: &[&str] = &[
    "sock_recv_length",
    "inet_recvmsg",
    "inet6_recvmsg",
    "unix_stream_recvmsg",
    "receive_return",
    "sys_exit",
    "io_uring_received",
];

/// Programs that are told of a `struct socket`.
const BEHIND_SOCKET: &[&str] = &[
    "inet_recvmsg",
    "inet6_recvmsg",
    "unix_stream_recvmsg",
    "inet_sendmsg",
    "inet6_sendmsg",
    "unix_stream_sendmsg",
    "inet_sendpage",
    "receive_entry",
    "send_entry",
    "sys_exit",
    "io_uring_received",
    "io_uring_sent",
];

/// Programs that are told of a descriptor.
const BY_DESCRIPTOR: &[&str] = &["sys_exit"];

/// Programs that are told of a file.
const BY_FILE: &[&str] = &["sys_exit", "io_uring_received", "io_uring_sent"];

pub(super) const fn field(
    global: &'static str,
    structure: &'static str,
    member: &'static str,
    programs: &'static [&'static str],
) -> Field {
    Field {
        global,
        structure,
        member,
        programs,
    }
}

/// Kernel fields the probe reads.
pub(super) const FIELDS: &[Field] = &[
    field("SOCK_FAMILY", "sock_common", "skc_family", RECEIVERS),
    field("SOCK_STATE", "sock_common", "skc_state", RECEIVERS),
    field("SOCK_PORT", "sock_common", "skc_num", RECEIVERS),
    field("SOCK_ERROR", "sock", "sk_err", &[]),
    field("SOCK_LOCK_OWNED", "sock", "sk_lock.owned", &[]),
    field("SOCK_PEER_PORT", "sock_common", "skc_dport", &[]),
    field("SOCK_NETWORK", "sock_common", "skc_net.net", &[]),
    field("NETWORK_NUMBER", "net", "ns.inum", &[]),
    field("SOCKET_SOCK", "socket", "sk", BEHIND_SOCKET),
    field("TASK_FILES", "task_struct", "files", BY_DESCRIPTOR),
    field("FILES_TABLE", "files_struct", "fdt", BY_DESCRIPTOR),
    field("TABLE_LENGTH", "fdtable", "max_fds", BY_DESCRIPTOR),
    field("TABLE_FILES", "fdtable", "fd", BY_DESCRIPTOR),
    field("FILE_INODE", "file", "f_inode", BY_FILE),
    field("FILE_PRIVATE", "file", "private_data", BY_FILE),
    field("INODE_MODE", "inode", "i_mode", BY_FILE),
    field(
        "TASK_THREAD_STATUS",
        "task_struct",
        "thread_info.status",
        &[],
    ),
];

/// A program and its place.
#[derive(Debug, Clone, Copy)]
struct Part {
    program: &'static str,
    hook: Hook<'static>,
    /// Without it the tier is of no use; another is there where the kernel has its hook.
    required: bool,
}

const fn part(program: &'static str, hook: Hook<'static>) -> Part {
    Part {
        program,
        hook,
        required: true,
    }
}

const fn if_there(program: &'static str, hook: Hook<'static>) -> Part {
    Part {
        program,
        hook,
        required: false,
    }
}

const fn exit_of(function: &'static str) -> Part {
    part(function, Hook::FunctionExit(function))
}

const fn exit_if_there(function: &'static str) -> Part {
    if_there(function, Hook::FunctionExit(function))
}

const TP_BTF: &[Part] = &[
    part("sock_send_length", Hook::BtfTracepoint("sock_send_length")),
    part("sock_recv_length", Hook::BtfTracepoint("sock_recv_length")),
];

/// A machine may have no IPv6, or no Unix sockets; `sendpage` went with Linux 6.5.
const FEXIT: &[Part] = &[
    exit_if_there("inet_sendpage"),
    exit_if_there("inet6_sendmsg"),
    exit_if_there("unix_stream_sendmsg"),
    exit_of("inet_sendmsg"),
    exit_if_there("inet6_recvmsg"),
    exit_if_there("unix_stream_recvmsg"),
    exit_of("inet_recvmsg"),
];

const KPROBE: &[Part] = &[
    part("send_return", Hook::Function("inet_sendmsg")),
    if_there("send_return", Hook::Function("inet6_sendmsg")),
    if_there("send_return", Hook::Function("unix_stream_sendmsg")),
    if_there("send_return", Hook::Function("inet_sendpage")),
    part("send_entry", Hook::Function("inet_sendmsg")),
    if_there("send_entry", Hook::Function("inet6_sendmsg")),
    if_there("send_entry", Hook::Function("unix_stream_sendmsg")),
    if_there("send_entry", Hook::Function("inet_sendpage")),
    part("receive_return", Hook::Function("inet_recvmsg")),
    if_there("receive_return", Hook::Function("inet6_recvmsg")),
    if_there("receive_return", Hook::Function("unix_stream_recvmsg")),
    part("receive_entry", Hook::Function("inet_recvmsg")),
    if_there("receive_entry", Hook::Function("inet6_recvmsg")),
    if_there("receive_entry", Hook::Function("unix_stream_recvmsg")),
];

const RAW_TP: &[Part] = &[part("sys_exit", Hook::RawTracepoint("sys_exit"))];

/// A tier's parts. What begins requests comes last: the others are then there to end them.
const fn parts(tier: Tier) -> &'static [Part] {
    match tier {
        Tier::TpBtf => TP_BTF,
        Tier::Fexit => FEXIT,
        Tier::Kprobe => KPROBE,
        Tier::RawTp => RAW_TP,
        // Beside the tiers: for what they see as ciphertext, and for no requests.
        Tier::Uprobe | Tier::PerfEvent => &[],
    }
}

/// The program that stands for the tier where one must.
pub(super) fn first_program(tier: Tier) -> &'static str {
    parts(tier).first().map_or(DESTROY, |part| part.program)
}

/// Attaches the tier's programs, or none. True if the end of a TCP socket is seen; without,
/// requests cut off by a close end by the idle time-out.
pub(super) fn attach(loader: &mut Loader, tier: Tier) -> Result<bool, ProbeError> {
    let sees_ends = loader.attach_btf_tracepoint(DESTROY, DESTROY).is_ok();
    // Without it, a client's leaving is known where the server reads or writes; the loader keeps
    // the verdict.
    let _ = loader.attach_btf_tracepoint(STATE, STATE);
    for part in parts(tier) {
        let attached = if part.required {
            loader.attach(part.program, part.hook)
        } else {
            // One that is refused is told by its verdict; the others see the rest.
            let _ = loader.attach_if_there(part.program, part.hook);
            Ok(())
        };
        if let Err(error) = attached {
            detach(loader, tier);
            return Err(error);
        }
    }
    Ok(sees_ends)
}

/// Takes the tier's programs off their hooks, ready to be put back; they count as not asked for.
pub(super) fn release(loader: &mut Loader, tier: Tier) {
    for part in parts(tier).iter().rev() {
        loader.release(part.program);
    }
    loader.release(STATE);
    loader.release(DESTROY);
}

/// Detaches and unloads the tier's programs; they count as not asked for.
pub(super) fn detach(loader: &mut Loader, tier: Tier) {
    for part in parts(tier).iter().rev() {
        loader.detach(part.program);
    }
    loader.detach(STATE);
    loader.detach(DESTROY);
}
