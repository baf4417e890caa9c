//! What each program costs: it counts its runs and times one in 1,024 of them itself.

/// Every program of the object, in the order of its cost counters. The variants are the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the variants are the programs' own names")]
pub enum Program {
    SchedSwitch,
    SchedProcessFork,
    SysEnter,
    SockRecvLength,
    SockSendLength,
    TcpDestroySock,
    InetSockSetState,
    SslRead,
    SslReadReturn,
    SslWrite,
    SslFree,
    InetRecvmsg,
    Inet6Recvmsg,
    UnixStreamRecvmsg,
    InetSendmsg,
    Inet6Sendmsg,
    UnixStreamSendmsg,
    InetSendpage,
    ReceiveEntry,
    ReceiveReturn,
    SendEntry,
    SendReturn,
    SysExit,
    IoUringReceived,
    IoUringSent,
    SyscallExit,
    PageFaultMinor,
    PageFaultMajor,
    NamedEvent0,
    NamedEvent1,
    NamedEvent2,
    NamedEvent3,
    NamedEvent4,
    NamedEvent5,
    NamedEvent6,
    NamedEvent7,
    CudaLaunch,
    CudaSync,
    CudaSyncReturn,
    StackSample,
    SchedWakeup,
    SchedWakeupNew,
}

impl Program {
    /// All of them; a program's place is its index.
    pub const ALL: [Self; 42] = [
        Self::SchedSwitch,
        Self::SchedProcessFork,
        Self::SysEnter,
        Self::SockRecvLength,
        Self::SockSendLength,
        Self::TcpDestroySock,
        Self::InetSockSetState,
        Self::SslRead,
        Self::SslReadReturn,
        Self::SslWrite,
        Self::SslFree,
        Self::InetRecvmsg,
        Self::Inet6Recvmsg,
        Self::UnixStreamRecvmsg,
        Self::InetSendmsg,
        Self::Inet6Sendmsg,
        Self::UnixStreamSendmsg,
        Self::InetSendpage,
        Self::ReceiveEntry,
        Self::ReceiveReturn,
        Self::SendEntry,
        Self::SendReturn,
        Self::SysExit,
        Self::IoUringReceived,
        Self::IoUringSent,
        Self::SyscallExit,
        Self::PageFaultMinor,
        Self::PageFaultMajor,
        Self::NamedEvent0,
        Self::NamedEvent1,
        Self::NamedEvent2,
        Self::NamedEvent3,
        Self::NamedEvent4,
        Self::NamedEvent5,
        Self::NamedEvent6,
        Self::NamedEvent7,
        Self::CudaLaunch,
        Self::CudaSync,
        Self::CudaSyncReturn,
        Self::StackSample,
        Self::SchedWakeup,
        Self::SchedWakeupNew,
    ];

    /// The program's name in the object, and its label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SchedSwitch => "sched_switch",
            Self::SchedProcessFork => "sched_process_fork",
            Self::SysEnter => "sys_enter",
            Self::SockRecvLength => "sock_recv_length",
            Self::SockSendLength => "sock_send_length",
            Self::TcpDestroySock => "tcp_destroy_sock",
            Self::InetSockSetState => "inet_sock_set_state",
            Self::SslRead => "ssl_read",
            Self::SslReadReturn => "ssl_read_return",
            Self::SslWrite => "ssl_write",
            Self::SslFree => "ssl_free",
            Self::InetRecvmsg => "inet_recvmsg",
            Self::Inet6Recvmsg => "inet6_recvmsg",
            Self::UnixStreamRecvmsg => "unix_stream_recvmsg",
            Self::InetSendmsg => "inet_sendmsg",
            Self::Inet6Sendmsg => "inet6_sendmsg",
            Self::UnixStreamSendmsg => "unix_stream_sendmsg",
            Self::InetSendpage => "inet_sendpage",
            Self::ReceiveEntry => "receive_entry",
            Self::ReceiveReturn => "receive_return",
            Self::SendEntry => "send_entry",
            Self::SendReturn => "send_return",
            Self::SysExit => "sys_exit",
            Self::IoUringReceived => "io_uring_received",
            Self::IoUringSent => "io_uring_sent",
            Self::SyscallExit => "syscall_exit",
            Self::PageFaultMinor => "page_fault_minor",
            Self::PageFaultMajor => "page_fault_major",
            Self::NamedEvent0 => "named_event_0",
            Self::NamedEvent1 => "named_event_1",
            Self::NamedEvent2 => "named_event_2",
            Self::NamedEvent3 => "named_event_3",
            Self::NamedEvent4 => "named_event_4",
            Self::NamedEvent5 => "named_event_5",
            Self::NamedEvent6 => "named_event_6",
            Self::NamedEvent7 => "named_event_7",
            Self::CudaLaunch => "cuda_launch",
            Self::CudaSync => "cuda_sync",
            Self::CudaSyncReturn => "cuda_sync_return",
            Self::StackSample => "stack_sample",
            Self::SchedWakeup => "sched_wakeup",
            Self::SchedWakeupNew => "sched_wakeup_new",
        }
    }
}

/// Cells of a CPU's cost counters: room for programs to come, in whole cache lines.
pub const CELLS: usize = 64;

const _: () = assert!(Program::ALL.len() <= CELLS);

/// Words (8 bytes) of a [`Cost`].
pub const COST_WORDS: usize = size_of::<Cost>() / 8;

/// One CPU's cost counters, by program.
pub type CpuCosts = [Cost; CELLS];

/// One run in this many is timed; a power of two.
pub const SAMPLE_EVERY: u64 = 1_024;

/// One program's cost on one CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cost {
    /// Runs.
    pub runs: u64,
    /// Runs that were timed.
    pub timed: u64,
    /// Nanoseconds the timed runs took together.
    pub timed_ns: u64,
}

impl Cost {
    /// This and `other` together.
    pub const fn plus(self, other: Self) -> Self {
        Self {
            runs: self.runs.wrapping_add(other.runs),
            timed: self.timed.wrapping_add(other.timed),
            timed_ns: self.timed_ns.wrapping_add(other.timed_ns),
        }
    }

    /// Estimated seconds of all runs; `None` before one was timed.
    pub fn seconds(self) -> Option<f64> {
        (self.timed > 0)
            .then(|| self.runs as f64 * (self.timed_ns as f64 / self.timed as f64) * 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_place_is_its_index() {
        for (index, program) in Program::ALL.into_iter().enumerate() {
            assert_eq!(program as usize, index);
        }
    }

    #[test]
    fn seconds_are_extrapolated_from_the_timed_runs() {
        let cost = Cost {
            runs: 2_048,
            timed: 2,
            timed_ns: 200,
        };
        let seconds = cost.seconds().unwrap();
        assert!((seconds - 204.8e-6).abs() < 1e-12, "{seconds}");
    }

    #[test]
    fn a_program_that_was_never_timed_has_no_known_cost() {
        assert_eq!(Cost::default().seconds(), None);
    }
}
