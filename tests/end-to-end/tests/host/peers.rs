//! The tools that figures are held against, beside the same process.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::{scaled, skipped};
use profiler_ebpf::syscalls::{Class, NUMBERS};

#[cfg(target_arch = "aarch64")]
use profiler_ebpf::syscalls::arm64::CLASSES;
#[cfg(not(target_arch = "aarch64"))]
use profiler_ebpf::syscalls::x86_64::CLASSES;

const PATIENCE: Duration = Duration::from_secs(10);

/// perf wants tracefs. It gets one in a mount namespace of its own.
const WITH_TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing; exec perf \"$@\"";

/// A tool that follows one process until that ends.
#[derive(Debug)]
pub(crate) struct Follower {
    child: Child,
    output: PathBuf,
    _folder: tempfile::TempDir,
}

impl Follower {
    /// `strace -c`; `None` if there is none.
    pub(crate) fn strace(pid: u32, test: &str) -> Option<Self> {
        let follower = Self::start("strace", test, |output| {
            let mut command = Command::new("strace");
            command
                .args(["-c", "-f", "-p", &pid.to_string(), "-o"])
                .arg(output);
            command
        })?;
        let tracer = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
            status.contains("TracerPid:\t") && !status.contains("TracerPid:\t0\n")
        };
        wait("strace attaches", tracer);
        // The read it interrupted begins again.
        sleep(scaled(Duration::from_millis(200)));
        Some(follower)
    }

    /// `perf stat` of one event; `None` if there is no perf.
    pub(crate) fn perf_stat(event: &str, pid: u32, test: &str) -> Option<Self> {
        let follower = Self::start("perf", test, |output| {
            let mut command = Command::new("unshare");
            command
                .args([
                    "--mount",
                    "sh",
                    "-c",
                    WITH_TRACEFS,
                    "sh",
                    "stat",
                    "-x",
                    ",",
                    "-e",
                    event,
                ])
                .args(["-p", &pid.to_string(), "-o"])
                .arg(output);
            command
        })?;
        // perf says nothing once it counts; what it opened does.
        let events = || {
            let id = follower.child.id();
            let links = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten();
            links
                .flatten()
                .filter_map(|entry| fs::read_link(entry.path()).ok())
                .any(|link| link.to_string_lossy().contains("[perf_event]"))
        };
        wait("perf counts", events);
        sleep(scaled(Duration::from_millis(200)));
        Some(follower)
    }

    fn start(tool: &str, test: &str, command: impl FnOnce(&PathBuf) -> Command) -> Option<Self> {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .stdout(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            skipped(&format!("{test}: no {tool} here"));
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let output = folder.path().join("output");
        let child = command(&output)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        Some(Self {
            child,
            output,
            _folder: folder,
        })
    }

    fn output(mut self) -> String {
        // Its exit code may be the process's.
        let _ = self.child.wait().expect("it ends with the process");
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// `strace`'s calls by class.
    pub(crate) fn calls_by_class(self) -> BTreeMap<Class, u64> {
        let output = self.output();
        let mut by_class = BTreeMap::new();
        for line in output.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(calls), Some(name)) = (fields.get(3), fields.last()) else {
                continue;
            };
            let (Ok(calls), false) = (calls.parse::<u64>(), *name == "total") else {
                continue;
            };
            *by_class.entry(class_of(name)).or_default() += calls;
        }
        assert!(!by_class.is_empty(), "no call in {output}");
        by_class
    }

    /// `perf stat`'s count; `None` where it cannot count here.
    pub(crate) fn count(self, test: &str) -> Option<u64> {
        let output = self.output();
        let count = output
            .lines()
            .find_map(|line| line.split(',').next()?.parse().ok());
        if count.is_none() {
            skipped(&format!("{test}: perf does not count here: {output:?}"));
        }
        count
    }
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < scaled(PATIENCE), "{what}: not in time");
        sleep(Duration::from_millis(5));
    }
}

/// The class of a call that the tests' program makes, by its name.
fn class_of(name: &str) -> Class {
    macro_rules! numbers {
        ($($call:ident $number:ident)*) => {
            match name {
                $(stringify!($call) => libc::$number,)*
                _ => panic!("the program makes no call {name}"),
            }
        };
    }
    let number = numbers! {
        read SYS_read write SYS_write lseek SYS_lseek getpid SYS_getpid getppid SYS_getppid ppoll SYS_ppoll
        clock_nanosleep SYS_clock_nanosleep ioctl SYS_ioctl mmap SYS_mmap munmap SYS_munmap
        futex SYS_futex kill SYS_kill getrandom SYS_getrandom exit_group SYS_exit_group
        exit SYS_exit restart_syscall SYS_restart_syscall
    };
    let number = usize::try_from(number).expect("a number");
    assert!(number < NUMBERS);
    let class = CLASSES[number];
    *Class::ALL.get(class as usize).expect("a class")
}
