//! What the packages are made of, in `target/dist/stage`: the program and its debugging information, manual pages,
//! completions, the licences of what is linked in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{VERSION, dist};
use crate::project::{cargo, output, root, run, target};
use crate::setup;

/// Fills it anew; returns where it is.
pub(super) fn fill(binary: &Path, epoch: &str) -> Result<PathBuf> {
    if dist().exists() {
        fs::remove_dir_all(dist())?;
    }
    let stage = dist().join("stage");
    fs::create_dir_all(&stage)?;
    split(binary, &stage)?;

    println!("dist: manual pages, completions, licences");
    run(cargo()
        .args(["run", "--quiet", "--locked", "--package", "profiler"])
        .args(["--example", "manual", "--"])
        .arg(&stage)
        .arg(date(epoch, "+%Y-%m-%d")?))?;
    for page in fs::read_dir(stage.join("man"))? {
        run(Command::new("gzip").args(["-9", "-n"]).arg(page?.path()))?;
    }
    run(tool("about")?
        // Texts are those in the crates: no server is asked.
        .args(["generate", "--locked", "--offline", "--fail", "--config"])
        .arg(root().join("packaging/about.toml"))
        .arg("--manifest-path")
        .arg(root().join("profiler/Cargo.toml"))
        .arg("--output-file")
        .arg(stage.join("THIRD-PARTY.html"))
        .arg(root().join("packaging/about.hbs")))?;
    fs::write(stage.join("changelog.Debian"), changelog(epoch)?)?;
    Ok(stage)
}

/// A subcommand of cargo's from `target/tools`.
pub(super) fn tool(name: &str) -> Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        std::iter::once(target("tools/bin")).chain(std::env::split_paths(&path)),
    )?;
    let mut command = cargo();
    command.arg(name).env("PATH", path);
    Ok(command)
}

/// Takes the debugging information out of the program, into a file beside that debuggers find.
fn split(binary: &Path, stage: &Path) -> Result<()> {
    if !setup::ensure_packages(&[("objcopy", "binutils")]).is_empty() {
        bail!("objcopy (package binutils) is missing");
    }
    let (program, debug) = (stage.join("perjoule"), stage.join("perjoule.debug"));
    run(Command::new("objcopy")
        .args(["--only-keep-debug", "--compress-debug-sections"])
        .arg(binary)
        .arg(&debug))?;
    run(Command::new("objcopy")
        .arg("--strip-all")
        .arg("--add-gnu-debuglink=perjoule.debug")
        .current_dir(stage)
        .arg(binary)
        .arg(&program))
}

/// What Debian wants beside CHANGELOG.md, which tells it all.
fn changelog(epoch: &str) -> Result<String> {
    Ok(format!(
        "perjoule ({VERSION}-1) unstable; urgency=medium\n\n  \
         * New upstream version; its CHANGELOG.md says what is new.\n\n \
         -- The perjoule authors <perjoule@localhost>  {}\n",
        date(epoch, "-R")?
    ))
}

fn date(epoch: &str, form: &str) -> Result<String> {
    let told = output("date", &["-u", &format!("--date=@{epoch}"), form]);
    Ok(told.context("date")?.trim().to_owned())
}
