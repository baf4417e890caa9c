//! System calls by class, and how long they took: which class a call belongs to, on x86-64 and
//! on arm64, and the layout of the counters.
//!
//! Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` of
//! the kernel; its calls since 5.1 have one number on both.

pub mod arm64;
mod durations;
pub mod x86_64;

pub use durations::{BUCKETS, FIRST_BOUND_BITS, TIME_WORDS, bucket_of};

/// What a system call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Whatever is in no other class, and every call of a 32-bit process.
    Other,
    /// Reads from any descriptor.
    Read,
    /// Writes to any descriptor, and copies between two.
    Write,
    /// Waits for readiness: poll, select, epoll.
    Poll,
    /// Waits for and wakes other threads.
    Futex,
    /// Device control, other than a GPU's where that can be told.
    Ioctl,
    /// Address space.
    Memory,
    /// Processes, threads, their scheduling and limits.
    Process,
    /// Socket calls, their reads and writes included.
    Network,
    /// Files and folders: open, close, names, attributes.
    File,
    /// Clocks, timers, sleep.
    Time,
    /// Signals.
    Signal,
    /// Batched and asynchronous input and output.
    AsyncIo,
    /// Device control of the GPU's driver.
    GpuIoctl,
}

impl Class {
    /// All of them; a class's place is its index.
    pub const ALL: [Self; 14] = [
        Self::Other,
        Self::Read,
        Self::Write,
        Self::Poll,
        Self::Futex,
        Self::Ioctl,
        Self::Memory,
        Self::Process,
        Self::Network,
        Self::File,
        Self::Time,
        Self::Signal,
        Self::AsyncIo,
        Self::GpuIoctl,
    ];

    /// Its label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Read => "read",
            Self::Write => "write",
            Self::Poll => "poll",
            Self::Futex => "futex",
            Self::Ioctl => "ioctl",
            Self::Memory => "memory",
            Self::Process => "process",
            Self::Network => "network",
            Self::File => "file",
            Self::Time => "time",
            Self::Signal => "signal",
            Self::AsyncIo => "async_io",
            Self::GpuIoctl => "gpu_ioctl",
        }
    }
}

/// Cells of one service's counters; a power of two, so that a masked index stays inside.
pub const CLASS_CELLS: usize = 16;

/// Rows of the counters, one a counted service; row 0 is nobody's, and its first cell counts
/// calls whose start was overwritten by another thread's. A power of two.
pub const ROWS: usize = 32;

/// Cells of one CPU's counters.
pub const CELLS: usize = ROWS * CLASS_CELLS;

/// One CPU's counters: row by row, calls by class.
pub type CpuCounts = [u64; CELLS];

/// One CPU's times: for each cell, nanoseconds and counts by duration.
pub type CpuTimes = [u64; CELLS * TIME_WORDS];

/// Threads whose running call has a place for its start; a power of two. Threads whose ids are
/// equal modulo this share one: who comes later has it.
pub const STARTS: u32 = 16_384;

/// The start of a thread's running call.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Start {
    /// From [`Start::mark`]; 0 where no call runs.
    pub mark: u64,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
}

impl Start {
    /// Thread, class, row, and the low bits of the time: two threads that write one place at a
    /// time leave a mark that does not fit the time beside it.
    #[inline(always)]
    pub const fn mark(thread: u32, class: u8, row: u8, at: u64) -> u64 {
        thread as u64 | (class as u64) << 32 | (row as u64) << 40 | (at & 0xffff) << 48
    }

    /// The thread of a mark.
    #[inline(always)]
    pub const fn thread(mark: u64) -> u32 {
        mark as u32
    }

    /// Its cell in the counters, without regard to their length.
    #[inline(always)]
    pub const fn cell(mark: u64) -> u64 {
        (mark >> 40 & 0xff) * CLASS_CELLS as u64 + (mark >> 32 & 0xff)
    }

    /// Whether the mark was written with this time.
    #[inline(always)]
    pub const fn fits(mark: u64, at: u64) -> bool {
        mark >> 48 == at & 0xffff
    }
}

/// Entries of an architecture's table of classes; a power of two above every number in use.
pub const NUMBERS: usize = 512;

type Groups = [(Class, &'static [(u16, u16)]); 12];

const fn classes(groups: Groups) -> [u8; NUMBERS] {
    let mut classes = [Class::Other as u8; NUMBERS];
    let mut group = 0;
    while group < groups.len() {
        let (class, ranges) = groups[group];
        let mut range = 0;
        while range < ranges.len() {
            let (mut number, last) = ranges[range];
            while number <= last {
                assert!(
                    classes[number as usize] == Class::Other as u8,
                    "a call is in two classes"
                );
                classes[number as usize] = class as u8;
                number += 1;
            }
            range += 1;
        }
        group += 1;
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(number: u64) -> u8 {
        x86_64::CLASSES
            .get(number as usize)
            .copied()
            .unwrap_or(Class::Other as u8)
    }

    #[test]
    fn a_classes_place_is_its_index_and_fits_the_cells() {
        for (index, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
        assert!(Class::ALL.len() <= CLASS_CELLS);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn calls_are_in_the_class_of_what_they_do() {
        let expected: &[(i64, Class)] = &[
            (libc::SYS_read, Class::Read),
            (libc::SYS_preadv2, Class::Read),
            (libc::SYS_readahead, Class::Read),
            (libc::SYS_writev, Class::Write),
            (libc::SYS_sendfile, Class::Write),
            (libc::SYS_splice, Class::Write),
            (libc::SYS_vmsplice, Class::Write),
            (libc::SYS_copy_file_range, Class::Write),
            (libc::SYS_poll, Class::Poll),
            (libc::SYS_epoll_wait, Class::Poll),
            (libc::SYS_epoll_ctl, Class::Poll),
            (libc::SYS_epoll_pwait2, Class::Poll),
            (libc::SYS_eventfd2, Class::Poll),
            (libc::SYS_futex, Class::Futex),
            (libc::SYS_futex_waitv, Class::Futex),
            (libc::SYS_membarrier, Class::Futex),
            (libc::SYS_ioctl, Class::Ioctl),
            (libc::SYS_mmap, Class::Memory),
            (libc::SYS_brk, Class::Memory),
            (libc::SYS_madvise, Class::Memory),
            (libc::SYS_shmdt, Class::Memory),
            (libc::SYS_memfd_create, Class::Memory),
            (libc::SYS_mbind, Class::Memory),
            (libc::SYS_sched_yield, Class::Process),
            (libc::SYS_clone3, Class::Process),
            (libc::SYS_wait4, Class::Process),
            (libc::SYS_getppid, Class::Process),
            (libc::SYS_prctl, Class::Process),
            (libc::SYS_gettid, Class::Process),
            (libc::SYS_sched_setaffinity, Class::Process),
            (libc::SYS_execveat, Class::Process),
            (libc::SYS_socket, Class::Network),
            (libc::SYS_recvmsg, Class::Network),
            (libc::SYS_getsockopt, Class::Network),
            (libc::SYS_accept4, Class::Network),
            (libc::SYS_sendmmsg, Class::Network),
            (libc::SYS_open, Class::File),
            (libc::SYS_close, Class::File),
            (libc::SYS_openat2, Class::File),
            (libc::SYS_statx, Class::File),
            (libc::SYS_fsync, Class::File),
            (libc::SYS_pipe2, Class::File),
            (libc::SYS_faccessat, Class::File),
            (libc::SYS_inotify_add_watch, Class::File),
            (libc::SYS_fallocate, Class::File),
            (libc::SYS_nanosleep, Class::Time),
            (libc::SYS_clock_gettime, Class::Time),
            (libc::SYS_timerfd_settime, Class::Time),
            (libc::SYS_gettimeofday, Class::Time),
            (libc::SYS_rt_sigprocmask, Class::Signal),
            (libc::SYS_kill, Class::Signal),
            (libc::SYS_tgkill, Class::Signal),
            (libc::SYS_signalfd4, Class::Signal),
            (libc::SYS_io_uring_enter, Class::AsyncIo),
            (libc::SYS_io_submit, Class::AsyncIo),
            (libc::SYS_getrandom, Class::Other),
            (libc::SYS_uname, Class::Other),
            (libc::SYS_bpf, Class::Other),
            (libc::SYS_msgget, Class::Other),
        ];
        for (number, class) in expected {
            assert_eq!(class_of(*number as u64), *class as u8, "call {number}");
        }
    }

    #[test]
    fn arm64s_calls_are_in_the_class_of_what_they_do() {
        let expected = [
            (63, Class::Read),
            (65, Class::Read),
            (64, Class::Write),
            (71, Class::Write),
            (72, Class::Poll),
            (22, Class::Poll),
            (98, Class::Futex),
            (29, Class::Ioctl),
            (222, Class::Memory),
            (214, Class::Memory),
            (124, Class::Process),
            (94, Class::Process),
            (220, Class::Process),
            (203, Class::Network),
            (211, Class::Network),
            (56, Class::File),
            (57, Class::File),
            (80, Class::File),
            (101, Class::Time),
            (115, Class::Time),
            (134, Class::Signal),
            (129, Class::Signal),
            (426, Class::AsyncIo),
            (2, Class::AsyncIo),
            (278, Class::Other),
            (160, Class::Other),
        ];
        for (number, class) in expected {
            assert_eq!(arm64::CLASSES[number], class as u8, "call {number}");
        }
    }

    #[test]
    fn calls_since_5_1_have_one_class_on_both() {
        assert_eq!(arm64::CLASSES[424..], x86_64::CLASSES[424..]);
    }

    #[test]
    fn a_starts_mark_tells_whose_it_is_and_whether_the_time_beside_it_is_its_own() {
        let at = 0x1234_5678_9abc;
        let mark = Start::mark(4_194_303, Class::GpuIoctl as u8, 31, at);
        assert_eq!(Start::thread(mark), 4_194_303);
        assert_eq!(Start::cell(mark), 31 * 16 + Class::GpuIoctl as u64);
        assert!(Start::fits(mark, at) && !Start::fits(mark, at + 1));
    }

    #[test]
    fn a_number_no_kernel_has_is_other() {
        // 1 << 30 marks the x32 calls.
        for number in [500, 512, 1 << 30, u64::MAX] {
            assert_eq!(class_of(number), Class::Other as u8);
        }
    }
}
