//! Reads a recording back, row by row: memory does not grow with the file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rusqlite::types::FromSql;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use super::schema::{APPLICATION_ID, SCHEMA, counter, integer, named};
use super::{RecordedRequest, RecordingError, StackId};
use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, Booked, BookedInterval, BookedRequest, End, ErrorRatios, Floor, FloorSource,
    GpuPhases, Input, Meter, MeterId, Request, RequestId, ServiceId, ServiceShare, TokenCount,
    TokenDelta,
};
use crate::units::{Microjoules, Watts};

/// A recording that is read, as it stood when it was opened: whoever writes it goes on.
#[derive(Debug)]
pub struct Recorded {
    path: PathBuf,
    connection: Connection,
    /// True if the figures come from a simulator.
    pub simulated: bool,
}

impl Recorded {
    /// Opens a recording.
    ///
    /// # Errors
    /// If there is none, or it is of a newer layout.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let sqlite = RecordingError::sqlite(path);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(&sqlite)?;
        let number = |pragma: &str| -> Result<i32, RecordingError> {
            connection
                .pragma_query_value(None, pragma, |row| row.get(0))
                .map_err(|error| match error.sqlite_error_code() {
                    Some(rusqlite::ErrorCode::NotADatabase) => RecordingError::Format {
                        path: path.to_owned(),
                        reason: "it is no SQLite file".into(),
                    },
                    _ => sqlite(error),
                })
        };
        let format = |reason: String| RecordingError::Format {
            path: path.to_owned(),
            reason,
        };
        if number("application_id")? != APPLICATION_ID {
            return Err(format("it is a SQLite file of another program".into()));
        }
        let schema = number("user_version")?;
        if schema > SCHEMA {
            return Err(format(format!(
                "its schema {schema} is newer than this perjoule"
            )));
        }
        connection.execute_batch("BEGIN").map_err(&sqlite)?;
        let simulated: String = connection
            .query_row(
                "SELECT value FROM meta WHERE key = 'simulated'",
                [],
                |row| row.get(0),
            )
            .map_err(&sqlite)?;
        Ok(Self {
            path: path.to_owned(),
            connection,
            simulated: simulated == "1",
        })
    }

    /// The meters.
    ///
    /// # Errors
    /// If the file cannot be read, as with every method here.
    pub fn meters(&self, mut each: impl FnMut(MeterId, Meter)) -> Result<(), RecordingError> {
        self.rows("SELECT * FROM meters ORDER BY meter", |row| {
            let meter = Meter {
                component: name(row, "component")?,
                device: row.get("device")?,
                source: name(row, "source")?,
                limit: row.get::<_, Option<f64>>("limit_watts")?.map(Watts),
                tick: count(row, "tick_ns")?,
                stale_after: count(row, "stale_after_ns")?,
                gain_error_ratio: row.get("gain_error_ratio")?,
                idle: row.get::<_, Option<f64>>("idle_watts")?.map(Watts),
            };
            each(MeterId(row.get("meter")?), meter);
            Ok(())
        })
    }

    /// The meters' idle floors, as they were known last.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn floors(
        &self,
        mut each: impl FnMut(MeterId, Option<Floor>),
    ) -> Result<(), RecordingError> {
        self.rows("SELECT * FROM floors ORDER BY meter", |row| {
            let source: String = row.get("source")?;
            let watts: Option<f64> = row.get("watts")?;
            let floor = FloorSource::named(&source).zip(watts.map(Watts));
            let floor = floor.map(|(source, watts)| Floor { watts, source });
            each(MeterId(row.get("meter")?), floor);
            Ok(())
        })
    }

    /// The services: name, and the model that was given or that the engine named last.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn services(
        &self,
        mut each: impl FnMut(ServiceId, &str, Option<&str>),
    ) -> Result<(), RecordingError> {
        let sql = "SELECT service, name, coalesce(
                (SELECT model FROM engines WHERE engines.service = services.service
                    AND model IS NOT NULL ORDER BY rowid DESC LIMIT 1), model) AS model
            FROM services ORDER BY service";
        self.rows(sql, |row| {
            let model: Option<String> = row.get("model")?;
            let name: String = row.get("name")?;
            each(ServiceId(row.get("service")?), &name, model.as_deref());
            Ok(())
        })
    }

    /// What engines counted, in order.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn tokens(&self, mut each: impl FnMut(TokenDelta)) -> Result<(), RecordingError> {
        self.rows("SELECT * FROM tokens ORDER BY rowid", |row| {
            each(TokenDelta {
                service: ServiceId(row.get("service")?),
                from: time(row, "from_ns")?,
                to: time(row, "to_ns")?,
                input: known(row, "input")?,
                output: known(row, "output")?,
            });
            Ok(())
        })
    }

    /// The intervals, in the order in which they were booked.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn intervals(&self, mut each: impl FnMut(Booked)) -> Result<(), RecordingError> {
        // Files of earlier versions do not have all columns.
        let columns = if self.has("interval_services", "prefill_uj")? {
            "s.prefill_uj, s.decode_uj, s.wait_uj"
        } else {
            "NULL AS prefill_uj, NULL AS decode_uj, NULL AS wait_uj"
        };
        let sql = format!(
            "SELECT i.*, s.service AS share, s.requests_uj AS share_requests_uj,
                s.overhead_uj AS share_overhead_uj, {columns}
            FROM intervals i LEFT JOIN interval_services s USING (interval) ORDER BY interval"
        );
        let mut latest: Option<(i64, BookedInterval)> = None;
        self.rows(&sql, |row| {
            let id: i64 = row.get("interval")?;
            if latest.as_ref().is_none_or(|(latest, _)| *latest != id)
                && let Some((_, whole)) = latest.replace((id, interval(row)?))
            {
                each(Booked::Interval(whole));
            }
            if let (Some(service), Some((_, interval))) = (row.get("share")?, &mut latest) {
                interval.services.push(ServiceShare {
                    service: ServiceId(service),
                    requests: energy(row, "share_requests_uj")?,
                    overhead: energy(row, "share_overhead_uj")?,
                    phases: phases(row)?,
                });
            }
            Ok(())
        })?;
        if let Some((_, last)) = latest {
            each(Booked::Interval(last));
        }
        Ok(())
    }

    /// The holes in meters' time.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn holes(&self, mut each: impl FnMut(Booked)) -> Result<(), RecordingError> {
        self.rows("SELECT * FROM holes ORDER BY rowid", |row| {
            let reason: String = row.get("reason")?;
            each(Booked::Hole {
                meter: MeterId(row.get("meter")?),
                from: time(row, "from_ns")?,
                to: time(row, "to_ns")?,
                reason: if reason == "reset" {
                    "reset"
                } else {
                    "refused"
                },
            });
            Ok(())
        })
    }

    /// The requests, in the order of their numbers, until `each` breaks off.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn requests<B>(
        &self,
        mut each: impl FnMut(&RecordedRequest) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, RecordingError> {
        let mut flow = ControlFlow::Continue(());
        self.walk("SELECT * FROM requests ORDER BY request", |row| {
            flow = each(&request(row)?);
            Ok(flow.is_continue())
        })?;
        Ok(flow)
    }

    /// A fact about the file, if it is there.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn fact(&self, key: &str) -> Result<Option<String>, RecordingError> {
        self.connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
                row.get(0)
            })
            .optional()
            .map_err(RecordingError::sqlite(&self.path))
    }

    /// All stacks: names of their frames, the outermost first, one a line.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn stacks(&self, mut each: impl FnMut(StackId, &str)) -> Result<(), RecordingError> {
        if !self.has("stacks", "frames")? {
            return Ok(());
        }
        self.rows("SELECT stack, frames FROM stacks", |row| {
            let frames: String = row.get("frames")?;
            each(StackId(row.get("stack")?), &frames);
            Ok(())
        })
    }

    /// True if the file has samples of stacks.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn has_samples(&self) -> Result<bool, RecordingError> {
        Ok(self.has("samples", "at_ns")?
            && self.count("SELECT EXISTS (SELECT 1 FROM samples)")? > 0)
    }

    /// A service's samples in (from, to], in order; in one package, if it is named. Only where
    /// [`Self::has_samples`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn samples(
        &self,
        service: ServiceId,
        (from, to): (Timestamp, Timestamp),
        package: Option<u32>,
        mut each: impl FnMut(Timestamp, StackId),
    ) -> Result<(), RecordingError> {
        let sql =
            "SELECT at_ns, stack FROM samples WHERE service = ?1 AND at_ns > ?2 AND at_ns <= ?3
            AND (?4 IS NULL OR package IS NULL OR package = ?4) ORDER BY at_ns";
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let values = params![service.0, integer(from.0), integer(to.0), package];
            let mut rows = statement.query(values)?;
            while let Some(row) = rows.next()? {
                each(time(row, "at_ns")?, StackId(row.get("stack")?));
            }
            Ok(())
        };
        read().map_err(RecordingError::sqlite(&self.path))
    }

    /// True if the file has stacks of waits.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn has_waits(&self) -> Result<bool, RecordingError> {
        Ok(self.has("off_cpu", "at_ns")?
            && self.count("SELECT EXISTS (SELECT 1 FROM off_cpu)")? > 0)
    }

    /// Nanoseconds that threads of each service waited in each stack.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn waits(
        &self,
        mut each: impl FnMut(ServiceId, StackId, u64),
    ) -> Result<(), RecordingError> {
        if !self.has("off_cpu", "at_ns")? {
            return Ok(());
        }
        let sql =
            "SELECT service, stack, sum(waited_ns) AS waited FROM off_cpu GROUP BY service, stack";
        self.rows(sql, |row| {
            let (service, stack) = (ServiceId(row.get("service")?), StackId(row.get("stack")?));
            each(service, stack, count(row, "waited")?);
            Ok(())
        })
    }

    /// How often each service was seen in each stack.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn sample_counts(
        &self,
        mut each: impl FnMut(ServiceId, StackId, u64),
    ) -> Result<(), RecordingError> {
        if !self.has("samples", "at_ns")? {
            return Ok(());
        }
        let sql = "SELECT service, stack, count(*) AS seen FROM samples GROUP BY service, stack";
        self.rows(sql, |row| {
            let (service, stack) = (ServiceId(row.get("service")?), StackId(row.get("stack")?));
            each(service, stack, count(row, "seen")?);
            Ok(())
        })
    }

    pub(super) fn has(&self, table: &str, column: &str) -> Result<bool, RecordingError> {
        let sql = "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2";
        let found: i64 = self
            .connection
            .query_row(sql, [table, column], |row| row.get(0))
            .map_err(RecordingError::sqlite(&self.path))?;
        Ok(found > 0)
    }

    fn count(&self, sql: &str) -> Result<i64, RecordingError> {
        self.connection
            .query_row(sql, [], |row| row.get(0))
            .map_err(RecordingError::sqlite(&self.path))
    }

    /// When the first interval begins and the last one ends.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn window(&self) -> Result<Option<(Timestamp, Timestamp)>, RecordingError> {
        let mut window = None;
        let sql = "SELECT min(from_ns) AS from_ns, max(to_ns) AS to_ns FROM intervals";
        self.rows(sql, |row| {
            window = known(row, "from_ns")?
                .map(Timestamp)
                .zip(known(row, "to_ns")?.map(Timestamp));
            Ok(())
        })?;
        Ok(window)
    }

    pub(super) fn rows(
        &self,
        sql: &str,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), RecordingError> {
        self.walk(sql, |row| each(row).map(|()| true))
    }

    fn walk(
        &self,
        sql: &str,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<bool>,
    ) -> Result<(), RecordingError> {
        let mut walk = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if !each(row)? {
                    break;
                }
            }
            Ok(())
        };
        walk().map_err(RecordingError::sqlite(&self.path))
    }
}

fn interval(row: &Row<'_>) -> rusqlite::Result<BookedInterval> {
    Ok(BookedInterval {
        meter: MeterId(row.get("meter")?),
        from: time(row, "from_ns")?,
        to: time(row, "to_ns")?,
        energy: energy(row, "energy_uj")?,
        accounts: Accounts {
            idle: energy(row, "idle_uj")?,
            context: energy(row, "context_uj")?,
            requests: energy(row, "requests_uj")?,
            overhead: energy(row, "overhead_uj")?,
            other: energy(row, "other_uj")?,
            agent: energy(row, "agent_uj")?,
            unattributed: energy(row, "unattributed_uj")?,
            gap: energy(row, "gap_uj")?,
        },
        services: Vec::new(),
        holders: row.get("holders")?,
    })
}

fn phases(row: &Row<'_>) -> rusqlite::Result<Option<GpuPhases>> {
    let energy = |column| Ok::<_, rusqlite::Error>(known(row, column)?.map(Microjoules));
    let parts = (
        energy("prefill_uj")?,
        energy("decode_uj")?,
        energy("wait_uj")?,
    );
    Ok(match parts {
        (Some(prefill), Some(decode), Some(wait)) => Some(GpuPhases {
            prefill,
            decode,
            wait,
        }),
        _ => None,
    })
}

fn request(row: &Row<'_>) -> rusqlite::Result<RecordedRequest> {
    let chunks: Option<u64> = known(row, "chunks")?;
    let bytes = known(row, "prompt_bytes")?.unwrap_or(0);
    let outcome: Option<String> = row.get("outcome")?;
    let end = known(row, "end_ns")?.map(Timestamp);
    let source: Option<String> = row.get("tokens_source")?;
    let tokens = match source.as_deref().and_then(named) {
        Some(source) => Some(TokenCount {
            source,
            input: known(row, "tokens_in")?,
            output: known(row, "tokens_out")?,
            calibrated: row
                .get::<_, Option<bool>>("tokens_calibrated")?
                .unwrap_or(false),
        }),
        None => None,
    };
    let own: Option<f64> = row.get("own_error_ratio")?;
    let common: Option<f64> = row.get("common_error_ratio")?;
    let joules = |column| Ok::<_, rusqlite::Error>(known(row, column)?.map(Microjoules));
    Ok(RecordedRequest {
        booked: BookedRequest {
            request: Request {
                id: RequestId(row.get::<_, i64>("request")?.cast_unsigned()),
                service: ServiceId(row.get("service")?),
                route: name(row, "route")?,
                start: time(row, "start_ns")?,
                first_data: known(row, "first_token_ns")?.map(Timestamp),
                last_data: known(row, "last_data_ns")?.map(Timestamp),
                input: known(row, "prompt_tokens")?.map_or(Input::Bytes(bytes), Input::Tokens),
                chunks: chunks.unwrap_or(0),
                streamed: row.get("streamed")?,
                status: row.get::<_, Option<u16>>("status")?.unwrap_or(0),
                end: end
                    .zip(outcome.as_deref().and_then(named))
                    .map(|(at, outcome)| End { at, outcome }),
            },
            gpu: joules("gpu_uj")?,
            cpu: joules("cpu_uj")?,
            dram: joules("dram_uj")?,
            class: name(row, "class")?,
            errors: own
                .zip(common)
                .map(|(own, common)| ErrorRatios { own, common }),
            tokens,
        },
        name: row.get("id")?,
        chunks_seen: chunks.is_some(),
    })
}

fn known(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(counter))
}

fn count(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(counter(row.get(column)?))
}

fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    count(row, column).map(Timestamp)
}

fn energy(row: &Row<'_>, column: &str) -> rusqlite::Result<Microjoules> {
    count(row, column).map(Microjoules)
}

/// A value that stands there by its name.
fn name<T: for<'de> serde::Deserialize<'de>>(
    row: &Row<'_>,
    column: &'static str,
) -> rusqlite::Result<T> {
    let text = String::column_result(row.get_ref(column)?)?;
    named(&text).ok_or_else(|| {
        let unknown = format!("{column} `{text}` is not known");
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, unknown.into())
    })
}
