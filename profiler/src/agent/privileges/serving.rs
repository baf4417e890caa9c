//! What the threads that answer HTTP may do: take connections, read and write sockets, use memory, wait,
//! and start threads of their kind. Whoever takes one over through a request opens no file, runs no
//! program, makes no connection and reaches no BPF map.
//!
//! The list is what strace saw of them while every format was scraped, with what the C library does
//! instead on other machines (`epoll_pwait` for `epoll_wait`). It asks two files how many CPUs there are,
//! is refused, and asks the scheduler. Anything else fails with `EPERM`: a
//! library's new call on a new kernel is then an error in the log, not the end of the agent.

use std::collections::BTreeMap;
use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Allowed, whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Connections.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_fcntl,
    // Waiting.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_getrandom,
    // Threads of this kind, and the end of them.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Which files they may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// None.
    Closed,
    /// What the agent's user may read, to read it: certificates are read again when they change.
    Readable,
}

/// What looking at a file and reading it takes, beside opening it.
const READING: &[libc::c_long] = &[
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_statx,
];

/// From here on the calling thread, and what it starts, has no capability and few system calls.
///
/// # Errors
/// The kernel has no seccomp filters, or does not let them be set here.
pub fn confine(files: Files) -> io::Result<()> {
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )?;
    let program = filter(files).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

fn filter(files: Files) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // No memory that was written can be run, and no other setting of the process be changed than a
    // thread's name.
    let not_executable = || {
        let executable = libc::PROT_EXEC as u64;
        condition(2, SeccompCmpOp::MaskedEq(executable), 0)
    };
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    let name = condition(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?;
    rules.insert(libc::SYS_prctl, vec![name]);
    if files == Files::Readable {
        rules.extend(READING.iter().map(|call| (*call, Vec::new())));
        let writing = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
        let read_only = SeccompCmpOp::MaskedEq(writing as u64);
        rules.insert(libc::SYS_openat, vec![condition(2, read_only, 0)?]);
    }
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(
        rules,
        refused,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn a_confined_thread_answers_and_opens_no_file_runs_no_program_and_connects_nowhere() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            confine(Files::Closed).unwrap();
            // A thread that it starts is of its kind.
            let inner = thread::spawn(|| File::open("/etc/hostname").map(|_| ()));
            let file = inner.join().unwrap();
            let program = Command::new("/bin/true").status().map(|_| ());
            let connection = TcpStream::connect(address).map(|_| ());
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(b"served").unwrap();
            [file, program, connection]
        });
        let mut text = String::new();
        let mut client = TcpStream::connect(address).unwrap();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "served");
        for refused in serving.join().unwrap() {
            let error = refused.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        }
        assert!(File::open("/proc/self/stat").is_ok(), "others are free");
    }

    #[test]
    fn one_that_reads_certificates_reads_and_writes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        fs::write(&path, "certificate").unwrap();
        let serving = thread::spawn(move || {
            confine(Files::Readable).unwrap();
            let read = fs::read_to_string(&path);
            let refused = [
                fs::write(&path, ""),
                fs::remove_file(&path),
                fs::write(path.with_extension("new"), ""),
            ];
            (read, refused)
        });
        let (read, refused) = serving.join().unwrap();
        assert_eq!(read.unwrap(), "certificate");
        for refused in refused {
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
        }
    }
}
