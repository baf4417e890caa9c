//! Which libraries of one kind processes have, looked for on a thread of its own: /proc and symbol
//! tables are read.
//!
//! In: processes that join and leave, and what is [`Sought`]. Out: [`Found`], with the open file,
//! so that what is probed is what was looked at, whatever its name leads to by then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

use super::Point;

/// What kind of library is looked for, and how.
#[derive(Debug, Clone, Copy)]
pub(in crate::probes) struct Sought {
    /// What it is called in the log.
    pub(in crate::probes) what: &'static str,
    /// The name of the thread that looks.
    pub(in crate::probes) thread: &'static str,
    /// Parts of the names of files that may be one. Anything else is not opened: models' libraries
    /// have symbol tables of many megabytes.
    pub(in crate::probes) names: &'static [&'static str],
    /// True if a process's own program may hold one.
    pub(in crate::probes) programs: bool,
    /// A process is looked at when it joins, and again after these times since; then each time the
    /// last has passed.
    pub(in crate::probes) looks: &'static [Duration],
    /// The places of a file where probes go; `None` if it is none, or shows none of its functions.
    pub(in crate::probes) find: fn(&File) -> io::Result<Option<Vec<Point>>>,
}

/// A file, whatever its path: device and inode.
pub(super) type FileId = (u64, u64);

/// A process, and a library it has.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) id: FileId,
    /// Its path, as the process sees it.
    pub(super) name: String,
    pub(super) file: Arc<File>,
    pub(super) points: Arc<Vec<Point>>,
}

/// The thread's other end. Dropping it ends the thread, which begins with the first process: it has no
/// more rights then than the agent keeps.
#[derive(Debug)]
pub(super) struct Libraries {
    sought: Sought,
    thread: Option<(Sender<Change>, Receiver<Found>)>,
}

#[derive(Debug)]
enum Change {
    Joined(u32),
    Left(u32),
}

impl Libraries {
    pub(super) const fn of(sought: Sought) -> Self {
        Self {
            sought,
            thread: None,
        }
    }

    pub(super) fn joined(&mut self, pid: u32) {
        if self.thread.is_none() {
            match start(self.sought) {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => {
                    log::error!("no {} is looked for: no thread: {error}", self.sought.what);
                }
            }
        }
        self.tell(Change::Joined(pid));
    }

    pub(super) fn left(&self, pid: u32) {
        self.tell(Change::Left(pid));
    }

    fn tell(&self, change: Change) {
        if let Some((changes, _)) = &self.thread {
            // A thread that has ended was told to.
            let _ = changes.send(change);
        }
    }

    /// The next find not yet taken. A process's library is told at each look.
    pub(super) fn next(&self) -> Option<Found> {
        let (_, found) = self.thread.as_ref()?;
        found.try_recv().ok()
    }
}

fn start(sought: Sought) -> io::Result<(Sender<Change>, Receiver<Found>)> {
    let (changes, told) = mpsc::channel();
    let (sender, found) = mpsc::channel();
    thread::Builder::new()
        .name(sought.thread.into())
        .spawn(move || look(sought, &told, &sender))?;
    Ok((changes, found))
}

/// When a process is looked at next.
#[derive(Debug)]
struct Due {
    at: Instant,
    looks: usize,
}

/// Files that are kept open, each container having its own; beyond, they are looked into again.
const MOST_KNOWN: usize = 256;

type Known = HashMap<FileId, Option<(Arc<File>, Arc<Vec<Point>>)>>;

fn look(sought: Sought, told: &Receiver<Change>, found: &Sender<Found>) {
    let mut processes: BTreeMap<u32, Due> = BTreeMap::new();
    let mut known = Known::new();
    loop {
        let now = Instant::now();
        let wait = processes
            .values()
            .map(|due| due.at.saturating_duration_since(now))
            .min()
            .unwrap_or(Duration::from_secs(3_600));
        match told.recv_timeout(wait) {
            Ok(Change::Joined(pid)) => {
                let at = Instant::now();
                processes.insert(pid, Due { at, looks: 0 });
            }
            Ok(Change::Left(pid)) => {
                processes.remove(&pid);
                if processes.is_empty() || known.len() > MOST_KNOWN {
                    known.clear();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        for (pid, due) in processes.iter_mut().filter(|(_, due)| due.at <= now) {
            let wait = sought.looks.get(due.looks).or(sought.looks.last()).copied();
            due.at = now + wait.unwrap_or(Duration::from_secs(60));
            due.looks += 1;
            match libraries(sought, *pid, &mut known) {
                Ok(libraries) => {
                    if libraries.is_empty() && due.looks == sought.looks.len() {
                        log::info!(
                            "process {pid}: no {} whose functions have names",
                            sought.what
                        );
                    }
                    for library in libraries {
                        if found.send(library).is_err() {
                            return;
                        }
                    }
                }
                // Gone, or not ours to look at.
                Err(error) => log::debug!("process {pid}: {error}"),
            }
        }
    }
}

/// The libraries that `pid` has at this moment.
fn libraries(sought: Sought, pid: u32, known: &mut Known) -> io::Result<Vec<Found>> {
    let process = Process::new(pid as i32).map_err(io::Error::other)?;
    let program = process.exe().ok().filter(|_| sought.programs);
    let maps = process.maps().map_err(io::Error::other)?;
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for map in &maps.0 {
        let MMapPath::Path(path) = &map.pathname else {
            continue;
        };
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        let may_be =
            program.as_ref() == Some(path) || sought.names.iter().any(|part| name.contains(part));
        if !may_be || !map.perms.contains(MMPermissions::EXECUTE) || !seen.insert(map.inode) {
            continue;
        }
        let file = match open(pid, map) {
            Ok(file) => file,
            Err(error) => {
                log::debug!("process {pid}: {}: {error}", path.display());
                continue;
            }
        };
        let metadata = file.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        let known = known.entry(id).or_insert_with(|| {
            let points = (sought.find)(&file)
                .inspect_err(|error| log::debug!("{}: {error}", path.display()))
                .ok()
                .flatten()?;
            Some((Arc::new(file), Arc::new(points)))
        });
        if let Some((file, points)) = known {
            found.push(Found {
                pid,
                id,
                name: path.display().to_string(),
                file: Arc::clone(file),
                points: Arc::clone(points),
            });
        }
    }
    Ok(found)
}

/// The mapped file: by its path in the process's mount namespace, or, if that leads elsewhere by
/// now, by the mapping itself (which takes more privilege).
fn open(pid: u32, map: &MemoryMap) -> io::Result<File> {
    let MMapPath::Path(path) = &map.pathname else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let inside = path.strip_prefix("/").unwrap_or(path);
    let by_path = File::open(format!("/proc/{pid}/root/{}", inside.display()));
    match by_path {
        Ok(file) if file.metadata()?.ino() == map.inode => Ok(file),
        _ => {
            let (start, end) = map.address;
            File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}"))
        }
    }
}
