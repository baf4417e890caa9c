//! Counters of the kernel's perf events: for all that runs on one CPU, or for one thread and what it
//! makes.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

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
/// Threads and processes that a counted thread makes are counted with it, and so are theirs.
const INHERIT: u64 = 1 << 1;
/// `PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING | PERF_FORMAT_GROUP`
const TIMES_AND_GROUP: u64 = 1 | 2 | 8;
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
/// Instructions retired (`PERF_COUNT_HW_INSTRUCTIONS`).
pub const INSTRUCTIONS: Counted = Counted { kind: 0, config: 1 };
/// Cache misses (`PERF_COUNT_HW_CACHE_MISSES`): of the last level on Intel and most others.
pub const CACHE_MISSES: Counted = Counted { kind: 0, config: 3 };
/// Nanoseconds on CPU (`PERF_COUNT_SW_TASK_CLOCK`), on every machine.
pub const TASK_CLOCK: Counted = Counted { kind: 1, config: 1 };
/// Page faults (`PERF_COUNT_SW_PAGE_FAULTS`), on every machine.
pub const PAGE_FAULTS: Counted = Counted { kind: 1, config: 2 };
/// Context switches (`PERF_COUNT_SW_CONTEXT_SWITCHES`), on every machine.
pub const CONTEXT_SWITCHES: Counted = Counted { kind: 1, config: 3 };
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
    call(&attributes, -1, cpu as libc::c_int, -1)
}

/// Counters of one thread and of all that it makes from now on, on any CPU. They count together or
/// not at all.
#[derive(Debug)]
pub struct Group {
    leader: File,
    /// Closed, they would count no more.
    _others: Vec<OwnedFd>,
}

/// What a group has counted since it was opened, by all its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// Nanoseconds for which its threads ran.
    pub enabled: u64,
    /// Nanoseconds of these for which the hardware counted: it may take turns with other groups.
    pub running: u64,
    /// In the order in which they were asked for.
    pub counts: [u64; Group::MOST],
}

impl Group {
    /// Counters that a group can have.
    pub const MOST: usize = 3;

    /// Opens and starts counters of `thread`; 0 is the calling one.
    ///
    /// # Errors
    /// The kernel's: `ENOENT` where the machine has no such counter, `ESRCH` where there is no such
    /// thread any more. `InvalidInput` for none or too many.
    pub fn open(counted: &[Counted], thread: u32) -> io::Result<Self> {
        let thread = libc::pid_t::try_from(thread).map_err(io::Error::other)?;
        let open = |counted: &Counted, group| {
            let attributes = Attributes {
                kind: counted.kind,
                size: size_of::<Attributes>() as u32,
                config: counted.config,
                read_format: TIMES_AND_GROUP,
                flags: INHERIT,
                ..Attributes::default()
            };
            call(&attributes, thread, -1, group)
        };
        let Some((first, rest)) = counted.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if counted.len() > Self::MOST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let leader = File::from(open(first, -1)?);
        let others = rest.iter().map(|counted| open(counted, leader.as_raw_fd()));
        Ok(Self {
            _others: others.collect::<io::Result<_>>()?,
            leader,
        })
    }

    /// Reads them.
    ///
    /// # Errors
    /// The kernel's; `ECHILD` while a thread is being made, and then the next read tells all.
    pub fn read(&self) -> io::Result<GroupCounts> {
        // How many there are, the two times, and the counts.
        let mut words = [[0u8; 8]; 3 + Self::MOST];
        let whole = size_of::<[u64; 3]>();
        if (&self.leader).read(words.as_flattened_mut())? < whole {
            // What a group says that could not be put on the hardware for good.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let [_, enabled, running, counts @ ..] = words.map(u64::from_ne_bytes);
        Ok(GroupCounts {
            enabled,
            running,
            counts,
        })
    }
}

/// `perf_event_open(2)`: `thread` and `cpu` are -1 for any, `group` for none.
fn call(
    attributes: &Attributes,
    thread: libc::pid_t,
    cpu: libc::c_int,
    group: libc::c_int,
) -> io::Result<OwnedFd> {
    // SAFETY: the call reads `size` bytes of `attributes`, which lives until it returns, and
    // takes numbers beside it.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const *attributes,
            thread,
            cpu,
            group,
            CLOSE_ON_EXEC,
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) })
}
