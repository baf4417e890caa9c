//! One emulated machine: booted, and what its tests say on its console.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::project::target;

/// The longest test takes some minutes; a machine that says nothing for longer has stopped.
const PATIENCE: Duration = Duration::from_secs(900);

/// Without the copying instructions that are emulated byte by byte: the verifier, which copies its
/// states, takes half the time.
const CPU: &str = "max,-erms,-fsrm,-la57";

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// It did not run, in whole or in part, and why.
    Skipped(String),
    /// The kernel lacks what it is about, and why that is known.
    Unsupported(String),
    Failed,
    /// It failed among the others, and passed when it was run once more by itself.
    PassedLater,
}

/// A run's name (tests and tier), and each of its tests' verdict.
pub(super) type Run = (String, BTreeMap<String, Verdict>);

/// What the tests on one kernel have said.
#[derive(Debug)]
pub(super) struct Told {
    /// The kernel's release.
    pub(super) release: String,
    /// The line that names the tier the request probe chose; `None` if no test made it choose.
    pub(super) chosen: Option<String>,
    /// In their order.
    pub(super) runs: Vec<Run>,
}

/// Both CPUs in one thread: with a thread each, a CPU may still run what the other has patched, and a
/// kernel that turns a tracepoint on or off stops at a breakpoint that is no longer there.
const ACCELERATOR: &str = "tcg,thread=single";

/// The timer is not checked: where the emulation gets no CPU for a moment, it seems not to work.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=3 no_timer_check rdinit=/init";

/// Boots the kernel and reads what the tests say.
pub(super) fn boot(kernel: &Path, archive: &Path, version: &str) -> Result<Told> {
    let mut machine = Command::new("qemu-system-x86_64");
    machine
        .args(["-accel", ACCELERATOR, "-cpu", CPU])
        .args(["-m", "2048M", "-smp", "2", "-nic", "none"])
        .args(["-no-reboot", "-nographic"])
        .args(["-append", COMMAND_LINE])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(archive);
    follow(&mut machine, version)
}

/// What the tests said in the latest whole run of this name; `None` if there was none.
pub(super) fn kept(name: &str) -> Result<Option<Told>> {
    let Ok(log) = fs::read(target("vm").join(format!("console-{name}"))) else {
        return Ok(None);
    };
    let mut console = Console::default();
    for line in String::from_utf8_lossy(&log).lines() {
        console.read(line);
    }
    if !console.done {
        bail!("its latest run did not come to its end");
    }
    Ok(Some(console.told()))
}

impl Told {
    /// What failed here and passed in a later run of single tests.
    pub(super) fn tried_again(&mut self, later: &Self) {
        for (name, tests) in &mut self.runs {
            let again = later.runs.iter().find(|(run, _)| run == name);
            for (test, verdict) in tests {
                let passed = again.and_then(|(_, tests)| tests.get(test));
                if *verdict == Verdict::Failed && passed == Some(&Verdict::Passed) {
                    *verdict = Verdict::PassedLater;
                }
            }
        }
    }
}

/// Reads what tests say on a machine or in a script; all of it is kept in
/// `target/vm/console-NAME`.
pub(super) fn follow(command: &mut Command, name: &str) -> Result<Told> {
    let start = Instant::now();
    let mut machine = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Machine)
        .with_context(|| command.get_program().to_string_lossy().into_owned())?;
    let output = machine.0.stdout.take().context("the console")?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut log = File::create(target("vm").join(format!("console-{name}")))?;
    let mut console = Console::default();
    loop {
        match told.recv_timeout(PATIENCE) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                writeln!(log, "{line}")?;
                if let Some(shown) = console.read(&line) {
                    println!("{name:<5}{:>5.0} s  {shown}", start.elapsed().as_secs_f64());
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("it says nothing any more; see target/vm/console-{name}")
            }
        }
    }
    if !console.done {
        bail!("it did not come to its end; see target/vm/console-{name}");
    }
    Ok(console.told())
}

/// Ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was read so far.
#[derive(Debug, Default)]
struct Console {
    release: String,
    runs: Vec<Run>,
    /// The test whose output follows.
    test: Option<String>,
    /// What became of the tests whose names follow.
    listed: Option<Verdict>,
    chosen: Option<String>,
    done: bool,
}

impl Console {
    fn told(self) -> Told {
        Told {
            release: self.release,
            chosen: self.chosen,
            runs: self.runs,
        }
    }

    /// Takes a line in; returns what of it a person wants to see now.
    fn read(&mut self, line: &str) -> Option<String> {
        // Behind what the firmware leaves on the line.
        if let Some((_, run)) = line.split_once("vm: run ") {
            self.runs.push((run.to_owned(), BTreeMap::new()));
            self.test = None;
            return Some(format!("-- {run}"));
        }
        if line == "vm: done" {
            self.done = true;
        } else if let Some(why) = line.strip_prefix("vm: none: ") {
            self.tested("all", Verdict::Unsupported(why.to_owned()));
        } else if let Some((_, release)) = line.split_once("vm: Linux ") {
            release.clone_into(&mut self.release);
        } else if line.contains("chosen: tier ") {
            self.chosen.get_or_insert_with(|| line.to_owned());
        } else if let Some(name) = told_by(line) {
            self.test = Some(name.to_owned());
        } else if line == "successes:" {
            self.listed = Some(Verdict::Passed);
        } else if line == "failures:" {
            self.listed = Some(Verdict::Failed);
        } else if line.starts_with("test result: ") {
            (self.test, self.listed) = (None, None);
        } else if let Some((name, verdict)) = listed(line).zip(self.listed.clone()) {
            // One whose own line was broken by what it printed.
            if let Some((_, tests)) = self.runs.last_mut() {
                tests.entry(name.to_owned()).or_insert(verdict);
            }
        } else if let Some((name, outcome)) = tested(line) {
            let failed = outcome == Verdict::Failed;
            self.tested(name, outcome);
            return failed.then(|| format!("FAILED {name}"));
        } else if let Some(why) = line.strip_prefix("skipped: ") {
            self.skipped(why);
        }
        None
    }

    fn tested(&mut self, name: &str, verdict: Verdict) {
        if let Some((_, tests)) = self.runs.last_mut() {
            tests.insert(name.to_owned(), verdict);
        }
    }

    fn skipped(&mut self, why: &str) {
        let tests = self.runs.last_mut().map(|(_, tests)| tests);
        if let Some((test, tests)) = self.test.as_ref().zip(tests)
            && let Some(verdict) = tests.get_mut(test)
            && *verdict == Verdict::Passed
        {
            *verdict = Verdict::Skipped(why.to_owned());
        }
    }
}

/// `---- NAME stdout ----`: what a test has printed follows.
fn told_by(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// `    NAME`, in a list of tests.
fn listed(line: &str) -> Option<&str> {
    let name = line.strip_prefix("    ")?;
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

/// `test NAME ... ok`; what a test itself prints may stand between.
fn tested(line: &str) -> Option<(&str, Verdict)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    match rest.trim() {
        "ok" => Some((name, Verdict::Passed)),
        "FAILED" => Some((name, Verdict::Failed)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_skips_itself_did_not_pass() {
        let mut console = Console::default();
        for line in [
            "Booting\u{1b}[0mvm: run requests kprobe",
            "test a::b ... ok",
            "test c ... ok",
            "test d ... FAILED",
            "test e ... said by a child of its",
            "FAILED",
            "successes:",
            "---- a::b stdout ----",
            "skipped: no such thing",
            "---- c stdout ----",
            "put back",
            "failures:",
            "    e",
            "test result: FAILED. 2 passed; 1 failed",
            "skipped: said by nobody",
            "vm: run requests, fexit",
            "vm: none: tier fexit: no such hook",
            "vm: done",
        ] {
            console.read(line);
        }
        let (name, run) = &console.runs[0];
        assert_eq!(name, "requests kprobe");
        assert_eq!(run["a::b"], Verdict::Skipped("no such thing".to_owned()));
        assert_eq!((&run["c"], &run["d"]), (&Verdict::Passed, &Verdict::Failed));
        assert_eq!(run["e"], Verdict::Failed);
        let none = Verdict::Unsupported("tier fexit: no such hook".to_owned());
        assert_eq!(console.runs[1].1["all"], none);
        assert!(console.done);
    }
}
