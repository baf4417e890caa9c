//! The virtual environment with Python's servers: `target/python`, made from
//! `tests/end-to-end/servers/requirements.txt` and made again when that changes.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::project::{root, run, target};
use crate::setup;

/// Beside what was installed: what it was installed from.
const RECORD: &str = "python/requirements.txt";

/// Makes it if it is missing or old.
pub(super) fn ensure() -> Result<()> {
    let requirements = root().join("tests/end-to-end/servers/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    if fs::read_to_string(target(RECORD)).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    println!("setup: getting Python's servers");
    let folder = target("python");
    let make = || {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder))
    };
    // Debian's Python cannot make one without a further package.
    make().or_else(|_| setup::apt_install(&["python3-venv"]).and_then(|()| make()))?;
    run(Command::new(folder.join("bin/pip"))
        .args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .arg(&requirements))
    .context("pip could not install them")?;
    Ok(fs::write(target(RECORD), wanted)?)
}
