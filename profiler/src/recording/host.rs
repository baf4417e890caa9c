//! What the host did meanwhile, a row a service and second: time on CPU, what threads waited for, for how long GPUs
//! starved for it; and what held GPUs' clocks down.

use rusqlite::{Row, params};

use super::read::{count, known, time};
use super::schema::integer;
use super::{Recorded, Recording, RecordingError};
use crate::clock::Timestamp;
use crate::ledger::{MeterId, ServiceId};
use crate::waits::{Reason, Waits};

const HOST: &str =
    "INSERT INTO host VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
const STARVED: &str = "INSERT INTO starved VALUES (?1, ?2, ?3, ?4)";
const THROTTLED: &str = "INSERT INTO throttled VALUES (?1, ?2, ?3, ?4)";

/// What threads of a service did since the row before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedHost {
    /// Whose.
    pub service: ServiceId,
    /// Since which the row before was written.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
    /// Nanoseconds on CPU; `None` where that is not told.
    pub on_cpu: Option<u64>,
    /// What they waited for, but not how long single waits were; `None` where that is not told.
    pub waits: Option<Waits>,
}

impl Recording {
    /// Writes what threads of a service did.
    ///
    /// # Errors
    /// If the file cannot be written, as with every method here.
    pub fn host(&mut self, host: &RecordedHost) -> Result<(), RecordingError> {
        let waits = host.waits.as_ref();
        let told = |of: &dyn Fn(&Waits) -> u64| waits.map(|waits| integer(of(waits)));
        let off = |reason| told(&|waits| waits.off_cpu(reason));
        self.insert(
            HOST,
            params![
                host.service.0,
                integer(host.from.0),
                integer(host.to.0),
                host.on_cpu.map(integer),
                told(&|waits| waits.run_queue),
                off(Reason::Preempted),
                off(Reason::Sleep),
                off(Reason::Disk),
                off(Reason::Futex),
                off(Reason::Poll),
                off(Reason::Socket),
                off(Reason::Other),
                told(&|waits| waits.voluntary),
                told(&|waits| waits.involuntary),
            ],
        )
    }

    /// Writes for how long a service's GPUs starved for a reason up to `at`, since that was told before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn starved(
        &mut self,
        service: ServiceId,
        at: Timestamp,
        reason: &str,
        nanos: u64,
    ) -> Result<(), RecordingError> {
        let (at, nanos) = (integer(at.0), integer(nanos));
        self.insert(STARVED, params![service.0, at, reason, nanos])
    }

    /// Writes for how long a GPU's clocks were held down for a reason up to `at`, since that was told before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn throttled(
        &mut self,
        meter: MeterId,
        at: Timestamp,
        reason: &str,
        nanos: u64,
    ) -> Result<(), RecordingError> {
        let (at, nanos) = (integer(at.0), integer(nanos));
        self.insert(THROTTLED, params![meter.0, at, reason, nanos])
    }
}

impl Recorded {
    /// What threads of services did, in order; nothing in files of earlier versions.
    ///
    /// # Errors
    /// If the file cannot be read, as with every method here.
    pub fn host(&self, mut each: impl FnMut(RecordedHost)) -> Result<(), RecordingError> {
        self.where_there_is("host", "to_ns", |row| {
            each(host(row)?);
            Ok(())
        })
    }

    /// The rows of one service that lie in [from, to] in part or whole, and which part of each does.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn host_in(
        &self,
        service: ServiceId,
        (from, to): (Timestamp, Timestamp),
        mut each: impl FnMut(&RecordedHost, f64),
    ) -> Result<(), RecordingError> {
        if !self.has("host", "to_ns")? {
            return Ok(());
        }
        let sql =
            "SELECT * FROM host WHERE service = ?1 AND to_ns > ?2 AND from_ns < ?3 ORDER BY rowid";
        let values = params![service.0, integer(from.0), integer(to.0)];
        self.chosen(sql, values, |row| {
            let host = host(row)?;
            let (since, until) = (host.from.max(from), host.to.min(to));
            let whole = host.to.since(host.from) as f64;
            if since < until {
                each(&host, until.since(since) as f64 / whole);
            }
            Ok(())
        })
    }

    /// For how long GPUs starved: service, until when, reason, nanoseconds.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn starved(
        &self,
        mut each: impl FnMut(ServiceId, Timestamp, &str, u64),
    ) -> Result<(), RecordingError> {
        self.where_there_is("starved", "at_ns", |row| {
            let reason: String = row.get("reason")?;
            let service = ServiceId(row.get("service")?);
            each(
                service,
                time(row, "at_ns")?,
                &reason,
                count(row, "starved_ns")?,
            );
            Ok(())
        })
    }

    /// What held clocks down: the GPU's meter, until when, reason, nanoseconds.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn throttled(
        &self,
        mut each: impl FnMut(MeterId, Timestamp, &str, u64),
    ) -> Result<(), RecordingError> {
        self.where_there_is("throttled", "at_ns", |row| {
            let reason: String = row.get("reason")?;
            let meter = MeterId(row.get("meter")?);
            each(
                meter,
                time(row, "at_ns")?,
                &reason,
                count(row, "throttled_ns")?,
            );
            Ok(())
        })
    }

    fn where_there_is(
        &self,
        table: &str,
        column: &str,
        each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), RecordingError> {
        if self.has(table, column)? {
            self.rows(&format!("SELECT * FROM {table} ORDER BY rowid"), each)?;
        }
        Ok(())
    }
}

fn host(row: &Row<'_>) -> rusqlite::Result<RecordedHost> {
    let waits = match known(row, "run_queue_ns")? {
        None => None,
        Some(run_queue) => {
            let mut waits = Waits {
                run_queue,
                voluntary: count(row, "voluntary")?,
                involuntary: count(row, "involuntary")?,
                ..Waits::default()
            };
            for (reason, column) in [
                (Reason::Preempted, "preempted_ns"),
                (Reason::Sleep, "sleep_ns"),
                (Reason::Disk, "disk_ns"),
                (Reason::Futex, "futex_ns"),
                (Reason::Poll, "poll_ns"),
                (Reason::Socket, "socket_ns"),
                (Reason::Other, "other_ns"),
            ] {
                waits.add_off_cpu(reason, count(row, column)?);
            }
            Some(waits)
        }
    };
    Ok(RecordedHost {
        service: ServiceId(row.get("service")?),
        from: time(row, "from_ns")?,
        to: time(row, "to_ns")?,
        on_cpu: known(row, "on_cpu_ns")?,
        waits,
    })
}
