//! The built `perjoule` as its users run it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
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
            .args(["run", "--listen", "127.0.0.1:0", "--record"])
            .arg(folder.path().join("perjoule.pj"))
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
                .split_once("://127.0.0.1:")
                .and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
            if let Some(port) = port {
                break port;
            }
            assert!(
                start.elapsed() < scaled(Duration::from_secs(30)),
                "not up: {text}"
            );
            if let Ok(Some(status)) = agent.child.try_wait() {
                panic!("ended with {status}: {text}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        agent
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
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
    pub fn recording_path(&self) -> PathBuf {
        self.folder.path().join("perjoule.pj")
    }

    /// The requests it has booked, health checks included: the columns of the table, and times in
    /// seconds.
    ///
    /// # Panics
    /// If the recording is not one.
    pub fn requests(&self) -> Vec<Value> {
        let mut rows = self.rows(
            "SELECT request AS id, service, route, coalesce(status, 0) AS status, outcome,
                start_ns / 1e9 AS start_s, first_token_ns / 1e9 AS first_token_s,
                last_data_ns / 1e9 AS last_data_s, end_ns / 1e9 AS end_s,
                streamed, chunks,
                prompt_bytes AS input_bytes, gpu_uj, cpu_uj, dram_uj, class, error_ratio,
                tokens_in, tokens_out, tokens_source
            FROM requests ORDER BY end_ns",
        );
        for row in &mut rows {
            row["streamed"] = (row["streamed"] == 1).into();
            row["id"] = row["id"].as_i64().map(i64::cast_unsigned).into();
        }
        rows
    }

    /// The traces of its requests, by the requests' ids.
    ///
    /// # Panics
    /// If the recording is not one.
    pub fn traces(&self) -> HashMap<u64, String> {
        let told = |row: Value| {
            let trace = row["trace"].as_str()?.to_owned();
            Some((row["request"].as_i64()?.cast_unsigned(), trace))
        };
        let rows = self.rows("SELECT request, trace FROM traces");
        rows.into_iter().filter_map(told).collect()
    }

    /// What a query of the recording gives, a JSON object a row.
    ///
    /// # Panics
    /// If there is no recording, or no such column.
    pub fn rows(&self, sql: &str) -> Vec<Value> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let file = Connection::open_with_flags(self.recording_path(), flags).expect("a recording");
        let mut statement = file.prepare(sql).expect("a query");
        let names: Vec<String> = statement
            .column_names()
            .into_iter()
            .map(str::to_owned)
            .collect();
        let rows = statement.query_map([], |row| {
            let value = |(place, name): (usize, &String)| {
                let value = match row.get_ref(place)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(number) => number.into(),
                    ValueRef::Real(number) => number.into(),
                    ValueRef::Text(text) | ValueRef::Blob(text) => {
                        String::from_utf8_lossy(text).into()
                    }
                };
                Ok((name.clone(), value))
            };
            names
                .iter()
                .enumerate()
                .map(value)
                .collect::<rusqlite::Result<_>>()
        });
        let rows: rusqlite::Result<Vec<Value>> =
            rows.and_then(|rows| rows.map(|row| row.map(Value::Object)).collect());
        rows.expect("rows")
    }

    /// Sends a signal that does not end it.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
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

impl Agent {
    /// Kills it.
    ///
    /// # Panics
    /// If it has ended before.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A failed test must not leave an agent behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
