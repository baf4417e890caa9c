//! A command that is run while something is measured: as its user would run it, with all the rights that the agent gives up.

use std::fs;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::agent::privileges::COMMAND_THREAD;

/// So long a command may take to end once it was asked to.
const PATIENCE: Duration = Duration::from_secs(1);

/// A thread from before the agent, which starts a command with the rights of then, and ends.
#[derive(Debug)]
pub(super) struct Launcher {
    go: Sender<()>,
    started: Receiver<Result<Child>>,
}

impl Launcher {
    /// To be called inside the runtime that will wait for the command.
    pub(super) fn new(command: &[String]) -> Result<Self> {
        let mut command = prepare(command)?;
        let (go, told) = mpsc::channel();
        let (sender, started) = mpsc::channel();
        let runtime = Handle::current();
        thread::Builder::new()
            .name(COMMAND_THREAD.into())
            .spawn(move || {
                if told.recv().is_ok() {
                    let _runtime = runtime.enter();
                    // Who does not wait for it has ended.
                    let _ = sender.send(start(&mut command));
                }
            })?;
        Ok(Self { go, started })
    }

    /// Starts the command.
    pub(super) fn launch(self) -> Result<Child> {
        // A thread that has ended shows in what it sends.
        let _ = self.go.send(());
        self.started
            .recv()
            .context("the thread that starts it died")?
    }
}

fn prepare(command: &[String]) -> Result<Command> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    Ok(command)
}

fn start(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| {
        let program = command.as_std().get_program().display();
        format!("cannot run `{program}`; is it spelt right and on PATH?")
    })
}

/// Starts a command that stands still at its first instruction. Where it may not be traced it
/// runs on, and `None` is returned.
pub(super) fn start_held(command: &[String]) -> Result<(Child, Option<Held>)> {
    let mut command = prepare(command)?;
    // SAFETY: ptrace(PTRACE_TRACEME) is one system call without arguments that are read; it is
    // allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            Ok(())
        });
    }
    let child = start(&mut command)?;
    let held = child.id().and_then(|id| Held::at_exec(id as libc::pid_t));
    Ok((child, held))
}

/// A command that this thread traces and that is stopped.
#[derive(Debug)]
pub(super) struct Held(libc::pid_t);

impl Held {
    fn at_exec(pid: libc::pid_t) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))?;
        if tracer.trim() == "0" {
            return None;
        }
        let mut status = 0;
        // SAFETY: `status` is valid to write; the child is traced, so it stops or has ended, and
        // nobody has waited for it yet.
        let stopped = unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) } == pid;
        (stopped && libc::WIFSTOPPED(status)).then_some(Self(pid))
    }

    pub(super) fn let_go(self) {
        // SAFETY: no memory is passed; on a process that is not traced by this thread it fails.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// Ends a command that still runs when the measuring is over. From a terminal it got the signal
/// too, and the settling time to follow it.
pub(super) async fn end(child: &mut Child) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    if let Some(pid) = child.id() {
        // SAFETY: no memory is passed; the child has not been waited for, so the id is its own.
        unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) };
    }
    if let Ok(status) = timeout(PATIENCE, child.wait()).await {
        return Ok(status?);
    }
    child.kill().await?;
    Ok(child.wait().await?)
}
