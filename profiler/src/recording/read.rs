//! Reads a recording back, row by row: memory does not grow with the file.

mod lookup;
mod stacks;

use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};

use rusqlite::types::FromSql;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Params, Row};

use super::rows::{
    Columns, INTERVAL, KIND, Kind, OWN, PHASES, SHARE, interval, kind, request, share,
};
use super::schema::{APPLICATION_ID, SCHEMA, counter, named};
use super::{RecordedRequest, RecordingError};
use crate::clock::Timestamp;
use crate::ids::Ids;
use crate::ledger::{Booked, Floor, FloorSource, Meter, MeterId, ServiceId, TokenDelta};
use crate::units::Watts;

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
        // SQLite's own words for a file that it cannot open do not say why.
        if let Err(error) = std::fs::File::open(path) {
            return Err(RecordingError::Unreadable {
                path: path.to_owned(),
                error,
            });
        }
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
            let is_empty = path.metadata().is_ok_and(|file| file.len() == 0);
            let what = if is_empty {
                "it is empty"
            } else {
                "it is a SQLite file of another program"
            };
            return Err(format(what.into()));
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
        let phases = self.phases("interval_services")?;
        // Both lie in this order, and each is read once.
        let intervals = format!("SELECT interval, {INTERVAL} FROM intervals ORDER BY interval");
        let shares = format!(
            "SELECT interval, {SHARE}, {phases} FROM interval_services ORDER BY interval, service"
        );
        let mut read = || -> rusqlite::Result<()> {
            let mut shares = self.connection.prepare(&shares)?;
            let mut shares = shares.query_map([], |row| {
                let mut columns = Columns::of(row);
                Ok((columns.take::<i64>()?, share(&mut columns)?))
            })?;
            let mut next = shares.next().transpose()?;
            let mut intervals = self.connection.prepare(&intervals)?;
            let mut rows = intervals.query([])?;
            while let Some(row) = rows.next()? {
                let mut columns = Columns::of(row);
                let id: i64 = columns.take()?;
                let mut interval = interval(&mut columns)?;
                while let Some((of, share)) = next.take_if(|(of, _)| *of <= id) {
                    if of == id {
                        interval.services.push(share);
                    }
                    next = shares.next().transpose()?;
                }
                each(Booked::Interval(interval));
            }
            Ok(())
        };
        read().map_err(RecordingError::sqlite(&self.path))
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

    /// The requests as they lie in the file, until `each` breaks off.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn requests<B>(
        &self,
        each: impl FnMut(&RecordedRequest) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, RecordingError> {
        self.requests_in("", each)
    }

    /// The number of the latest booking; `None` in files of earlier versions, and where nothing was booked.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn latest_booking(&self) -> Result<Option<i64>, RecordingError> {
        if !self.has("request_rows", "booking")? {
            return Ok(None);
        }
        self.connection
            .query_row("SELECT max(booking) FROM request_rows", [], |row| {
                row.get(0)
            })
            .map_err(RecordingError::sqlite(&self.path))
    }

    /// The requests of these bookings as they lie in the file. Only where [`Self::latest_booking`] is known.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn requests_booked(
        &self,
        bookings: RangeInclusive<i64>,
        mut each: impl FnMut(&RecordedRequest),
    ) -> Result<(), RecordingError> {
        let (from, to) = (bookings.start(), bookings.end());
        let among = format!("WHERE booking BETWEEN {from} AND {to}");
        let _all: ControlFlow<()> = self.requests_in(&among, |request| {
            each(request);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// The requests in the order of their numbers, until `each` breaks off: SQLite sorts them.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn requests_by_number<B>(
        &self,
        each: impl FnMut(&RecordedRequest) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, RecordingError> {
        self.requests_in("ORDER BY request", each)
    }

    fn requests_in<B>(
        &self,
        which: &str,
        mut each: impl FnMut(&RecordedRequest) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, RecordingError> {
        let kinds = self.kinds()?;
        let of_kind = if kinds.is_some() { "kind" } else { KIND };
        let phases = self.phases("requests")?;
        let sql = format!("SELECT {of_kind}, {OWN}, {phases} FROM requests {which}");
        let mut flow = ControlFlow::Continue(());
        self.walk(&sql, [], |row| {
            let mut columns = Columns::of(row);
            let kind = match &kinds {
                Some(kinds) => columns.among(kinds)?,
                None => kind(&mut columns)?,
            };
            flow = each(&request(&mut columns, &kind)?);
            Ok(flow.is_continue())
        })?;
        Ok(flow)
    }

    /// The kinds of requests, by number; `None` in files of earlier versions, which have none.
    fn kinds(&self) -> Result<Option<Ids<u32, Kind>>, RecordingError> {
        if !self.has("request_kinds", "kind")? {
            return Ok(None);
        }
        let mut kinds = Ids::default();
        let sql = format!("SELECT kind, {KIND} FROM request_kinds");
        self.rows(&sql, |row| {
            let mut columns = Columns::of(row);
            kinds.insert(columns.take()?, kind(&mut columns)?);
            Ok(())
        })?;
        Ok(Some(kinds))
    }

    /// The columns of the phases; files of earlier versions have none.
    fn phases(&self, table: &str) -> Result<&'static str, RecordingError> {
        Ok(match self.has(table, "prefill_uj")? {
            true => PHASES,
            false => "NULL, NULL, NULL",
        })
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
        each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), RecordingError> {
        self.chosen(sql, [], each)
    }

    /// The rows of an expression with `?1`, `?2` and so on.
    pub(super) fn chosen(
        &self,
        sql: &str,
        values: impl Params,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), RecordingError> {
        self.walk(sql, values, |row| each(row).map(|()| true))
    }

    fn walk(
        &self,
        sql: &str,
        values: impl Params,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<bool>,
    ) -> Result<(), RecordingError> {
        let walk = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(values)?;
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

pub(super) fn known(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(counter))
}

pub(super) fn count(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(counter(row.get(column)?))
}

pub(super) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    count(row, column).map(Timestamp)
}

/// A value that stands there by its name.
fn name<T: for<'de> serde::Deserialize<'de>>(
    row: &Row<'_>,
    column: &'static str,
) -> rusqlite::Result<T> {
    let text = String::column_result(row.get_ref(column)?)?;
    named(&text).ok_or_else(|| not_known(column, &text))
}

fn not_known(column: &str, text: &str) -> rusqlite::Error {
    let why = format!("{column} `{text}` is not known");
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, why.into())
}
