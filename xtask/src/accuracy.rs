//! The ledger's figures beside known truth, offline: `tests/accuracy` drives it with simulated
//! engines, writes `docs/accuracy.md`, and fails where a ceiling is exceeded.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::demo;
use crate::project::{root, run as run_command, target};

/// `cargo xtask accuracy`'s options.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Begin at this seed instead, and write nothing: are others as good?
    #[arg(long, value_name = "SEED")]
    first_seed: Option<u64>,
}

/// `cargo xtask accuracy`.
pub(crate) fn run(options: &Options) -> Result<()> {
    demo::build()?;
    let mut command = Command::new(target("release/accuracy"));
    match options.first_seed {
        Some(seed) => command.args(["--first-seed", &seed.to_string()]),
        None => command.arg("--write").arg(root().join("docs/accuracy.md")),
    };
    run_command(&mut command)
}

/// The same, written nowhere.
pub(crate) fn check() -> Result<()> {
    demo::build()?;
    run_command(&mut Command::new(target("release/accuracy")))
}
