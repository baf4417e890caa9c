//! What the GPU does while it is measured: PyTorch by a program of its own, or the simulated
//! serving stack on the simulated GPU.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::bursts::Bursts;
use super::client::{Clients, Kind};
use crate::demo::stack::Process;

const SCRIPT: &str = include_str!("load.py");
/// PyTorch takes its time, and so does a model of many gigabytes.
const PATIENCE: Duration = Duration::from_secs(180);
/// Prompts that follow each other without a gap: the most that inference-sim draws.
const SIMULATED_FULL: Kind = Kind {
    name: "full",
    input: 4_000,
    output: 1,
};

/// A load that can be started.
#[derive(Debug)]
pub(super) struct Load {
    kind: Loader,
    folder: PathBuf,
    /// What it is, for the page.
    pub(super) name: String,
}

#[derive(Debug)]
enum Loader {
    Torch {
        python: String,
        device: String,
        gpu: Option<String>,
    },
    Simulated {
        binaries: PathBuf,
    },
}

/// A load that runs; it ends with this value.
#[derive(Debug)]
pub(super) struct Running {
    // In this order: clients must not wait for a server that has gone.
    clients: Option<Clients>,
    bursts: Option<Bursts>,
    process: Process,
    /// Where it serves, as `host:port`; empty where it does not.
    pub(super) address: String,
}

impl Load {
    /// PyTorch on a device that it calls so; `gpu` is the UUID of the only one it is to see.
    pub(super) fn torch(
        folder: &Path,
        python: &str,
        device: &str,
        gpu: Option<String>,
    ) -> Result<Self> {
        fs::write(folder.join("load.py"), SCRIPT)?;
        let mut load = Self {
            kind: Loader::Torch {
                python: python.to_owned(),
                device: device.to_owned(),
                gpu,
            },
            folder: folder.to_owned(),
            name: String::new(),
        };
        let mut process = load.start(&["check"])?;
        load.name = process.line_within("load: ", PATIENCE)?;
        Ok(load)
    }

    /// The serving stack of `binaries`; its GPU's state is in `folder`.
    pub(super) fn simulated(folder: &Path, binaries: &Path) -> Self {
        Self {
            kind: Loader::Simulated {
                binaries: binaries.to_owned(),
            },
            folder: folder.to_owned(),
            name: "inference-sim (simulated)".to_owned(),
        }
    }

    /// A process that only holds a context.
    pub(super) fn context(&self) -> Result<Running> {
        match self.kind {
            Loader::Torch { .. } => self.ready(&["hold"]),
            Loader::Simulated { .. } => self.serve(),
        }
    }

    /// As much as the GPU can do.
    pub(super) fn full(&self) -> Result<Running> {
        match self.kind {
            Loader::Torch { .. } => self.ready(&["full"]),
            Loader::Simulated { .. } => {
                let mut running = self.serve()?;
                running.clients = Some(Clients::start(
                    &running.address,
                    "full",
                    &[(SIMULATED_FULL, 3)],
                ));
                Ok(running)
            }
        }
    }

    /// Full load for the first half of each period.
    pub(super) fn wave(&self, period_s: f64) -> Result<Running> {
        let on_s = period_s / 2.0;
        match self.kind {
            Loader::Torch { .. } => {
                let (period, on) = (period_s.to_string(), on_s.to_string());
                self.ready(&["wave", "--period", &period, "--on", &on])
            }
            Loader::Simulated { .. } => {
                let mut running = self.serve()?;
                running.bursts = Some(Bursts::start(&running.address, period_s, on_s));
                Ok(running)
            }
        }
    }

    /// A server that batches continuously.
    pub(super) fn serve(&self) -> Result<Running> {
        let mut process = self.start(&["serve"])?;
        let url = process.line_within("listening on ", PATIENCE)?;
        let address = url.strip_prefix("http://").unwrap_or(&url).to_owned();
        Ok(Running {
            clients: None,
            bursts: None,
            process,
            address,
        })
    }

    /// Of the time so far, the part in which the wave that was started last was on, as far as its
    /// program tells.
    pub(super) fn told_duty(&self) -> Option<f64> {
        let text = fs::read_to_string(self.folder.join("load.out")).ok()?;
        duty(&text)
    }

    fn ready(&self, arguments: &[&str]) -> Result<Running> {
        let mut process = self.start(arguments)?;
        process.line_within("{\"event\": \"ready\"", PATIENCE)?;
        Ok(Running {
            clients: None,
            bursts: None,
            process,
            address: String::new(),
        })
    }

    fn start(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = match &self.kind {
            Loader::Torch {
                python,
                device,
                gpu,
            } => {
                let mut command = Command::new(python);
                command.arg(self.folder.join("load.py")).args(arguments);
                command.args(["--device", device]);
                if let Some(gpu) = gpu {
                    command.env("CUDA_VISIBLE_DEVICES", gpu);
                }
                command
            }
            Loader::Simulated { binaries } => {
                let mut command = Command::new(binaries.join("inference-sim"));
                command
                    .args(["serve", "--listen", "127.0.0.1:0", "--gpu-state"])
                    .arg(self.folder.join("gpu-state"))
                    .arg("--truth")
                    .arg(self.folder.join("truth.jsonl"));
                command
            }
        };
        ends_with_us(&mut command);
        Process::start("load", &mut command, &self.folder)
    }
}

/// A load that is left behind would keep the GPU busy: when this program is ended by a signal, it
/// gets one too. It must be started by the main thread.
pub(super) fn ends_with_us(command: &mut Command) {
    // SAFETY: prctl(PR_SET_PDEATHSIG) is one system call that reads no memory; it is allowed
    // between fork and exec.
    unsafe {
        command.pre_exec(|| {
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

impl Running {
    /// The port of its server.
    pub(super) fn port(&self) -> Result<&str> {
        let (_, port) = self
            .address
            .rsplit_once(':')
            .context("the load serves nothing")?;
        Ok(port)
    }

    /// An error if it ended by itself.
    pub(super) fn still_up(&mut self) -> Result<()> {
        self.process.still_up()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.bursts.take());
        if let Some(clients) = &self.clients {
            clients.stop();
        }
        // What cannot be ended so is killed with the process' own value.
        let _ = self.process.stop();
    }
}

/// From what `load.py` has printed.
fn duty(text: &str) -> Option<f64> {
    let told = text.lines().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some((
            line.get("busy_s")?.as_f64()?,
            line.get("since_s")?.as_f64()?,
        ))
    });
    told.map(|(busy, since)| busy / since)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn the_program_is_valid_python() {
        let check = "import ast, sys; ast.parse(sys.stdin.read())";
        let python = Command::new("python3")
            .args(["-c", check])
            .stdin(Stdio::piped())
            .spawn();
        let Ok(mut python) = python else {
            eprintln!("skipped: there is no python3");
            return;
        };
        let mut input = python.stdin.take().unwrap();
        input.write_all(SCRIPT.as_bytes()).unwrap();
        drop(input);
        assert!(python.wait().unwrap().success());
    }

    #[test]
    fn the_duty_is_that_of_the_last_whole_line() {
        let text = "{\"event\": \"ready\", \"t\": 1.0}\n\
                    {\"event\": \"wave\", \"busy_s\": 0.2, \"since_s\": 1.0}\n\
                    {\"event\": \"wave\", \"busy_s\": 1.1, \"since_s\": 2.0}\n{\"event\": \"wa";
        assert_eq!(duty(text), Some(0.55));
        assert_eq!(duty("listening on http://127.0.0.1:1\n"), None);
    }
}
