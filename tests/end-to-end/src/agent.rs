//! The built `perjoule` as its users run it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{binary, scaled};

/// What a run printed, and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub log: String,
}

impl Ended {
    /// The last line of stdout.
    ///
    /// # Panics
    /// If that is not JSON.
    pub fn json(&self) -> Value {
        let last = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs `perjoule` to its end.
///
/// # Panics
/// If it cannot be started.
pub fn perjoule(arguments: &[&str]) -> Ended {
    finish(Command::new(binary("perjoule")).args(arguments))
}

/// Runs `perjoule` to its end behind other commands, as in `setpriv …`.
///
/// # Panics
/// If it cannot be started.
pub fn perjoule_behind(wrapper: &[&str], arguments: &[&str]) -> Ended {
    let (program, rest) = wrapper.split_first().expect("a wrapper");
    finish(
        Command::new(program)
            .args(rest)
            .arg(binary("perjoule"))
            .args(arguments),
    )
}

fn finish(command: &mut Command) -> Ended {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    Ended {
        status: output.status,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A running `perjoule run`.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Agent {
    /// Starts it on a free port and waits until it serves. It asks no server for metrics: those
    /// that a test writes count what they are asked.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(binary("perjoule"));
        command.env("PERJOULE_ENGINE_METRICS", "off");
        Self::start_with(command, arguments)
    }

    /// The same, with a command that runs `perjoule` in some environment.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn start_with(mut command: Command, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let child = command
            .args(["run", "--listen", "127.0.0.1:0", "--journal"])
            .arg(folder.path().join("journal.jsonl"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("it can be started");
        let mut agent = Self {
            child,
            folder,
            port: 0,
        };
        let start = Instant::now();
        agent.port = loop {
            let text = agent.log();
            let port = text
                .split_once("metrics on http://127.0.0.1:")
                .and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
            if let Some(port) = port {
                break port;
            }
            assert!(
                start.elapsed() < scaled(Duration::from_secs(10)),
                "not up: {text}"
            );
            if let Ok(Some(status)) = agent.child.try_wait() {
                panic!("ended with {status}: {text}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        agent
    }

    /// Where it serves.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Where it writes what it books.
    pub fn journal_path(&self) -> PathBuf {
        self.folder.path().join("journal.jsonl")
    }

    /// The requests it has booked, health checks included.
    ///
    /// # Panics
    /// If the journal is not one.
    pub fn requests(&self) -> Vec<Value> {
        self.entries("request")
    }

    /// The traces of its requests, by the requests' ids.
    ///
    /// # Panics
    /// If the journal is not one.
    pub fn traces(&self) -> HashMap<u64, String> {
        let told = |entry: Value| {
            let trace = entry["trace"].as_str()?.to_owned();
            Some((entry["request"].as_u64()?, trace))
        };
        self.entries("trace").into_iter().filter_map(told).collect()
    }

    fn entries(&self, kind: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.journal_path()).expect("a journal");
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"))
            .filter(|entry| entry["entry"] == kind)
            .collect()
    }

    /// Sends a signal, waits for the end and returns how long that took.
    ///
    /// # Panics
    /// If it does not end within 5 s, or not cleanly.
    pub fn end_with(&mut self, signal: libc::c_int) -> Duration {
        let start = Instant::now();
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                assert!(status.success(), "{status}: {}", self.log());
                return start.elapsed();
            }
            assert!(
                start.elapsed() < scaled(Duration::from_secs(5)),
                "still up: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A failed test must not leave an agent behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
