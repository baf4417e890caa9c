//! What is shipped. `cargo xtask dist` makes it in `target/dist`; `--check` holds the files of `packaging/` against
//! what validates them, and installs what was made; `--write` renders the plain manifests from the chart.

mod build;
mod chart;
mod check;
mod debian;
mod packages;
mod stage;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::project::{cargo, output, root, run as run_command, target};
use crate::setup;

/// What the user may ask of it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Make nothing: validate units, chart, manifests and compose file, and, as root, install and purge the .deb of
    /// an earlier run in a Debian of its own
    #[arg(long, conflicts_with = "write")]
    check: bool,
    /// Make nothing: write packaging/kubernetes from the chart
    #[arg(long)]
    write: bool,
    /// Pack this program instead of building one: of a machine with an older glibc, for example
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check", "write"])]
    binary: Option<PathBuf>,
}

/// Of every crate of the workspace, this one among them.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The packages' makers, the bill of materials, others' licences: name, version, features beside the default ones.
const TOOLS: &[(&str, &str, &str)] = &[
    ("cargo-deb", "3.8.0", ""),
    ("cargo-generate-rpm", "0.21.1", ""),
    ("cargo-cyclonedx", "0.5.9", ""),
    ("cargo-about", "0.9.3", "cli"),
];

/// `cargo xtask dist`.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.write {
        return chart::write();
    }
    if options.check {
        let mut skipped = check()?;
        skipped.extend(debian::check()?);
        for what in skipped {
            println!("skipped: {what}");
        }
        return Ok(());
    }
    setup::ensure()?;
    ensure_tools()?;
    let epoch = epoch()?;
    let binary = match &options.binary {
        Some(binary) => binary
            .canonicalize()
            .with_context(|| binary.display().to_string())?,
        None => build::binary()?,
    };
    let stage = stage::fill(&binary, &epoch)?;
    packages::make(&stage, &epoch)?;
    println!("dist: made in {}", dist().display());
    Ok(())
}

/// What needs neither a build nor root; returns what could not be checked here, and why.
pub(crate) fn check() -> Result<Vec<String>> {
    check::all()
}

/// Where it all goes.
fn dist() -> PathBuf {
    target("dist")
}

/// The time that is written into what is made: that of the last commit, so that two builds of it are the same.
fn epoch() -> Result<String> {
    let root = root();
    let time = output(
        "git",
        &["-C", &root.to_string_lossy(), "log", "-1", "--format=%ct"],
    )
    .context("git log: not a checkout?")?;
    Ok(time.trim().to_owned())
}

/// Builds those that are missing into `target/tools` (minutes).
fn ensure_tools() -> Result<()> {
    let there = cargo()
        .args(["install", "--list", "--root"])
        .arg(target("tools"))
        .output()?;
    let there = String::from_utf8(there.stdout)?;
    for (name, version, features) in TOOLS {
        if !there.contains(&format!("{name} v{version}:")) {
            println!("setup: building {name} {version}");
            run_command(setup::cargo_install(name, version).args(["--features", features]))?;
        }
    }
    Ok(())
}
