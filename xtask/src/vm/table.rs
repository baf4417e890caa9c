//! `docs/kernels.md`: what the tests saw on each kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;

use super::machine::{Told, Verdict};
use crate::project::today;

const INTRODUCTION: &str = "\
# The probes on three kernels

Written by `cargo xtask vm --write`: the same tests on the running kernel and on Debian's cloud kernels in emulation
(QEMU without KVM). Each test loads its programs, makes what they must see happen, and compares. *Unsupported*: the
kernel lacks the hook, and the agent says so. *Skipped*: a test, or a part of it, did not run there. Times under
emulation mean little, so tests of times are given ten times as long there.
";

/// The page.
pub(super) fn page(all: &[Told]) -> Result<String> {
    let date = today()?;
    let mut page = format!("{INTRODUCTION}\n{}, x86-64.\n\n", date);
    let kernels: Vec<&str> = all.iter().map(|told| told.release.as_str()).collect();
    writeln!(page, "| tests | {} |", kernels.join(" | "))?;
    writeln!(page, "|---|{}", "---|".repeat(kernels.len()))?;
    let mut runs: Vec<&str> = Vec::new();
    for (run, _) in all.iter().flat_map(|told| &told.runs) {
        if !runs.contains(&run.as_str()) {
            runs.push(run);
        }
    }
    for run in runs {
        write!(page, "| {run} |")?;
        for told in all {
            let tests = told.runs.iter().find(|(name, _)| name == run);
            write!(page, " {} |", cell(tests.map(|(_, tests)| tests)))?;
        }
        writeln!(page)?;
    }
    let notes = notes(all);
    if !notes.is_empty() {
        writeln!(
            page,
            "\nWhat did not run, or not in whole:\n\n{}",
            notes.trim_end()
        )?;
    }
    Ok(page)
}

fn cell(tests: Option<&BTreeMap<String, Verdict>>) -> String {
    let Some(tests) = tests else {
        return "–".to_owned();
    };
    if tests
        .values()
        .any(|it| matches!(it, Verdict::Unsupported(_)))
    {
        return "unsupported".to_owned();
    }
    let count = |is: fn(&Verdict) -> bool| tests.values().filter(|it| is(it)).count();
    let counts = [
        (count(|it| *it == Verdict::Passed), "ok"),
        (count(|it| matches!(it, Verdict::Skipped(_))), "skipped"),
        (
            count(|it| *it == Verdict::PassedLater),
            "ok at a second try",
        ),
        (count(|it| *it == Verdict::Failed), "**failed**"),
    ];
    let parts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    parts.join(", ")
}

/// One line for each reason and kernel.
fn notes(all: &[Told]) -> String {
    let mut notes = String::new();
    for told in all {
        let mut reasons: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
        for (run, tests) in &told.runs {
            for (test, verdict) in tests {
                let (what, why) = match verdict {
                    Verdict::Passed => continue,
                    Verdict::Skipped(why) => (format!("`{test}`"), why.as_str()),
                    Verdict::Unsupported(why) => ("unsupported".to_owned(), why.as_str()),
                    Verdict::PassedLater => (
                        format!("`{test}`"),
                        "failed, and passed when run once more, alone",
                    ),
                    Verdict::Failed => (format!("`{test}`"), "failed"),
                };
                reasons.entry((why, what)).or_default().push(run);
            }
        }
        for ((why, what), runs) in reasons {
            // Writing to a string cannot fail.
            let _ = writeln!(
                notes,
                "- {}: {}: {what}: {why}",
                told.release,
                runs.join("; ")
            );
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(release: &str, runs: &[(&str, &[(&str, Verdict)])]) -> Told {
        let run = |(name, tests): &(&str, &[(&str, Verdict)])| {
            let tests = tests.iter();
            let tests = tests.map(|(test, verdict)| ((*test).to_owned(), verdict.clone()));
            ((*name).to_owned(), tests.collect())
        };
        Told {
            release: release.to_owned(),
            chosen: None,
            runs: runs.iter().map(run).collect(),
        }
    }

    #[test]
    fn what_a_kernel_lacks_and_what_did_not_run_are_told_apart() {
        let old = told(
            "6.1.0",
            &[
                ("sched", &[("a", Verdict::Passed), ("b", Verdict::Passed)]),
                (
                    "requests, tp_btf",
                    &[("all", Verdict::Unsupported("no hook".to_owned()))],
                ),
            ],
        );
        let new = told(
            "6.18.0",
            &[
                (
                    "sched",
                    &[
                        ("a", Verdict::Skipped("one CPU".to_owned())),
                        ("b", Verdict::Failed),
                    ],
                ),
                ("requests, tp_btf", &[("c", Verdict::Passed)]),
            ],
        );
        let page = page(&[old, new]).unwrap();
        for line in [
            "| tests | 6.1.0 | 6.18.0 |",
            "| sched | 2 ok | 1 skipped, 1 **failed** |",
            "| requests, tp_btf | unsupported | 1 ok |",
            "- 6.1.0: requests, tp_btf: unsupported: no hook",
            "- 6.18.0: sched: `a`: one CPU",
        ] {
            assert!(page.lines().any(|it| it == line), "{line}\n{page}");
        }
    }
}
