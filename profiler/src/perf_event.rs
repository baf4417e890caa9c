//! Counters of the kernel's perf events, for all that runs on one CPU.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// The kernel's smallest `perf_event_attr`: nothing beyond it is asked for, and every kernel takes
/// it (`PERF_ATTR_SIZE_VER0`, include/uapi/linux/perf_event.h).
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

/// Takes no turns with other counters on the same hardware: it counts always, or not at all.
const PINNED: u64 = 1 << 2;
/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// What is counted: a PMU's number and its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// `perf_event_attr.type`.
    pub kind: u32,
    /// `perf_event_attr.config`.
    pub config: u64,
}

/// Cycles in which a CPU was not halted (`PERF_TYPE_HARDWARE`, `PERF_COUNT_HW_CPU_CYCLES`).
pub const CYCLES: Counted = Counted { kind: 0, config: 0 };
/// Nanoseconds by a timer (`PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_CPU_CLOCK`), on every machine.
pub const CPU_CLOCK: Counted = Counted { kind: 1, config: 0 };

/// `perf_event_open(2)`: opens and starts a counter of a CPU. Takes `CAP_PERFMON`, or
/// `kernel.perf_event_paranoid` of 0 at most.
///
/// # Errors
/// The kernel's, `ENOENT` where the machine has no such counter.
pub fn open(counted: Counted, cpu: u32, pinned: bool) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: counted.kind,
        size: size_of::<Attributes>() as u32,
        config: counted.config,
        flags: if pinned { PINNED } else { 0 },
        ..Attributes::default()
    };
    // SAFETY: the call reads `size` bytes of `attributes`, which lives until it returns, and
    // takes numbers beside it: any process (-1) on one CPU, no group (-1).
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            cpu as libc::c_int,
            -1,
            CLOSE_ON_EXEC,
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) })
}
