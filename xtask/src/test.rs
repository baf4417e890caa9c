//! Everything that must hold, on a machine with no GPU: formatting, lints, host tests, accuracy
//! against known truth, root tests on the running kernel, and the demo's bars. What is skipped is named,
//! and so is every test that passed only when it was tried again.

mod aarch64;
mod tries;

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use self::tries::Tries;
use crate::project::{cargo, is_root, run as run_command, target};
use crate::{accuracy, demo, dist, python, setup, vm};

/// Debian packages that give the real servers and tools the tests use.
const PACKAGES: &[(&str, &str)] = &[
    ("promtool", "prometheus"),
    ("victoria-metrics", "victoria-metrics"),
    ("prometheus-node-exporter", "prometheus-node-exporter"),
    ("curl", "curl"),
    ("nginx", "nginx-light"),
    ("node", "nodejs"),
    ("python3", "python3"),
    ("wrk", "wrk"),
    ("strace", "strace"),
    ("sqlite3", "sqlite3"),
    ("perf", "linux-perf"),
    ("runqlat", "libbpf-tools"),
];
/// Tests that cannot run without a package, by parts of their names.
const NEED: &[(&str, &[&str])] = &[
    (
        "prometheus",
        &[
            "promtool",
            "prometheus",
            "every_expression",
            "each_alert",
            "scrape_under",
        ],
    ),
    ("victoria-metrics", &["victoria"]),
    ("sqlite3", &["every_command_that_needs_root"]),
];

/// Mean batches of about 3, 8 and 22, and what the errors of the energy per request may be.
const DEMO_BARS: &[demo::Bars] = &[
    demo::Bars {
        rate: 1.0,
        median: 0.03,
        p95: 0.12,
    },
    demo::Bars {
        rate: 2.5,
        median: 0.03,
        p95: 0.12,
    },
    demo::Bars {
        rate: 5.0,
        median: 0.05,
        p95: 0.20,
    },
];

/// `cargo xtask test`.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let mut skipped = Vec::new();
    let mut tries = Tries::default();
    setup::ensure()?;
    let missing = setup::ensure_packages(PACKAGES);
    let mut arguments = Vec::new();
    for (package, names) in NEED {
        if missing.contains(package) {
            arguments.extend(names.iter().flat_map(|name| ["--skip", name]));
        }
    }
    if !missing.is_empty() {
        skipped.push(format!(
            "tests that need the packages {}",
            missing.join(", ")
        ));
    }
    if let Err(error) = python::ensure("python", "tests/end-to-end/servers/requirements.txt") {
        skipped.push(format!("tests of Python's servers: {error:#}"));
    }
    // Tests that skip themselves write why to the first file; the real-server tests write what
    // they measured to the second.
    let (notes, table) = (target("test-skipped"), target("test-servers"));
    for file in [&notes, &table] {
        if file.exists() {
            fs::remove_file(file)?;
        }
    }

    step("format", || {
        run_command(cargo().args(["fmt", "--all", "--check"]))
    })?;
    step("lints", || {
        run_command(
            cargo()
                .args(["clippy", "--workspace", "--all-targets", "--quiet"])
                .args(["--", "--deny", "warnings"]),
        )
    })?;
    match aarch64::ensure() {
        Ok(()) => step("compile for 64-bit ARM", aarch64::check)?,
        Err(error) => skipped.push(format!("to compile for 64-bit ARM: {error:#}")),
    }
    step("packaging", || {
        skipped.extend(dist::check()?);
        Ok(())
    })?;
    step("host tests", || {
        tries.run(&|| {
            let mut command = cargo();
            command
                .args(["test", "--workspace", "--exclude", "end-to-end"])
                .args(["--no-fail-fast", "--"])
                .args(&arguments);
            command
        })
    })?;
    step("build what users run", demo::build)?;
    step("accuracy against known truth", accuracy::check)?;
    step("gpu-check on the simulated GPU", || {
        tries.run(&|| {
            let mut command = cargo();
            command
                .args(["test", "--package", "xtask", "--test", "gpu_check", "--"])
                .env("PERJOULE_TEST_BINARIES", target("release"));
            command
        })
    })?;

    if is_root() {
        step("root tests", || {
            tries.run(&|| {
                let mut command = cargo();
                command
                    .args(["test", "--package", "end-to-end", "--no-fail-fast"])
                    .args(["--", "--test-threads=1"])
                    .args(&arguments)
                    .env("PERJOULE_TEST_BINARIES", target("release"))
                    .env("PERJOULE_TEST_SKIPPED", &notes)
                    .env("PERJOULE_TEST_TABLE", &table);
                command
            })
        })?;
        // The other tier that every kernel since 6.3 offers; `cargo xtask vm` has the rest.
        step("request tests on the last tier", || {
            tries.run(&|| {
                let mut command = cargo();
                command
                    .args(["test", "--package", "end-to-end", "--test", "requests"])
                    .args(["--no-fail-fast", "--", "--test-threads=1"])
                    .env("PERJOULE_REQUEST_TIER", "raw_tp")
                    .env("PERJOULE_TEST_BINARIES", target("release"))
                    .env("PERJOULE_TEST_SKIPPED", &notes);
                command
            })
        })?;
        print!("{}", fs::read_to_string(&table).unwrap_or_default());
        match vm::other_kernels() {
            Ok(kernels) => step("probe tests on other kernels, emulated", || {
                tries.note(kernels.check()?);
                Ok(())
            })?,
            Err(error) => skipped.push(format!("probe tests on other kernels: {error:#}")),
        }
        for bars in DEMO_BARS {
            step(&format!("demo at {} requests/s", bars.rate), || {
                demo::check(bars)
            })?;
        }
    } else {
        skipped.push("root tests and the demo: not root".to_owned());
    }

    println!(
        "\nall steps passed in {:.0} min",
        start.elapsed().as_secs_f64() / 60.0
    );
    let notes = fs::read_to_string(&notes).unwrap_or_default();
    skipped.extend(notes.lines().map(str::to_owned));
    for what in skipped {
        println!("skipped: {what}");
    }
    for name in tries.passed_later() {
        println!("passed at the second try: {name}");
    }
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let start = Instant::now();
    work().with_context(|| format!("step `{name}`"))?;
    println!("== {name}: ok, {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
