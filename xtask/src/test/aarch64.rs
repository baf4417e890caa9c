//! The agent and its kernel side compile for 64-bit ARM (Grace hosts). Nothing of it is run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::project::{cargo, run};
use crate::setup;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// A C compiler for SQLite, and what it includes.
const PACKAGES: &[&str] = &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
const INSTALLED: [&str; 2] = [
    "/usr/bin/aarch64-linux-gnu-gcc",
    "/usr/aarch64-linux-gnu/include/stdio.h",
];

/// Gets the standard library and the C compiler, if they are missing.
pub(super) fn ensure() -> Result<()> {
    run(Command::new("rustup").args(["target", "add", TARGET]))
        .context("no standard library for 64-bit ARM")?;
    if INSTALLED.iter().all(|file| Path::new(file).exists()) {
        return Ok(());
    }
    setup::apt_install(PACKAGES)
}

/// Checks the agent's code and builds the kernel side.
pub(super) fn check() -> Result<()> {
    run(cargo()
        .args(["check", "--quiet", "--package", "profiler", "--target"])
        .arg(TARGET))
}
