//! A test that fails is tried once more, alone: on a machine that others share, a test of times
//! may fail for theirs. Who passes only then is named; who fails twice has failed.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::project;

/// What had to be tried again so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    passed_later: Vec<String>,
}

impl Tries {
    /// Runs a `cargo test` that ends in arguments for the tests, and again for those that failed.
    pub(super) fn run(&mut self, command: &dyn Fn() -> Command) -> Result<()> {
        let (result, failed) = watch(&mut command())?;
        if result.is_ok() || failed.is_empty() {
            return result;
        }
        println!("\n== once more: {}", list(&failed));
        project::run(command().arg("--exact").args(&failed))?;
        self.passed_later.extend(failed);
        Ok(())
    }

    /// Tests that were tried again elsewhere, and passed.
    pub(super) fn note(&mut self, names: Vec<String>) {
        self.passed_later.extend(names);
    }

    /// The tests that failed at first.
    pub(super) fn passed_later(&self) -> &[String] {
        &self.passed_later
    }
}

/// Runs to the end, its output passed on; the names of the tests that failed.
fn watch(command: &mut Command) -> Result<(Result<()>, BTreeSet<String>)> {
    let shown = project::shown(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start: {shown}"))?;
    let mut failed = BTreeSet::new();
    for line in BufReader::new(child.stdout.take().context("no stdout")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        failed.extend(failed_test(&line).map(str::to_owned));
    }
    let status = child.wait()?;
    Ok((project::check(status, &shown), failed))
}

/// The test that a line of libtest's says has failed.
fn failed_test(line: &str) -> Option<&str> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(name.strip_suffix(" - should panic").unwrap_or(name))
}

fn list(names: &BTreeSet<String>) -> String {
    names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        command
    }

    #[test]
    fn the_failed_tests_are_run_again_alone_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let again = folder.path().join("again");
        // At first two of three tests fail; then it is called with their names and passes.
        let script = format!(
            "if [ $# -gt 0 ]; then echo \"$@\" > {}; exit 0; fi\n\
             echo 'test a::quick ... ok'; echo 'test b::slow ... FAILED'; \
             echo 'test c - should panic ... FAILED'; exit 101",
            again.display()
        );
        let mut tries = Tries::default();
        tries.run(&|| shell(&script)).unwrap();
        assert_eq!(tries.passed_later(), ["b::slow", "c"]);
        assert_eq!(
            std::fs::read_to_string(again).unwrap(),
            "--exact b::slow c\n"
        );
    }

    #[test]
    fn who_fails_twice_has_failed() {
        let mut tries = Tries::default();
        let error = tries.run(&|| shell("echo 'test b ... FAILED'; exit 101"));
        assert!(error.unwrap_err().to_string().contains("101"));
        assert!(tries.passed_later().is_empty());
    }

    #[test]
    fn what_does_not_even_build_is_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let calls = folder.path().join("calls");
        let script = format!("echo called >> {}; exit 101", calls.display());
        let mut tries = Tries::default();
        assert!(tries.run(&|| shell(&script)).is_err());
        assert_eq!(std::fs::read_to_string(calls).unwrap(), "called\n");
    }
}
