//! What a thread that blocks in a system call waits for, by the call's number.
//!
//! Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` of the
//! kernel, the latter for arm64.

use super::waits::Reason;

/// A read or write: what it waits for is known from its descriptor.
pub const BY_DESCRIPTOR: u8 = 0x80;

/// Entries of a table; a power of two above every number in use.
pub const NUMBERS: usize = 512;

/// The reason of each call of x86-64, or [`BY_DESCRIPTOR`].
pub static X86_64: [u8; NUMBERS] = table(&ON_X86_64);

/// The reason of each call of arm64, or [`BY_DESCRIPTOR`].
pub static AARCH64: [u8; NUMBERS] = table(&ON_AARCH64);

type Groups = [(u8, &'static [u16]); 6];

const ON_X86_64: Groups = [
    // pause is no sleep of a time: other
    (Reason::Sleep as u8, &[35, 230]),
    (
        Reason::Disk as u8,
        // msync, fsync, fdatasync, sync, io_getevents, sync_file_range, syncfs, io_pgetevents
        &[26, 74, 75, 162, 208, 277, 306, 333],
    ),
    // futex, futex_waitv, futex_wait, futex_requeue; file locks: flock
    (Reason::Futex as u8, &[202, 449, 455, 456, 73]),
    // poll, select, epoll_wait, pselect6, ppoll, epoll_pwait, epoll_pwait2, epoll_wait_old
    (Reason::Poll as u8, &[7, 23, 232, 270, 271, 281, 441, 215]),
    // connect, accept, sendto, recvfrom, sendmsg, recvmsg, accept4, recvmmsg, sendmmsg
    (
        Reason::Socket as u8,
        &[42, 43, 44, 45, 46, 47, 288, 299, 307],
    ),
    // read, write, pread64, pwrite64, readv, writev, preadv, pwritev, preadv2, pwritev2
    (BY_DESCRIPTOR, &[0, 1, 17, 18, 19, 20, 295, 296, 327, 328]),
];

const ON_AARCH64: Groups = [
    (Reason::Sleep as u8, &[101, 115]),
    // io_getevents, sync, fsync, fdatasync, sync_file_range, msync, syncfs, io_pgetevents
    (Reason::Disk as u8, &[4, 81, 82, 83, 84, 227, 267, 292]),
    // futex, futex_waitv, futex_wait, futex_requeue, flock
    (Reason::Futex as u8, &[98, 449, 455, 456, 32]),
    // epoll_pwait, pselect6, ppoll, epoll_pwait2
    (Reason::Poll as u8, &[22, 72, 73, 441]),
    // accept, connect, sendto, recvfrom, sendmsg, recvmsg, accept4, recvmmsg, sendmmsg
    (
        Reason::Socket as u8,
        &[202, 203, 206, 207, 211, 212, 242, 243, 269],
    ),
    // read, write, readv, writev, pread64, pwrite64, preadv, pwritev, preadv2, pwritev2
    (BY_DESCRIPTOR, &[63, 64, 65, 66, 67, 68, 69, 70, 286, 287]),
];

const fn table(groups: &Groups) -> [u8; NUMBERS] {
    let mut calls = [Reason::Other as u8; NUMBERS];
    let mut group = 0;
    while group < groups.len() {
        let (reason, numbers) = groups[group];
        let mut at = 0;
        while at < numbers.len() {
            assert!(
                calls[numbers[at] as usize] == Reason::Other as u8,
                "a call is in two groups"
            );
            calls[numbers[at] as usize] = reason;
            at += 1;
        }
        group += 1;
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    use super::X86_64 as CALLS;

    #[cfg(target_arch = "aarch64")]
    use super::AARCH64 as CALLS;

    #[test]
    fn a_call_waits_for_what_its_name_says() {
        let expected: &[(i64, u8)] = &[
            (libc::SYS_nanosleep, Reason::Sleep as u8),
            (libc::SYS_clock_nanosleep, Reason::Sleep as u8),
            (libc::SYS_fsync, Reason::Disk as u8),
            (libc::SYS_fdatasync, Reason::Disk as u8),
            (libc::SYS_msync, Reason::Disk as u8),
            (libc::SYS_sync, Reason::Disk as u8),
            (libc::SYS_io_getevents, Reason::Disk as u8),
            (libc::SYS_futex, Reason::Futex as u8),
            (libc::SYS_futex_waitv, Reason::Futex as u8),
            (libc::SYS_flock, Reason::Futex as u8),
            (libc::SYS_ppoll, Reason::Poll as u8),
            (libc::SYS_pselect6, Reason::Poll as u8),
            (libc::SYS_epoll_pwait, Reason::Poll as u8),
            (libc::SYS_epoll_pwait2, Reason::Poll as u8),
            (libc::SYS_accept, Reason::Socket as u8),
            (libc::SYS_accept4, Reason::Socket as u8),
            (libc::SYS_connect, Reason::Socket as u8),
            (libc::SYS_recvfrom, Reason::Socket as u8),
            (libc::SYS_sendmsg, Reason::Socket as u8),
            (libc::SYS_recvmmsg, Reason::Socket as u8),
            (libc::SYS_read, BY_DESCRIPTOR),
            (libc::SYS_writev, BY_DESCRIPTOR),
            (libc::SYS_pread64, BY_DESCRIPTOR),
            (libc::SYS_preadv2, BY_DESCRIPTOR),
            (libc::SYS_wait4, Reason::Other as u8),
            (libc::SYS_ioctl, Reason::Other as u8),
            (libc::SYS_rt_sigtimedwait, Reason::Other as u8),
        ];
        for (number, reason) in expected {
            assert_eq!(CALLS[*number as usize], *reason, "call {number}");
        }
        #[cfg(target_arch = "x86_64")]
        for (number, reason) in [
            (libc::SYS_poll, Reason::Poll),
            (libc::SYS_select, Reason::Poll),
            (libc::SYS_epoll_wait, Reason::Poll),
        ] {
            assert_eq!(CALLS[number as usize], reason as u8, "call {number}");
        }
    }
}
