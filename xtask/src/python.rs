//! Virtual environments of Python below `target/`: made from a list of packages, and made again when that
//! changes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::project::{root, run, target};
use crate::setup;

/// Makes the environment `target/NAME` of the packages in `requirements`, a file of the checkout, if it is missing
/// or old; returns its folder of programs.
pub(crate) fn ensure(name: &str, requirements: &str) -> Result<PathBuf> {
    let folder = target(name);
    let programs = folder.join("bin");
    // Beside what was installed: what it was installed from.
    let record = folder.join("requirements.txt");
    let requirements = root().join(requirements);
    let wanted = fs::read_to_string(&requirements)?;
    if fs::read_to_string(&record).is_ok_and(|made| made == wanted) {
        return Ok(programs);
    }
    println!(
        "setup: getting Python's packages of {}",
        requirements.display()
    );
    let make = || {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder))
    };
    // Debian's Python cannot make one without a further package.
    make().or_else(|_| setup::apt_install(&["python3-venv"]).and_then(|()| make()))?;
    run(Command::new(programs.join("pip"))
        .args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .arg(&requirements))
    .context("pip could not install them")?;
    fs::write(record, wanted)?;
    Ok(programs)
}
