//! Files that were read, and whether any has changed since.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::WebError;

/// What tells one state of a file from another without reading it.
#[derive(Debug, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if there is no such file. Links are followed: Kubernetes replaces a link to renew a secret.
    fn of(path: &Path) -> Option<Self> {
        let told = fs::metadata(path).ok()?;
        Some(Self {
            device: told.dev(),
            inode: told.ino(),
            size: told.size(),
            modified: (told.mtime(), told.mtime_nsec()),
            changed: (told.ctime(), told.ctime_nsec()),
        })
    }
}

/// Those that one reading of the configuration went through.
#[derive(Debug, Default)]
pub(super) struct Files {
    read: Vec<(PathBuf, Option<Stamp>)>,
}

impl Files {
    /// Reads a file and remembers its state, also where it cannot be read.
    pub(super) fn read(&mut self, path: &Path) -> Result<Vec<u8>, WebError> {
        // Before its content: what is written meanwhile is a change.
        self.read.push((path.to_owned(), Stamp::of(path)));
        fs::read(path).map_err(|source| WebError::Unreadable {
            path: path.to_owned(),
            source,
        })
    }

    /// True if any of them is another file by now.
    pub(super) fn have_changed(&self) -> bool {
        let mut read = self.read.iter();
        read.any(|(path, stamp)| Stamp::of(path) != *stamp)
    }
}
