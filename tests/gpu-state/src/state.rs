//! The mapped file: made by whoever comes first, opened by everybody else.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::layout::{DeviceLayout, Layout, MAGIC};
use crate::{MAX_DEVICES, boottime_ns};

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be made, opened or mapped.
    #[error("GPU state file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is there, or another version's file.
    #[error("{0} is not a GPU state file of this version; remove it")]
    Foreign(PathBuf),
}

/// What the simulated GPUs of one machine do. Cheap to read from any thread and process.
#[derive(Debug)]
pub struct GpuState {
    map: MmapRaw,
    file: Option<File>,
    /// Devices that have a writer in this process: record locks do not exclude their own file.
    pub(crate) claimed: AtomicU64,
}

impl GpuState {
    /// Opens the file at `path`, or makes it if there is none.
    ///
    /// # Errors
    /// The file cannot be made or mapped, or is something else.
    pub fn open_or_create(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
            Ok(_) => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        if file.metadata().map_err(failed)?.len() != size_of::<Layout>() as u64 {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        let map = MmapOptions::new()
            .len(size_of::<Layout>())
            .map_raw(&file)
            .map_err(failed)?;
        let state = Self {
            map,
            file: Some(file),
            claimed: AtomicU64::new(0),
        };
        if state.layout().magic.load(Ordering::Acquire) != MAGIC {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        Ok(state)
    }

    /// A state that lives in this process alone; its GPUs idle unless this process writes to it.
    ///
    /// # Errors
    /// Memory cannot be mapped.
    pub fn anonymous() -> io::Result<Self> {
        let map = MmapOptions::new().len(size_of::<Layout>()).map_anon()?;
        let state = Self {
            map: map.into(),
            file: None,
            claimed: AtomicU64::new(0),
        };
        state
            .layout()
            .created_ns
            .store(boottime_ns(), Ordering::Relaxed);
        state.layout().magic.store(MAGIC, Ordering::Release);
        Ok(state)
    }

    /// When the state was made: the moment the simulated driver was loaded.
    pub fn created_ns(&self) -> u64 {
        self.layout().created_ns.load(Ordering::Relaxed)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is page-aligned, as long as `Layout` (checked when it was opened)
        // and lives as long as `self`. `Layout` holds atomics only, so any bytes are valid and
        // writes by other processes are no data race.
        unsafe { &*self.map.as_ptr().cast::<Layout>() }
    }

    pub(crate) fn device(&self, device: usize) -> Option<&DeviceLayout> {
        self.layout().devices.get(device)
    }

    /// True if this process now is a writer of `device`, until its file is closed.
    pub(crate) fn claim(&self, device: usize, claim: Claim) -> io::Result<bool> {
        debug_assert!(device < MAX_DEVICES);
        let bit = 1 << device;
        if self.claimed.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return Ok(false);
        }
        let Some(file) = &self.file else {
            return Ok(true);
        };
        let kind = match claim {
            Claim::Alone => libc::F_WRLCK,
            Claim::Shared => libc::F_RDLCK,
        };
        match record_lock(file, device, kind, libc::F_OFD_SETLK) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.claimed.fetch_and(!bit, Ordering::AcqRel);
                if error.kind() == io::ErrorKind::WouldBlock {
                    Ok(false)
                } else {
                    Err(error)
                }
            }
        }
    }

    pub(crate) fn release(&self, device: usize) {
        if let Some(file) = &self.file {
            // Closing the file releases the lock too, so a failure here costs nothing.
            let _ = record_lock(file, device, libc::F_UNLCK, libc::F_OFD_SETLK);
        }
        self.claimed.fetch_and(!(1 << device), Ordering::AcqRel);
    }
}

/// How a device is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// By this writer only.
    Alone,
    /// By several, in turns.
    Shared,
}

/// The right to append to one device; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'s> {
    file: Option<&'s File>,
    byte: usize,
}

impl GpuState {
    /// Waits until no other process appends to `device`.
    pub(crate) fn turn(&self, device: usize) -> io::Result<Turn<'_>> {
        let (file, byte) = (self.file.as_ref(), MAX_DEVICES + device);
        if let Some(file) = file {
            loop {
                match record_lock(file, byte, libc::F_WRLCK, libc::F_OFD_SETLKW) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            }
        }
        Ok(Turn { file, byte })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            // Closing the file releases the lock too.
            let _ = record_lock(file, self.byte, libc::F_UNLCK, libc::F_OFD_SETLK);
        }
    }
}

/// Takes or drops a lock on one byte of the file: byte N stands for the writing of device N, byte
/// `MAX_DEVICES` + N for a turn at it.
fn record_lock(file: &File, byte: usize, kind: i32, command: i32) -> io::Result<()> {
    // SAFETY: flock is plain data; all zero is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte as libc::off_t;
    lock.l_len = 1;
    // SAFETY: the descriptor is open for the life of `file`, and `lock` outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes the file whole under another name, then gives it its own: nobody sees half a header,
/// and of two makers one wins.
fn create(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.{}", std::process::id(), boottime_ns()));
    let draft = PathBuf::from(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&draft)?;
    let made = (|| {
        file.set_len(size_of::<Layout>() as u64)?;
        let mut header = [0_u8; 16];
        header[..8].copy_from_slice(&MAGIC.to_ne_bytes());
        header[8..].copy_from_slice(&boottime_ns().to_ne_bytes());
        io::Write::write_all(&mut &file, &header)?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    fs::remove_file(&draft)?;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_second_opens_what_the_first_has_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu");
        let first = GpuState::open_or_create(&path).unwrap();
        let second = GpuState::open_or_create(&path).unwrap();
        assert_eq!(first.created_ns(), second.created_ns());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "a draft was left behind"
        );
    }

    #[test]
    fn a_foreign_file_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu");
        fs::write(&path, "something else").unwrap();
        assert!(matches!(
            GpuState::open_or_create(&path),
            Err(OpenError::Foreign(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"something else");
    }

    #[test]
    fn a_file_nobody_writes_takes_no_disk() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu");
        let state = GpuState::open_or_create(&path).unwrap();
        assert_eq!(state.energy_at(0, boottime_ns()), Some(0));
        assert!(fs::metadata(&path).unwrap().blocks() * 512 <= 64 * 1024);
    }
}
