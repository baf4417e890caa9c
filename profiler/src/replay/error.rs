//! Why a log is not understood: where, what is wrong, and what to do.

use std::path::{Path, PathBuf};

use crate::recording::RecordingError;

/// Why nothing was replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A line is not what it must be.
    #[error("{path}, line {line}: {cause}; {next}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// A file, or what is asked of it, makes no sense as a whole.
    #[error("{path}: {cause}; {next}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// The recording cannot be written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
}

impl ReplayError {
    pub(super) fn line(
        path: &Path,
        line: u64,
        cause: impl Into<String>,
        next: &'static str,
    ) -> Self {
        Self::Line {
            path: path.to_owned(),
            line,
            cause: cause.into(),
            next,
        }
    }

    pub(super) fn file(path: &Path, cause: impl Into<String>, next: &'static str) -> Self {
        Self::File {
            path: path.to_owned(),
            cause: cause.into(),
            next,
        }
    }
}
