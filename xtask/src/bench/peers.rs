//! The tools that the BPF programs are held against, at the same hooks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::bpf::{Program, Statistics, programs_of};
use crate::demo::stack::Process;
use crate::project::find_on_path;

const PATIENCE: Duration = Duration::from_secs(15);

/// bpftrace wants debugfs. It gets one in a mount namespace of its own, so that the machine's
/// mounts stay as they are.
const WITH_DEBUGFS: &str = "mount -t debugfs debugfs /sys/kernel/debug; \
    test -d /sys/kernel/debug/tracing/events || mount -t tracefs tracefs /sys/kernel/debug/tracing; \
    exec bpftrace -q \"$0\"";

/// A tool that attaches by tracefs gets that in a mount namespace of its own.
const WITH_TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\" \"$@\"";

/// A running peer; it detaches when dropped.
#[derive(Debug)]
pub(super) struct Peer {
    processes: Vec<Process>,
}

impl Peer {
    /// A script that does the least a request tracker must, for one process: at each of the two
    /// hooks it reads the buffer's first 16 bytes and keeps a time stamp, both keyed by socket.
    /// `None` if there is no bpftrace, or not for this machine.
    pub(super) fn sockets(process: u32, folder: &Path) -> Result<Option<Self>> {
        if !has_bpftrace() {
            return Ok(None);
        }
        // The caller's registers are at the top of its kernel stack. bpftrace 0.17 adds nothing to
        // a `void *`: the sum must be one of integers.
        let body = |bytes: &str, time: &str| {
            format!(
                "{{ $top = (uint64)((struct task_struct *)curtask)->stack + (uint64)(16384 - 168);\n  \
                 $registers = (struct pt_regs *)$top;\n  \
                 @{bytes}[args->sk] = buf(uptr($registers->si), 16); @{time}[args->sk] = nsecs; }}\n"
            )
        };
        let script = format!(
            "tracepoint:sock:sock_recv_length /pid == {process}/ {}\
             tracepoint:sock:sock_send_length /pid == {process}/ {}",
            body("head", "received"),
            body("tail", "sent"),
        );
        let file = folder.join("sockets.bt");
        fs::write(&file, script)?;
        let peer = Self {
            processes: vec![Process::start("bpftrace", &mut bpftrace(&file), folder)?],
        };
        peer.attached(2)?;
        Ok(Some(peer))
    }

    /// Run-queue latency and on-CPU time, by libbpf-tools. `None` if they are not installed.
    pub(super) fn scheduler(folder: &Path) -> Result<Option<Self>> {
        let (Some(runqlat), Some(cpudist)) = (find_on_path("runqlat"), find_on_path("cpudist"))
        else {
            return Ok(None);
        };
        let peer = Self {
            processes: vec![
                Process::start("runqlat", Command::new(runqlat).args(["600", "1"]), folder)?,
                Process::start("cpudist", Command::new(cpudist).args(["600", "1"]), folder)?,
            ],
        };
        peer.attached(4)?;
        Ok(Some(peer))
    }

    /// Counts and latencies of a process's system calls, by libbpf-tools. `None` if they are not
    /// installed.
    pub(super) fn syscalls(process: u32, folder: &Path) -> Result<Option<Self>> {
        let Some(syscount) = find_on_path("syscount") else {
            return Ok(None);
        };
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", WITH_TRACEFS])
            .arg(syscount)
            .args(["-L", "-p", &process.to_string(), "-d", "600"]);
        let peer = Self {
            processes: vec![Process::start("syscount", &mut command, folder)?],
        };
        peer.attached(2)?;
        Ok(Some(peer))
    }

    /// Time off CPU by stack, by libbpf-tools. `None` if it is not installed.
    pub(super) fn off_cpu(folder: &Path) -> Result<Option<Self>> {
        let Some(offcputime) = find_on_path("offcputime") else {
            return Ok(None);
        };
        let peer = Self {
            processes: vec![Process::start(
                "offcputime",
                Command::new(offcputime).arg("600"),
                folder,
            )?],
        };
        peer.attached(1)?;
        Ok(Some(peer))
    }

    /// Its programs.
    pub(super) fn programs(&self) -> Vec<Program> {
        self.processes
            .iter()
            .flat_map(|process| programs_of(process.id()))
            .collect()
    }

    /// Waits until so many programs have run: they are loaded first and attached later. Whatever
    /// they are attached to must happen meanwhile.
    fn attached(&self, programs: usize) -> Result<()> {
        let _statistics = Statistics::on()?;
        let start = Instant::now();
        let has_run = |program: &Program| program.total.runs > 0;
        while self.programs().iter().filter(|p| has_run(p)).count() < programs {
            if start.elapsed() > PATIENCE {
                bail!("a peer's programs do not run; see its log in target/bench");
            }
            // A new task is one of the events.
            let _ = std::thread::spawn(|| ()).join();
            sleep(Duration::from_millis(50));
        }
        // Only then is its start over.
        sleep(Duration::from_millis(200));
        Ok(())
    }
}

/// The script's way to the caller's registers is x86-64's.
fn has_bpftrace() -> bool {
    cfg!(target_arch = "x86_64") && find_on_path("bpftrace").is_some()
}

fn bpftrace(script: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", WITH_DEBUGFS])
        .arg(script);
    command
}
