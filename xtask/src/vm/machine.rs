//! One emulated machine: booted, and what its tests say on its console.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::project::target;

/// The longest test takes some minutes; a machine that says nothing for longer has stopped.
const PATIENCE: Duration = Duration::from_secs(900);

/// Without the copying instructions that are emulated byte by byte: the verifier, which copies its
/// states, takes half the time.
const CPU: &str = "max,-erms,-fsrm,-la57";

/// What became of a test.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// In whole or in part, and why.
    Skipped(String),
    Failed,
}

/// Verdicts by run (tests and tier) and test.
pub(super) type Verdicts = BTreeMap<String, BTreeMap<String, Verdict>>;

/// Boots the kernel and reads what the tests say; all of it is kept in `target/vm/console-VERSION`.
pub(super) fn boot(
    kernel: &Path,
    archive: &Path,
    version: &str,
    expected: &str,
) -> Result<Verdicts> {
    let start = Instant::now();
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", CPU])
        .args(["-m", "2048M", "-smp", "2", "-nic", "none"])
        .args(["-no-reboot", "-nographic"])
        .args(["-append", "console=ttyS0 panic=-1 loglevel=3 rdinit=/init"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(archive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Machine)
        .context("qemu-system-x86_64")?;
    let output = machine.0.stdout.take().context("the console")?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut log = File::create(target("vm").join(format!("console-{version}")))?;
    let mut console = Console::default();
    loop {
        match told.recv_timeout(PATIENCE) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                writeln!(log, "{line}")?;
                if let Some(shown) = console.read(&line) {
                    println!(
                        "{version:<5}{:>5.0} s  {shown}",
                        start.elapsed().as_secs_f64()
                    );
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("it says nothing any more; see target/vm/console-{version}")
            }
        }
    }
    if !console.done {
        bail!("it did not come to its end; see target/vm/console-{version}");
    }
    let expected = format!("chosen: tier {expected}");
    if let Some(chosen) = console.chosen {
        ensure!(chosen.contains(&expected), "not {expected}: {chosen}");
    }
    Ok(console.verdicts)
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
    verdicts: Verdicts,
    run: String,
    /// The test whose output follows.
    test: Option<String>,
    chosen: Option<String>,
    done: bool,
}

impl Console {
    /// Takes a line in; returns what of it a person wants to see now.
    fn read(&mut self, line: &str) -> Option<String> {
        // Behind what the firmware leaves on the line.
        if let Some((_, run)) = line.split_once("vm: run ") {
            run.clone_into(&mut self.run);
            self.test = None;
            return Some(format!("-- {run}"));
        }
        if line == "vm: done" {
            self.done = true;
        } else if let Some(why) = line.strip_prefix("vm: none: ") {
            let tests = self.verdicts.entry(self.run.clone()).or_default();
            tests.insert("all".to_owned(), Verdict::Skipped(why.to_owned()));
        } else if line.contains("chosen: tier ") {
            self.chosen.get_or_insert_with(|| line.to_owned());
        } else if let Some(name) = told_by(line) {
            self.test = Some(name.to_owned());
        } else if line.starts_with("test result: ") {
            self.test = None;
        } else if let Some((name, outcome)) = tested(line) {
            let tests = self.verdicts.entry(self.run.clone()).or_default();
            let failed = outcome == Verdict::Failed;
            tests.insert(name.to_owned(), outcome);
            return failed.then(|| format!("FAILED {name}"));
        } else if let Some(why) = line.strip_prefix("skipped: ") {
            self.skipped(why);
        }
        None
    }

    fn skipped(&mut self, why: &str) {
        let test = self.test.as_ref();
        let tests = self.verdicts.entry(self.run.clone()).or_default();
        if let Some(verdict) = test.and_then(|test| tests.get_mut(test))
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
            "successes:",
            "---- a::b stdout ----",
            "skipped: no such thing",
            "---- c stdout ----",
            "put back",
            "test result: FAILED. 2 passed; 1 failed",
            "skipped: said by nobody",
            "vm: done",
        ] {
            console.read(line);
        }
        let run = &console.verdicts["requests kprobe"];
        assert_eq!(run["a::b"], Verdict::Skipped("no such thing".to_owned()));
        assert_eq!((&run["c"], &run["d"]), (&Verdict::Passed, &Verdict::Failed));
        assert!(console.done);
    }
}
