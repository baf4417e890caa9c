//! The table of processes, kept up to date cheaply.
//!
//! In: `/proc`. Out: a [`Process`] per user-space process. A process is read when it is new,
//! while it is young (it may still change its cgroup, name or parent), and while it is watched;
//! an unchanged inode in the listing of `/proc` shows that a known process id is still the same
//! process.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cgroups::{self, Group};
use super::names::program_name;
use crate::clock::Timestamp;

/// So long a process is read again at every refresh.
const YOUNG: Duration = Duration::from_secs(10);
/// Kernel `include/linux/sched.h`: PF_KTHREAD.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// `/proc/<pid>/stat` counts in this unit on every architecture (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// When it started, in ticks since boot: tells two processes of one id apart.
    pub(super) start: u64,
    pub(super) parent: u32,
    /// The kernel's name for it: at most 15 bytes, and threads may change it.
    pub(super) comm: String,
    pub(super) group: Option<Group>,
    name: OnceCell<String>,
    inode: u64,
}

/// A process's identity: process ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) pid: u32,
    pub(super) start: u64,
}

impl Process {
    pub(super) fn key(&self) -> Key {
        Key {
            pid: self.pid,
            start: self.start,
        }
    }
}

/// What is behind a process id.
enum Found {
    Process(Process),
    KernelThread { start: u64 },
    Nothing,
}

/// All processes, by id.
#[derive(Debug)]
pub(super) struct Processes {
    proc: PathBuf,
    table: BTreeMap<u32, Process>,
    children: BTreeMap<u32, Vec<u32>>,
    groups: BTreeMap<Group, BTreeSet<u32>>,
    /// Kernel threads, with their directory's inode: there are thousands, and none is of interest.
    kernel_threads: BTreeMap<u32, u64>,
    /// Processes that started from here on are young, in ticks since boot.
    young_from: u64,
}

impl Processes {
    pub(super) fn new(proc: PathBuf) -> Self {
        Self {
            proc,
            table: BTreeMap::new(),
            children: BTreeMap::new(),
            groups: BTreeMap::new(),
            kernel_threads: BTreeMap::new(),
            young_from: 0,
        }
    }

    /// Brings the table up to date; `watched` are read again whatever their age.
    pub(super) fn refresh(&mut self, watched: &BTreeSet<u32>, now: Timestamp) -> io::Result<()> {
        let old_enough = now.minus(YOUNG).0 / (1_000_000_000 / TICKS_PER_SECOND);
        let mut table = BTreeMap::new();
        let mut kernel_threads = BTreeMap::new();
        for entry in fs::read_dir(&self.proc)? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let inode = entry.ino();
            if self.kernel_threads.get(&pid) == Some(&inode) {
                kernel_threads.insert(pid, inode);
                continue;
            }
            let known = self.table.remove(&pid).filter(|process| {
                process.inode == inode && process.start < old_enough && !watched.contains(&pid)
            });
            let found = match known {
                Some(process) => Found::Process(process),
                None => self.read(pid, inode),
            };
            match found {
                Found::Process(process) => {
                    table.insert(pid, process);
                }
                // A young one may yet become a program that the kernel runs.
                Found::KernelThread { start } if start < old_enough => {
                    kernel_threads.insert(pid, inode);
                }
                // A process that ended since it was listed is simply not there.
                Found::KernelThread { .. } | Found::Nothing => {}
            }
        }
        self.table = table;
        self.kernel_threads = kernel_threads;
        self.young_from = old_enough;
        self.mend_parents();
        self.index();
        Ok(())
    }

    fn index(&mut self) {
        self.children.clear();
        self.groups.clear();
        for process in self.table.values() {
            self.children
                .entry(process.parent)
                .or_default()
                .push(process.pid);
            if let Some(group) = &process.group {
                self.groups
                    .entry(group.clone())
                    .or_default()
                    .insert(process.pid);
            }
        }
    }

    /// An orphan has got a new parent since it was read.
    fn mend_parents(&mut self) {
        let orphans: Vec<(u32, u64)> = self
            .table
            .values()
            .filter(|process| process.parent != 0)
            .filter(|process| {
                self.table
                    .get(&process.parent)
                    .is_none_or(|parent| parent.start > process.start)
            })
            .map(|process| (process.pid, process.inode))
            .collect();
        for (pid, inode) in orphans {
            if let Found::Process(process) = self.read(pid, inode) {
                self.table.insert(pid, process);
            }
        }
    }

    fn read(&self, pid: u32, inode: u64) -> Found {
        let directory = self.proc.join(pid.to_string());
        let stat = fs::read_to_string(directory.join("stat")).ok();
        match stat.as_deref().and_then(Stat::parse) {
            None => Found::Nothing,
            Some(Stat {
                kernel_thread: true,
                start,
                ..
            }) => Found::KernelThread { start },
            Some(Stat {
                comm,
                parent,
                start,
                ..
            }) => {
                let cgroup = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
                Found::Process(Process {
                    pid,
                    start,
                    parent,
                    comm,
                    group: cgroups::group(&cgroup),
                    name: OnceCell::new(),
                    inode,
                })
            }
        }
    }

    pub(super) fn get(&self, pid: u32) -> Option<&Process> {
        self.table.get(&pid)
    }

    /// The process, if it is still the same one.
    pub(super) fn find(&self, key: Key) -> Option<&Process> {
        self.get(key.pid)
            .filter(|process| process.start == key.start)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Process> {
        self.table.values()
    }

    /// The processes that were young at the latest refresh.
    pub(super) fn young(&self) -> impl Iterator<Item = &Process> {
        self.iter()
            .filter(|process| process.start >= self.young_from)
    }

    /// The processes of a container, job or unit.
    pub(super) fn in_group(&self, group: &Group) -> impl Iterator<Item = u32> {
        self.groups.get(group).into_iter().flatten().copied()
    }

    /// The directory of a process.
    pub(super) fn directory(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    /// Everything below `roots`, themselves included, that is not beyond a boundary: `enter` says
    /// of each child whether it still belongs.
    pub(super) fn descendants(
        &self,
        roots: impl IntoIterator<Item = u32>,
        mut enter: impl FnMut(&Process) -> bool,
    ) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut open: Vec<u32> = roots.into_iter().collect();
        while let Some(pid) = open.pop() {
            if !found.insert(pid) {
                continue;
            }
            let children = self.children.get(&pid).into_iter().flatten();
            let entered = children
                .filter_map(|child| self.get(*child))
                .filter(|c| enter(c));
            open.extend(entered.map(|child| child.pid));
        }
        found
    }

    /// The processes above `pid`, nearest first.
    pub(super) fn ancestors(&self, pid: u32) -> impl Iterator<Item = &Process> {
        let mut current = self.get(pid);
        std::iter::from_fn(move || {
            let child = current?;
            current = self
                .get(child.parent)
                .filter(|parent| parent.start <= child.start);
            current
        })
    }

    /// What a process calls itself, for people: see [`program_name`].
    pub(super) fn name<'p>(&self, process: &'p Process) -> &'p str {
        process.name.get_or_init(|| {
            let arguments = self.arguments(process.pid);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            program_name(&arguments, &process.comm)
        })
    }

    /// The arguments a process was started with, or what it has put in their place.
    pub(super) fn arguments(&self, pid: u32) -> Vec<String> {
        let bytes = fs::read(self.directory(pid).join("cmdline")).unwrap_or_default();
        let arguments = bytes
            .split(|byte| *byte == 0)
            .filter(|argument| !argument.is_empty());
        arguments
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect()
    }

    /// The network namespace of a process.
    pub(super) fn network(&self, pid: u32) -> Option<u64> {
        let link = fs::read_link(self.directory(pid).join("ns/net")).ok()?;
        namespace_number(&link)
    }
}

fn namespace_number(link: &Path) -> Option<u64> {
    link.to_str()?
        .strip_prefix("net:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

struct Stat {
    comm: String,
    parent: u32,
    start: u64,
    kernel_thread: bool,
}

impl Stat {
    /// `None` for processes that have ended but were not yet waited for.
    fn parse(text: &str) -> Option<Self> {
        // The name may hold blanks and parentheses itself.
        let (before, after) = text.rsplit_once(')')?;
        let comm = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        if matches!(field(3)?, "Z" | "X" | "x") {
            return None;
        }
        let flags: u64 = field(9)?.parse().ok()?;
        Some(Self {
            comm,
            parent: field(4)?.parse().ok()?,
            start: field(22)?.parse().ok()?,
            kernel_thread: flags & KERNEL_THREAD != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = "77 (tmux: (server) x) S 5 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9";
        let stat = Stat::parse(line).expect("a proper line");
        assert_eq!(
            (stat.comm.as_str(), stat.parent, stat.start),
            ("tmux: (server) x", 5, 4_242)
        );
    }

    #[test]
    fn kernel_threads_and_the_dead_are_no_processes() {
        let line = |state: &str, flags: u64| {
            format!("7 (x) {state} 5 7 7 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 4242 9")
        };
        let kernel_thread = |text: &str| Stat::parse(text).map(|stat| stat.kernel_thread);
        assert_eq!(kernel_thread(&line("S", 0x40_0100)), Some(false));
        assert_eq!(kernel_thread(&line("I", KERNEL_THREAD | 0x40)), Some(true));
        assert!(Stat::parse(&line("Z", 0x40_0100)).is_none());
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn children_appear_with_the_next_refresh_and_leave_with_the_one_after_their_end() {
        let mut processes = Processes::new("/proc".into());
        let watched = BTreeSet::new();
        let mut child = Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep exists");
        processes
            .refresh(&watched, Timestamp::now())
            .expect("/proc can be listed");
        let found = processes
            .get(child.id())
            .expect("the child is there")
            .clone();
        assert_eq!(
            (found.comm.as_str(), found.parent),
            ("sleep", std::process::id())
        );
        let own = std::process::id();
        assert!(processes.descendants([own], |_| true).contains(&child.id()));
        assert_eq!(
            processes
                .ancestors(child.id())
                .next()
                .map(|parent| parent.pid),
            Some(own)
        );
        assert!(processes.network(child.id()).is_some());

        child.kill().expect("the child can be killed");
        // It dies when it next runs, and is dead before it is waited for.
        let start = std::time::Instant::now();
        loop {
            processes
                .refresh(&watched, Timestamp::now())
                .expect("/proc can be listed");
            if processes.get(child.id()).is_none() {
                break;
            }
            assert!(start.elapsed().as_secs() < 5, "dead, and still there");
            std::thread::yield_now();
        }
        child.wait().expect("the child has ended");
    }
}
