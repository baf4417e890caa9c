//! Reads the agent's recording while it grows.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, OpenFlags};

/// One GPU interval.
#[derive(Debug, Clone)]
pub(super) struct Interval {
    pub(super) device: String,
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    pub(super) energy_uj: u64,
    pub(super) accounts_uj: Accounts,
}

/// The accounts shown here, and the sum of all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accounts {
    pub(super) idle: u64,
    pub(super) requests: u64,
    pub(super) total: u64,
}

/// One booked request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) service: String,
    pub(super) start_s: f64,
    pub(super) end_s: f64,
    pub(super) chunks: u64,
    pub(super) gpu_uj: Option<u64>,
    pub(super) outcome: String,
}

/// What was booked so far.
#[derive(Debug)]
pub(super) struct Recording {
    path: PathBuf,
    /// The last one that has been read.
    interval: i64,
    pub(super) intervals: Vec<Interval>,
    pub(super) requests: Vec<Request>,
    pub(super) simulated: bool,
}

const INTERVALS: &str = "SELECT i.interval, device, from_ns / 1e9, to_ns / 1e9, energy_uj, idle_uj,
        requests_uj, idle_uj + context_uj + requests_uj + overhead_uj + other_uj + agent_uj
        + unattributed_uj + gap_uj
    FROM intervals i JOIN meters USING (meter)
    WHERE component = 'gpu' AND i.interval > ?1 ORDER BY i.interval";

/// Health checks cost nobody energy.
const REQUESTS: &str = "SELECT name, start_ns / 1e9, end_ns / 1e9, chunks, gpu_uj, outcome
    FROM requests JOIN services USING (service)
    WHERE route <> 'health' ORDER BY end_ns";

impl Recording {
    pub(super) fn follow(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            interval: 0,
            intervals: Vec::new(),
            requests: Vec::new(),
            simulated: false,
        }
    }

    /// Reads the rows that are new.
    pub(super) fn read_on(&mut self) -> Result<()> {
        self.read()
            .with_context(|| format!("cannot read {}", self.path.display()))
    }

    fn read(&mut self) -> rusqlite::Result<()> {
        let file = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let simulated = "SELECT value = '1' FROM meta WHERE key = 'simulated'";
        self.simulated = file.query_row(simulated, [], |row| row.get(0))?;
        let mut statement = file.prepare(INTERVALS)?;
        let mut rows = statement.query([self.interval])?;
        while let Some(row) = rows.next()? {
            self.interval = row.get(0)?;
            self.intervals.push(Interval {
                device: row.get(1)?,
                from_s: row.get(2)?,
                to_s: row.get(3)?,
                energy_uj: row.get(4)?,
                accounts_uj: Accounts {
                    idle: row.get(5)?,
                    requests: row.get(6)?,
                    total: row.get(7)?,
                },
            });
        }
        // They are numbered as they began, and booked as they ended: read anew, none is missed.
        let mut statement = file.prepare(REQUESTS)?;
        let mut rows = statement.query([])?;
        self.requests.clear();
        while let Some(row) = rows.next()? {
            self.requests.push(Request {
                service: row.get(0)?,
                start_s: row.get(1)?,
                end_s: row.get(2)?,
                chunks: row.get(3)?,
                gpu_uj: row.get(4)?,
                outcome: row.get(5)?,
            });
        }
        Ok(())
    }
}

/// True if an interval has been booked.
pub(super) fn has_begun(path: &Path) -> bool {
    let count = || -> rusqlite::Result<i64> {
        let file = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        file.query_row("SELECT count(*) FROM intervals", [], |row| row.get(0))
    };
    count().is_ok_and(|count| count > 0)
}
