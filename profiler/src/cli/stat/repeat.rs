//! The repeats of `stat -r N`: each is a process of its own, for an agent that runs has given up the rights that
//! the next one starts with.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context as _, Result, bail};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use crate::cli::logging;
use crate::report::Report;

/// The process that measures now.
static MEASURES: AtomicI32 = AtomicI32::new(0);
/// Somebody asked for the end.
static ENDS: AtomicBool = AtomicBool::new(false);

/// One run's figures, and what to exit with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) report: Report,
    pub(super) code: u8,
}

/// Measures several times, one after the other. At SIGINT and SIGTERM the run that is under way ends as it does alone, and
/// none follows; its figures count where there are no others.
pub(super) fn repeat(repeats: u32, measure: impl Fn() -> Result<Run>) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for _ in 0..repeats {
        let run = in_a_process(&measure)?;
        let ends = ENDS.load(Ordering::Relaxed);
        if !ends || runs.is_empty() {
            runs.push(run);
        }
        if ends {
            break;
        }
    }
    Ok(runs)
}

fn in_a_process(measure: impl Fn() -> Result<Run>) -> Result<Run> {
    let (result, tell) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    // SAFETY: this process has one thread, so that the child finds no lock held and nothing half done.
    let child = match unsafe { libc::fork() } {
        -1 => {
            return Err(io::Error::last_os_error()).context("cannot start a process to measure in");
        }
        0 => {
            follow_signals(libc::SIG_DFL);
            drop(result);
            let told = tell_result(tell, measure);
            if let Err(error) = &told {
                logging::fail(error);
            }
            // SAFETY: it ends this process at once; the parent's exit handlers are not the child's to run.
            unsafe { libc::_exit(i32::from(told.is_err())) }
        }
        child => child,
    };
    drop(tell);
    MEASURES.store(child, Ordering::Relaxed);
    follow_signals(pass_on as *const () as libc::sighandler_t);
    let mut text = Vec::new();
    let read = File::from(result).read_to_end(&mut text);
    MEASURES.store(0, Ordering::Relaxed);
    let mut status = 0;
    // SAFETY: `status` is valid to write; the child is this process's own, and nobody else waits for it.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    read.context("the result of a run")?;
    if text.is_empty() {
        bail!("a run gave no result, and said why above; nothing is told of the others");
    }
    serde_json::from_slice(&text).context("the result of a run")
}

fn tell_result(tell: OwnedFd, measure: impl Fn() -> Result<Run>) -> Result<()> {
    let measured = measure()?;
    let text = serde_json::to_vec(&measured)?;
    Ok(File::from(tell).write_all(&text)?)
}

fn follow_signals(with: libc::sighandler_t) {
    for number in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler is the default, or one that only stores a flag and makes a system call.
        unsafe { libc::signal(number, with) };
    }
}

/// A signal to this process is one to that which measures.
extern "C" fn pass_on(number: libc::c_int) {
    ENDS.store(true, Ordering::Relaxed);
    let child = MEASURES.load(Ordering::Relaxed);
    if child > 0 {
        // SAFETY: no memory is passed; the child has not been waited for, so the id is its own.
        unsafe { libc::kill(child, number) };
    }
}
