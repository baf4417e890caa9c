//! The table of processes, kept up to date cheaply.
//!
//! In: `/proc`. Out: a [`Process`] per user-space process. A process is read when it is new,
//! while it is young (it may still change its cgroup, name or parent), and while it is watched;
//! an unchanged inode in the listing of `/proc` shows that a known process id is still the same
//! process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cgroups::{self, Group};
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

/// All processes, by id.
#[derive(Debug)]
pub(super) struct Processes {
    proc: PathBuf,
    table: BTreeMap<u32, Process>,
}

impl Processes {
    pub(super) fn new(proc: PathBuf) -> Self {
        Self {
            proc,
            table: BTreeMap::new(),
        }
    }

    /// Brings the table up to date; `watched` are read again whatever their age.
    pub(super) fn refresh(&mut self, watched: &BTreeSet<u32>) -> io::Result<()> {
        let old_enough = Timestamp::now().minus(YOUNG).0 / (1_000_000_000 / TICKS_PER_SECOND);
        let mut table = BTreeMap::new();
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
            let known = self.table.remove(&pid).filter(|process| {
                process.inode == inode && process.start < old_enough && !watched.contains(&pid)
            });
            // A process that ended since it was listed is simply not there.
            if let Some(process) = known.or_else(|| self.read(pid, inode)) {
                table.insert(pid, process);
            }
        }
        self.table = table;
        self.mend_parents();
        Ok(())
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
            if let Some(process) = self.read(pid, inode) {
                self.table.insert(pid, process);
            }
        }
    }

    fn read(&self, pid: u32, inode: u64) -> Option<Process> {
        let directory = self.proc.join(pid.to_string());
        let stat = fs::read_to_string(directory.join("stat")).ok()?;
        let Stat {
            comm,
            parent,
            start,
        } = Stat::parse(&stat)?;
        let cgroup = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
        Some(Process {
            pid,
            start,
            parent,
            comm,
            group: cgroups::group(&cgroup),
            inode,
        })
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
        let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
        for process in self.iter() {
            children.entry(process.parent).or_default().push(process);
        }
        let mut found = BTreeSet::new();
        let mut open: Vec<u32> = roots.into_iter().collect();
        while let Some(pid) = open.pop() {
            if !found.insert(pid) {
                continue;
            }
            for child in children.get(&pid).into_iter().flatten() {
                if enter(child) {
                    open.push(child.pid);
                }
            }
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
    pub(super) fn name(&self, process: &Process) -> String {
        let arguments = fs::read(self.directory(process.pid).join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&arguments);
        let arguments: Vec<&str> = text
            .split('\0')
            .filter(|argument| !argument.is_empty())
            .collect();
        program_name(&arguments, &process.comm)
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
}

impl Stat {
    /// `None` for kernel threads and for processes that have ended but were not yet waited for.
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
        if flags & KERNEL_THREAD != 0 {
            return None;
        }
        Some(Self {
            comm,
            parent: field(4)?.parse().ok()?,
            start: field(22)?.parse().ok()?,
        })
    }
}

/// Programs that run another one, which is the one to name.
const INTERPRETERS: [&str; 7] = ["python", "node", "ruby", "perl", "java", "bun", "deno"];
/// Options of these interpreters that take a value of their own.
const VALUED: [&str; 6] = ["-X", "-W", "-r", "-cp", "-classpath", "--require"];
const LONGEST_NAME: usize = 64;

/// The name of a process: its program's file name, or for an interpreter the module or script
/// that it runs (`python3 -m vllm.entrypoints.openai.api_server` is named by the module,
/// `python3 /usr/bin/vllm serve` is `vllm`), else the kernel's name for it.
pub(super) fn program_name(arguments: &[&str], comm: &str) -> String {
    let name = arguments.first().map_or(comm, |first| {
        // Programs that set their own title write a sentence there.
        let program = file_name(first.split([' ', ':']).next().unwrap_or(first));
        let interpreter = INTERPRETERS.iter().any(|known| {
            program.strip_prefix(known).is_some_and(|version| {
                version
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'.')
            })
        });
        if interpreter {
            script(arguments).unwrap_or(program)
        } else {
            program
        }
    });
    let shown: String = name.chars().filter(|letter| !letter.is_control()).collect();
    let mut end = shown.len().min(LONGEST_NAME);
    while !shown.is_char_boundary(end) {
        end -= 1;
    }
    match shown.get(..end) {
        None | Some("") => "process".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn script<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let mut rest = arguments.iter().skip(1).copied();
    while let Some(argument) = rest.next() {
        match argument {
            "-m" | "-jar" => return rest.next().map(file_stem),
            "-c" | "-e" => return None,
            option if VALUED.contains(&option) => {
                rest.next();
            }
            option if option.starts_with('-') => {}
            script => return Some(file_stem(script)),
        }
    }
    None
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The file's name without the ending of a script.
fn file_stem(path: &str) -> &str {
    let name = file_name(path);
    [".py", ".js", ".mjs", ".ts", ".rb", ".pl", ".jar"]
        .into_iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name)
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
        assert!(Stat::parse(&line("S", 0x40_0100)).is_some());
        assert!(Stat::parse(&line("I", KERNEL_THREAD | 0x40)).is_none());
        assert!(Stat::parse(&line("Z", 0x40_0100)).is_none());
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn interpreters_are_named_by_what_they_run() {
        for (arguments, name) in [
            (
                vec!["/usr/bin/python3", "-m", "http.server", "8000"],
                "http.server",
            ),
            (
                vec!["python3.12", "-u", "/usr/local/bin/vllm", "serve"],
                "vllm",
            ),
            (vec!["python3", "-X", "dev", "app.py"], "app"),
            (vec!["node", "--require", "x", "/srv/server.js"], "server"),
            (vec!["java", "-cp", "a:b", "-jar", "/opt/app.jar"], "app"),
            (vec!["python3", "-c", "print()"], "python3"),
            (
                vec!["/opt/llama/llama-server", "-m", "model.gguf"],
                "llama-server",
            ),
            (vec!["VLLM::EngineCore"], "VLLM"),
            (vec!["gunicorn: master [app:app]"], "gunicorn"),
            (vec!["pythonista", "x"], "pythonista"),
            (vec![], "comm"),
        ] {
            assert_eq!(program_name(&arguments, "comm"), name, "{arguments:?}");
        }
        assert_eq!(program_name(&["\u{1b}[2J\n"], "x"), "[2J");
        assert_eq!(program_name(&["é".repeat(100).as_str()], "x").len(), 64);
        assert_eq!(program_name(&["/"], "x"), "process");
    }

    #[test]
    fn children_appear_with_the_next_refresh_and_leave_with_the_one_after_their_end() {
        let mut processes = Processes::new("/proc".into());
        let watched = BTreeSet::new();
        let mut child = Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep exists");
        processes.refresh(&watched).expect("/proc can be listed");
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
        processes.refresh(&watched).expect("/proc can be listed");
        assert_eq!(
            processes.get(child.id()),
            None,
            "dead, though not yet waited for"
        );
        child.wait().expect("the child has ended");
    }
}
