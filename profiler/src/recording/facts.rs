//! What a recording says beside what was booked.

use super::read::{Recorded, time};
use super::{RecordedEngine, RecordingError};
use crate::clock::Timestamp;
use crate::ledger::ServiceId;

impl Recorded {
    /// What served, as its metrics said, in order.
    ///
    /// # Errors
    /// If the file cannot be read, as with every method here.
    pub fn engines(&self, mut each: impl FnMut(RecordedEngine)) -> Result<(), RecordingError> {
        let timed = self.has("engines", "at_ns")?;
        let sql = if timed {
            "SELECT * FROM engines ORDER BY at_ns, rowid"
        } else {
            "SELECT * FROM engines ORDER BY rowid"
        };
        self.rows(sql, |row| {
            each(RecordedEngine {
                service: ServiceId(row.get("service")?),
                at: if timed {
                    time(row, "at_ns")?
                } else {
                    Timestamp(0)
                },
                engine: row.get("engine")?,
                version: row.get("version")?,
                model: row.get("model")?,
            });
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

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::recording::Recording;

    fn engine(at: u64, version: &str, model: Option<&str>) -> RecordedEngine {
        RecordedEngine {
            service: ServiceId(1),
            at: Timestamp(at),
            engine: "vllm".to_owned(),
            version: Some(version.to_owned()),
            model: model.map(str::to_owned),
        }
    }

    fn engines(recorded: &Recorded) -> Vec<RecordedEngine> {
        let mut engines = Vec::new();
        recorded.engines(|told| engines.push(told)).unwrap();
        engines
    }

    #[test]
    fn an_engine_is_written_when_it_changes_and_files_without_times_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pj");
        let mut recording = Recording::create(&path, "run", false).unwrap();
        let other = RecordedEngine {
            service: ServiceId(2),
            ..engine(15, "0.11", Some("a"))
        };
        let told = [
            engine(10, "0.11", None),
            other,
            engine(30, "0.11", Some("a")),
            engine(40, "0.12", Some("a")),
            engine(60, "0.11", Some("a")),
        ];
        for told in &told {
            recording.engine(told).unwrap();
            let again = RecordedEngine {
                at: Timestamp(told.at.0 + 1),
                ..told.clone()
            };
            recording.engine(&again).unwrap();
        }
        recording.close().unwrap();
        assert_eq!(engines(&Recorded::open(&path).unwrap()), told);

        Connection::open(&path)
            .unwrap()
            .execute_batch("ALTER TABLE engines DROP COLUMN at_ns")
            .unwrap();
        let older = told.map(|told| RecordedEngine {
            at: Timestamp(0),
            ..told
        });
        assert_eq!(engines(&Recorded::open(&path).unwrap()), older);
    }
}
