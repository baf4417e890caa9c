//! What a recording says beside what was booked.

use super::RecordingError;
use super::read::Recorded;
use super::schema::counter;
use crate::ledger::ServiceId;

impl Recorded {
    /// What served, as its metrics said, in order: its name and version.
    ///
    /// # Errors
    /// If the file cannot be read, as with every method here.
    pub fn engines(
        &self,
        mut each: impl FnMut(ServiceId, &str, Option<&str>),
    ) -> Result<(), RecordingError> {
        self.rows("SELECT * FROM engines ORDER BY rowid", |row| {
            let (engine, version): (String, Option<String>) =
                (row.get("engine")?, row.get("version")?);
            each(ServiceId(row.get("service")?), &engine, version.as_deref());
            Ok(())
        })
    }

    /// Every fact that the file tells of itself.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn facts(&self, mut each: impl FnMut(&str, &str)) -> Result<(), RecordingError> {
        self.rows("SELECT key, value FROM meta ORDER BY key", |row| {
            let (key, value): (String, String) = (row.get("key")?, row.get("value")?);
            each(&key, &value);
            Ok(())
        })
    }

    /// Nanoseconds that threads of each service waited by reason, of the waits that were recorded.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn waits_by_reason(
        &self,
        mut each: impl FnMut(ServiceId, &str, u64),
    ) -> Result<(), RecordingError> {
        if !self.has("off_cpu", "at_ns")? {
            return Ok(());
        }
        let sql = "SELECT service, reason, sum(waited_ns) AS waited FROM off_cpu
            GROUP BY service, reason";
        self.rows(sql, |row| {
            let reason: String = row.get("reason")?;
            let service = ServiceId(row.get("service")?);
            each(service, &reason, counter(row.get("waited")?));
            Ok(())
        })
    }

    /// The day on which it is read, of UTC.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn today(&self) -> Result<String, RecordingError> {
        let mut today = String::new();
        self.rows("SELECT date('now') AS today", |row| {
            today = row.get("today")?;
            Ok(())
        })?;
        Ok(today)
    }
}
