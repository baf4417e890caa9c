//! The `perjoule` that is checked: its agent, its replay, and what their recordings say of a GPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rusqlite::{Connection, OpenFlags};

use super::client::{Served, log};
use super::load::ends_with_us;
use super::trace::Trace;
use crate::demo::stack::Process;

const ACCOUNTS: [&str; 8] = [
    "idle",
    "context",
    "requests",
    "overhead",
    "other",
    "agent",
    "unattributed",
    "gap",
];

/// A built `perjoule`.
#[derive(Debug)]
pub(super) struct Perjoule {
    pub(super) binary: PathBuf,
    /// The NVML library that the agent is to load.
    pub(super) library: PathBuf,
    pub(super) folder: PathBuf,
}

/// What was booked on one GPU.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    pub(super) energy_uj: i64,
    /// In the ledger's order.
    pub(super) accounts_uj: Vec<(&'static str, i64)>,
    /// The log's id, where there was one, and the GPU energy.
    pub(super) requests: Vec<(Option<String>, u64)>,
}

impl Perjoule {
    /// The one in `binaries`.
    pub(super) fn find(binaries: &Path, library: &Path, folder: &Path) -> Result<Self> {
        let binary = binaries.join("perjoule");
        ensure!(
            binary.is_file(),
            "there is no {}; `cargo build --release -p profiler` makes it, --binaries names its folder",
            binary.display()
        );
        Ok(Self {
            binary,
            library: library.to_owned(),
            folder: folder.to_owned(),
        })
    }

    /// Books a polled counter and the clients' log. Without `idle_watts` the floor is learned.
    pub(super) fn replay(
        &self,
        name: &str,
        device: &str,
        trace: &Trace,
        served: &[Served],
        idle_watts: Option<f64>,
    ) -> Result<Books> {
        let file = |kind: &str| self.folder.join(format!("{name}.{kind}"));
        let (power, requests, recording) = (file("csv"), file("jsonl"), file("pj"));
        fs::write(&power, power_log(device, trace))?;
        fs::write(&requests, log(served))?;
        let mut command = Command::new(&self.binary);
        command.arg("replay").arg("--power").arg(&power);
        command.arg("--requests").arg(&requests);
        command.arg("--output").arg(&recording);
        if let Some(watts) = idle_watts {
            command.args(["--idle-watts", &format!("{watts:.3}")]);
        }
        let output = command.output().context("cannot run perjoule")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "perjoule replay ended with {}: {}",
                output.status,
                said.trim()
            );
        }
        Books::read(&recording, device, (0.0, f64::INFINITY))
    }

    /// The agent, told by port whom to follow.
    pub(super) fn agent(&self, port: &str, recording: Option<&Path>) -> Result<Process> {
        let mut command = Command::new(&self.binary);
        command.args(["run", "--listen", "127.0.0.1:0", "--port", port]);
        command.arg("--nvml-library").arg(&self.library);
        if let Some(recording) = recording {
            command.arg("--record").arg(recording);
        }
        ends_with_us(&mut command);
        let mut agent = Process::start("agent", &mut command, &self.folder)?;
        agent.line_after("metrics on ")?;
        Ok(agent)
    }

    /// The first warning or error of the agent that was started last, if it gave one.
    pub(super) fn warning(&self) -> Option<String> {
        let log = fs::read_to_string(self.folder.join("agent.log")).ok()?;
        warning(&log)
    }
}

/// Without its time, and without what could be done about it.
fn warning(log: &str) -> Option<String> {
    let mut lines = log.lines();
    let line = lines.find(|line| line.contains(" WARN ") || line.contains(" ERROR"))?;
    let (_, text) = line.split_once("] ")?;
    let cause = text.split_once("; fix: ").map_or(text, |(cause, _)| cause);
    Some(cause.to_owned())
}

/// The counter's steps as `perjoule replay` reads them.
fn power_log(device: &str, trace: &Trace) -> String {
    let header = "time_s,device,energy_j\n".to_owned();
    trace.steps().iter().fold(header, |log, step| {
        let joules = step.counter_mj as f64 * 1e-3;
        log + &format!("{:.6},{device},{joules:.3}\n", step.at_s)
    })
}

impl Books {
    /// Reads a recording that `perjoule` wrote: the intervals between two moments, all requests.
    pub(super) fn read(recording: &Path, device: &str, (from_s, to_s): (f64, f64)) -> Result<Self> {
        Self::query(recording, device, (from_s * 1e9, to_s * 1e9))
            .with_context(|| format!("nothing is booked on {device} in {}", recording.display()))
    }

    fn query(recording: &Path, device: &str, (from, to): (f64, f64)) -> rusqlite::Result<Self> {
        let file = Connection::open_with_flags(recording, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let sums = ACCOUNTS
            .map(|account| format!("sum({account}_uj)"))
            .join(", ");
        let text = format!(
            "SELECT min(from_ns) / 1e9, max(to_ns) / 1e9, sum(energy_uj), {sums}
            FROM intervals JOIN meters USING (meter)
            WHERE component = 'gpu' AND device = ?1 AND from_ns >= ?2 AND to_ns <= ?3"
        );
        let mut books = file.query_row(&text, (device, from, to), |row| {
            let accounts = ACCOUNTS.iter().enumerate();
            let accounts = accounts.map(|(place, name)| Ok((*name, row.get(3 + place)?)));
            Ok(Self {
                from_s: row.get(0)?,
                to_s: row.get(1)?,
                energy_uj: row.get(2)?,
                accounts_uj: accounts.collect::<rusqlite::Result<_>>()?,
                requests: Vec::new(),
            })
        })?;
        let text = "SELECT id, gpu_uj FROM requests
            WHERE route IS NOT 'health' AND gpu_uj IS NOT NULL";
        let mut statement = file.prepare(text)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        books.requests = rows.collect::<rusqlite::Result<_>>()?;
        Ok(books)
    }

    pub(super) fn account_uj(&self, name: &str) -> i64 {
        let found = self
            .accounts_uj
            .iter()
            .find(|(account, _)| *account == name);
        found.map_or(0, |(_, energy)| *energy)
    }

    /// Energy less the sum of its accounts.
    pub(super) fn residual_uj(&self) -> i64 {
        self.energy_uj
            - self
                .accounts_uj
                .iter()
                .map(|(_, energy)| energy)
                .sum::<i64>()
    }

    /// What the single requests got.
    pub(super) fn requests_uj(&self) -> u64 {
        self.requests.iter().map(|(_, energy)| energy).sum()
    }

    /// Joules of the requests whose ids begin so, and how many they are.
    pub(super) fn joules_of(&self, prefix: &str) -> (f64, usize) {
        let of: Vec<u64> = self
            .requests
            .iter()
            .filter(|(id, _)| id.as_deref().is_some_and(|id| id.starts_with(prefix)))
            .map(|(_, energy)| *energy)
            .collect();
        (of.iter().sum::<u64>() as f64 * 1e-6, of.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu_check::trace::Look;

    #[test]
    fn the_power_log_has_a_row_where_the_counter_changes() {
        let look = |at_s, counter_mj| Look {
            at_s,
            counter_mj: Some(counter_mj),
            average_mw: None,
            instant_mw: None,
        };
        let trace = Trace {
            looks: vec![
                look(1.0, 5),
                look(1.1, 5),
                look(1.2, 9_005),
                look(1.4, 9_006),
            ],
        };
        assert_eq!(
            power_log("GPU-1", &trace),
            "time_s,device,energy_j\n1.150000,GPU-1,9.005\n1.300000,GPU-1,9.006\n"
        );
    }

    #[test]
    fn a_warning_is_told_without_its_time() {
        let log = "[2026-01-01T00:00:00.000Z INFO ] metrics on http://[::]:1/metrics\n\
                   [2026-01-01T00:00:00.001Z WARN ] no probe runs: privileges; fix: run as root\n";
        assert_eq!(warning(log).as_deref(), Some("no probe runs: privileges"));
        assert_eq!(warning("[2026-01-01T00:00:00.000Z INFO ] all well\n"), None);
    }

    #[test]
    fn books_that_do_not_add_up_have_a_residual() {
        let books = |requests| Books {
            from_s: 0.0,
            to_s: 1.0,
            energy_uj: 100,
            accounts_uj: vec![("idle", 40), ("requests", requests)],
            requests: vec![
                (Some("mixed/long/0".into()), 35),
                (Some("solo/long/0".into()), 25),
            ],
        };
        assert_eq!(books(60).residual_uj(), 0);
        assert_eq!(books(59).residual_uj(), 1);
        assert_eq!(books(60).requests_uj(), 60);
        assert_eq!(books(60).joules_of("mixed/"), (35e-6, 1));
    }
}
