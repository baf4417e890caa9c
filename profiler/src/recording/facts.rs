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
        let mut today = String::new();
        self.rows("SELECT date('now') AS today", |row| {
            today = row.get("today")?;
            Ok(())
        })?;
        Ok(today)
    }
}
