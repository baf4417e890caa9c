//! The engine's process: one thread that sleeps until a message, a signal or the next step.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use gpu_state::{GpuState, Process, boottime_ns};

use super::Engine;
use super::model::EngineModel;
use crate::wire::ToEngine;

/// What an engine is started with.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where it listens for its front; a socket left there is replaced.
    pub socket: PathBuf,
    /// The state file it shares with nvml-sim.
    pub gpu_state: PathBuf,
    /// Where truth is appended.
    pub truth: PathBuf,
    /// The GPUs it runs on; every step runs on all of them.
    pub devices: Vec<usize>,
    /// Whether other engines run steps on them too.
    pub shares: bool,
    /// What it holds of each GPU's memory, bytes.
    pub memory_bytes: u64,
    /// What its steps take.
    pub model: EngineModel,
}

/// Serves one front until that leaves or SIGTERM or SIGINT comes; then writes the truth of what
/// is in flight.
///
/// # Errors
/// A file or socket cannot be used, or a GPU has an engine already.
pub fn run(config: &EngineConfig) -> anyhow::Result<()> {
    let signals = block_signals().context("cannot catch signals")?;
    let state = Arc::new(GpuState::open_or_create(&config.gpu_state)?);
    let truth = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&config.truth)
        .with_context(|| format!("truth file {}", config.truth.display()))?;
    let mut engine = Engine::new(
        config.model.clone(),
        &state,
        config.devices.clone(),
        config.shares,
        Box::new(truth),
    )?;
    let process = Process {
        pid: std::process::id(),
        memory_bytes: config.memory_bytes,
    };
    let contexts = config
        .devices
        .iter()
        .map(|device| state.open_context(*device, process))
        .collect::<Result<Vec<_>, _>>()?;

    let served = accept(config, &signals)
        .and_then(|front| front.map_or(Ok(()), |front| serve(&mut engine, front, &signals)));
    engine.finish(boottime_ns())?;
    drop(contexts);
    let late: u64 = config
        .devices
        .iter()
        .map(|device| state.late_segments(*device))
        .sum();
    eprintln!(
        "inference-sim engine: {}; {late} steps published late",
        engine.report()
    );
    served
}

/// Waits for the front; `None` if a signal comes first.
fn accept(config: &EngineConfig, signals: &OwnedFd) -> anyhow::Result<Option<UnixStream>> {
    let _ = std::fs::remove_file(&config.socket);
    let listener = UnixListener::bind(&config.socket)
        .with_context(|| format!("engine socket {}", config.socket.display()))?;
    let ready = wait([listener.as_raw_fd(), signals.as_raw_fd()], None)?;
    let front = if ready[1] {
        None
    } else {
        Some(listener.accept()?.0)
    };
    std::fs::remove_file(&config.socket)?;
    Ok(front)
}

fn serve(engine: &mut Engine, mut front: UnixStream, signals: &OwnedFd) -> anyhow::Result<()> {
    // The default slack of 50 µs would be added to the end of every step.
    // SAFETY: PR_SET_TIMERSLACK takes a number and changes this thread alone.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    // A GPU does not wait for a busy CPU. Only root may ask for this; without it the engine's
    // steps are merely told later on a busy machine.
    // SAFETY: changes the priority of this process and touches no memory.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    let mut inbox = Inbox::default();
    loop {
        if let Some(told) = engine.advance(boottime_ns())? {
            let mut line = serde_json::to_vec(&told)?;
            line.push(b'\n');
            match front.write_all(&line) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
        let [message, signal] = wait([front.as_raw_fd(), signals.as_raw_fd()], engine.due_ns())?;
        if signal {
            return Ok(());
        }
        if message {
            let Some(messages) = inbox.read(&front)? else {
                return Ok(());
            };
            for message in messages {
                engine.take(message?, boottime_ns())?;
            }
        }
    }
}

/// Bytes of a message that is not whole yet.
#[derive(Default)]
struct Inbox {
    rest: Vec<u8>,
}

impl Inbox {
    /// The whole messages that have come; `None` if the front has left.
    fn read(
        &mut self,
        front: &UnixStream,
    ) -> io::Result<Option<Vec<Result<ToEngine, serde_json::Error>>>> {
        let mut buffer = [0; 65_536];
        let count = match io::Read::read(&mut &*front, &mut buffer) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            other => other?,
        };
        self.rest
            .extend_from_slice(buffer.get(..count).unwrap_or_default());
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Some(Vec::new()));
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        let lines = whole
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        Ok(Some(lines.map(serde_json::from_slice).collect()))
    }
}

/// Sleeps until one of `files` can be read or `until_ns` has come; says which files can be read.
fn wait(files: [RawFd; 2], until_ns: Option<u64>) -> io::Result<[bool; 2]> {
    let mut polled = files.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = until_ns.map(|until| {
        let nanos = until.saturating_sub(boottime_ns());
        libc::timespec {
            tv_sec: (nanos / 1_000_000_000) as libc::time_t,
            tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
        }
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `polled` holds as many entries as is said; `timeout` is null or points to a value
    // that outlives the call; a null signal mask leaves the mask alone.
    let result = unsafe {
        libc::ppoll(
            polled.as_mut_ptr(),
            polled.len() as libc::nfds_t,
            timeout,
            std::ptr::null(),
        )
    };
    if result == -1 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([false; 2]);
    }
    Ok(polled.map(|entry| entry.revents != 0))
}

/// Turns SIGTERM and SIGINT into something that can be waited for.
fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: a signal set is plain data that sigemptyset fills; the calls only read or write
    // it. The new descriptor is ours alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC);
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
