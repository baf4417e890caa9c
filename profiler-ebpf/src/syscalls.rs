//! System calls by class: which class an x86-64 system call belongs to.
//!
//! Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` of the kernel.

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
    /// Device control: with a GPU, the driver's door.
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
}

impl Class {
    /// All of them; a class's place is its index.
    pub const ALL: [Self; 13] = [
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
        }
    }
}

/// Cells of one service's counters; a power of two, so that a masked index stays inside.
pub const CLASS_CELLS: usize = 16;

/// Rows of the counters, one a counted service; row 0 is nobody's. A power of two.
pub const ROWS: usize = 32;

/// Cells of one CPU's counters.
pub const CELLS: usize = ROWS * CLASS_CELLS;

/// One CPU's counters: row by row, calls by class.
pub type CpuCounts = [u64; CELLS];

/// Entries of [`CLASSES`]; a power of two above every number in use.
pub const NUMBERS: usize = 512;

/// The class of each call by its number.
pub static CLASSES: [u8; NUMBERS] = classes();

/// The class of call `number`.
pub const fn class_of(number: u64) -> u8 {
    if number < NUMBERS as u64 {
        CLASSES[number as usize]
    } else {
        Class::Other as u8
    }
}

const fn classes() -> [u8; NUMBERS] {
    let mut classes = [Class::Other as u8; NUMBERS];
    let groups: [(Class, &[(u16, u16)]); 12] = [
        (
            Class::Read,
            &[
                (0, 0),
                (17, 17),
                (19, 19),
                (187, 187),
                (295, 295),
                (327, 327),
            ],
        ),
        (
            Class::Write,
            // 40 sendfile, 275 splice to 278 vmsplice without sync_file_range, 326 copy_file_range
            &[
                (1, 1),
                (18, 18),
                (20, 20),
                (40, 40),
                (275, 276),
                (278, 278),
                (296, 296),
                (326, 326),
                (328, 328),
            ],
        ),
        (
            Class::Poll,
            &[
                (7, 7),
                (23, 23),
                (213, 213),
                (232, 233),
                (270, 271),
                (281, 281),
                (284, 284),
                (290, 291),
                (441, 441),
            ],
        ),
        (
            Class::Futex,
            &[(202, 202), (273, 274), (324, 324), (449, 449), (454, 456)],
        ),
        (Class::Ioctl, &[(16, 16)]),
        (
            Class::Memory,
            // 29–31 and 67 shared memory, 149–152 mlock, 237–239 policy, 329–331 protection keys
            &[
                (9, 12),
                (25, 31),
                (67, 67),
                (149, 152),
                (216, 216),
                (237, 239),
                (256, 256),
                (279, 279),
                (310, 311),
                (319, 319),
                (323, 323),
                (325, 325),
                (329, 331),
                (440, 440),
                (450, 450),
                (453, 453),
                (462, 462),
            ],
        ),
        (
            Class::Process,
            &[
                (24, 24),
                (39, 39),
                (56, 61),
                (97, 98),
                (101, 102),
                (104, 126),
                (135, 136),
                (140, 148),
                (157, 158),
                (160, 160),
                (186, 186),
                (203, 205),
                (211, 211),
                (218, 218),
                (231, 231),
                (247, 247),
                (272, 272),
                (302, 302),
                (308, 309),
                (314, 315),
                (322, 322),
                (434, 435),
                (438, 438),
            ],
        ),
        (
            Class::Network,
            &[(41, 55), (288, 288), (299, 299), (307, 307)],
        ),
        (
            Class::File,
            &[
                (2, 6),
                (8, 8),
                (21, 22),
                (32, 33),
                (72, 95),
                (132, 133),
                (137, 138),
                (161, 162),
                (188, 199),
                (217, 217),
                (221, 221),
                (235, 235),
                (253, 255),
                (257, 269),
                (277, 277),
                (280, 280),
                (285, 285),
                (292, 294),
                (306, 306),
                (316, 316),
                (332, 332),
                (436, 437),
                (439, 439),
                (451, 452),
            ],
        ),
        (
            Class::Time,
            &[
                (35, 38),
                (96, 96),
                (100, 100),
                (164, 164),
                (201, 201),
                (222, 230),
                (283, 283),
                (286, 287),
                (305, 305),
            ],
        ),
        (
            Class::Signal,
            &[
                (13, 15),
                (34, 34),
                (62, 62),
                (127, 131),
                (200, 200),
                (234, 234),
                (282, 282),
                (289, 289),
                (297, 297),
                (424, 424),
            ],
        ),
        (Class::AsyncIo, &[(206, 210), (333, 333), (425, 427)]),
    ];
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
    fn a_number_no_kernel_has_is_other() {
        // 1 << 30 marks the x32 calls.
        for number in [500, 512, 1 << 30, u64::MAX] {
            assert_eq!(class_of(number), Class::Other as u8);
        }
    }
}
