//! What a recording says beside what was booked.

use super::RecordingError;
use super::read::Recorded;
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

    /// The day on which it is read, of UTC.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn today(&self) -> Result<String, RecordingError> {
        self.now("SELECT date('now') AS now")
    }

    /// The second in which it is read, of UTC, as part of a file's name.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn second(&self) -> Result<String, RecordingError> {
        self.now("SELECT strftime('%Y-%m-%dT%H-%M-%SZ', 'now') AS now")
    }

    fn now(&self, sql: &str) -> Result<String, RecordingError> {
        let mut now = String::new();
        self.rows(sql, |row| {
            now = row.get("now")?;
            Ok(())
        })?;
        Ok(now)
    }
}
