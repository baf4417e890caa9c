//! The recording: everything the ledger booked, in one SQLite file that any SQL tool reads.
//!
//! In: [`Booked`](crate::ledger::Booked) values and the names behind their ids. Out: a `.pj` file that is valid at
//! any instant, also after a SIGKILL; [`Recorded`] gives the same values back, row by row, so that
//! `report` and `script` need no agent and no more memory for a longer file. Tables:
//! `docs/recording.md`.

mod facts;
mod hindsight;
mod host;
mod read;
mod rows;
mod schema;
mod write;

#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};

pub use hindsight::{Hindsight, Saving};
pub use host::RecordedHost;
pub use read::Recorded;
pub use write::Recording;
pub(crate) use write::{check_replaceable, remove, replace};

use crate::clock::Timestamp;
use crate::ledger::{BookedRequest, EngineInfo, ServiceId};
use crate::waits::Reason;

/// A request as it stands in a recording.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// What was booked. Where the chunks were not seen, `chunks` is 0.
    pub booked: BookedRequest,
    /// The id that the log it was replayed from gave it.
    pub name: Option<String>,
    /// False where nobody saw the chunks of its response.
    pub chunks_seen: bool,
}

/// What serves, as its metrics said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedEngine {
    /// Whose.
    pub service: ServiceId,
    /// When that was told; 0 in files of earlier versions.
    pub at: Timestamp,
    /// Its name.
    pub engine: String,
    /// Its version, if its metrics say so.
    pub version: Option<String>,
    /// The model's name, unless there are several.
    pub model: Option<String>,
}

/// A stack's number in recordings: the same stack has the same one, in other recordings too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackId(pub i64);

/// A thread of a service, seen on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedSample {
    /// Whose.
    pub service: ServiceId,
    /// When.
    pub at: Timestamp,
    /// The package of the CPU, if that is known.
    pub package: Option<u32>,
    /// Where it was.
    pub stack: StackId,
}

/// A thread of a service waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedWait {
    /// Whose.
    pub service: ServiceId,
    /// Until when.
    pub at: Timestamp,
    /// For how many nanoseconds.
    pub nanos: u64,
    /// Why.
    pub reason: Reason,
    /// Where.
    pub stack: StackId,
}

impl RecordedEngine {
    /// As it was told.
    pub fn new(info: &EngineInfo, at: Timestamp) -> Self {
        Self {
            service: info.service,
            at,
            engine: info.engine.to_owned(),
            version: info.version.clone(),
            model: info.model.clone(),
        }
    }
}

impl From<BookedRequest> for RecordedRequest {
    /// A request that the agent saw itself.
    fn from(booked: BookedRequest) -> Self {
        Self {
            booked,
            name: None,
            chunks_seen: true,
        }
    }
}

/// What can go wrong with a recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// An old file or one that is left of it cannot be replaced.
    #[error("recording {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// SQLite refuses.
    #[error("recording {path}: {error}")]
    Sqlite {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: rusqlite::Error,
    },
    /// It cannot be opened.
    #[error("recording {path}: {error}; correct the path or the file's permissions")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A part of the file is missing or overwritten.
    #[error(
        "recording {path}: the file is damaged: {error}; was it copied whole, with its -wal file? `sqlite3 {path} .recover | \
         sqlite3 saved.pj` copies what can still be read"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What was found.
        error: rusqlite::Error,
    },
    /// The file is not what a recording is.
    #[error(
        "recording {path}: {reason}; is this a file that `perjoule record`, `run --record` or `replay` wrote?"
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl RecordingError {
    fn io(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |error| Self::Io {
            path: path.to_owned(),
            error,
        }
    }

    fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |error| {
            let path = path.to_owned();
            match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseCorrupt) => Self::Damaged { path, error },
                _ => Self::Sqlite { path, error },
            }
        }
    }
}
