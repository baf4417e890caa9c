//! What can be said of packaging's files without a build: each against what its own tools say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{VERSION, chart};
use crate::project::{cargo, find_on_path, output, root, run, target};
use crate::python;

/// `systemd-analyze security`'s exposure of the unit, in tenths: above it, something was opened.
const EXPOSURE: u32 = 27;

/// All of it; returns what could not be checked here, and why.
pub(super) fn all() -> Result<Vec<String>> {
    let mut skipped = Vec::new();
    versions()?;
    licences()?;
    scripts()?;
    skipped.extend(dependencies()?);
    match find_on_path("systemd-analyze") {
        Some(_) => units()?,
        None => skipped.push("the unit: no systemd-analyze".to_owned()),
    }
    match environment() {
        Ok(programs) => {
            chart::check()?;
            compose(&programs)?;
            run(
                Command::new(programs.join("hadolint")).arg(root().join("packaging/Containerfile"))
            )?;
        }
        Err(error) => skipped.push(format!("chart, compose file, Containerfile: {error:#}")),
    }
    Ok(skipped)
}

/// Python's tools for charts, manifests and compose files.
pub(super) fn environment() -> Result<PathBuf> {
    python::ensure("packaging-python", "packaging/requirements.txt")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// One version, wherever it is named.
fn versions() -> Result<()> {
    let image = format!("perjoule:{VERSION}");
    for (path, wanted) in [
        (
            "packaging/helm/perjoule/Chart.yaml",
            format!("\nversion: {VERSION}\n"),
        ),
        (
            "packaging/helm/perjoule/Chart.yaml",
            format!("\nappVersion: {VERSION}\n"),
        ),
        ("packaging/compose/compose.yaml", image.clone()),
        ("packaging/Containerfile", image),
    ] {
        ensure!(
            read(path)?.contains(&wanted),
            "{path} does not name the workspace's version ({})",
            wanted.trim()
        );
    }
    Ok(())
}

/// The same licences may be linked in as deny.toml lets in.
fn licences() -> Result<()> {
    let listed = |text: &str, key: &str| -> Option<Vec<String>> {
        let (_, list) = text.split_once(&format!("{key} = ["))?;
        let (list, _) = list.split_once(']')?;
        Some(
            list.split('"')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
        )
    };
    let (deny, about) = (read("deny.toml")?, read("packaging/about.toml")?);
    ensure!(
        listed(&deny, "allow").is_some_and(|list| Some(list) == listed(&about, "accepted")),
        "packaging/about.toml accepts other licences than deny.toml allows"
    );
    Ok(())
}

/// Licences, doubles and sources of what is linked in, and what is known against it; returns what could not be
/// checked here.
fn dependencies() -> Result<Option<String>> {
    if find_on_path("cargo-deny").is_none() {
        return Ok(Some(
            "cargo deny: not installed (cargo install cargo-deny)".to_owned(),
        ));
    }
    let deny = |arguments: &[&str]| {
        let mut command = cargo();
        command
            .args(["deny", "--log-level", "error"])
            .args(arguments);
        command
    };
    run(&mut deny(&["check", "licenses", "bans", "sources"]))?;
    // The database is in a git repository.
    if !deny(&["fetch", "db"]).output()?.status.success() {
        return Ok(Some(
            "cargo deny check advisories: their database cannot be fetched".to_owned(),
        ));
    }
    run(&mut deny(&["check", "advisories"]))?;
    Ok(None)
}

/// Shells understand what runs as root on other people's machines.
fn scripts() -> Result<()> {
    for script in ["debian/postrm", "rpm/post", "rpm/preun", "rpm/postun"] {
        run(Command::new("sh")
            .arg("-n")
            .arg(root().join("packaging").join(script)))?;
    }
    Ok(())
}

/// systemd understands the unit, alone and with each drop-in, and finds it as closed as it was.
fn units() -> Result<()> {
    let folder = target("packaging");
    fs::create_dir_all(&folder)?;
    let unit = read("packaging/systemd/perjoule.service")?;
    // The program is not installed here.
    let runnable = unit.replace("/usr/bin/perjoule", "/bin/true");
    let mut drop_ins = vec![None];
    for entry in fs::read_dir(root().join("packaging/systemd/examples"))? {
        drop_ins.push(Some(fs::read_to_string(entry?.path())?));
    }
    for drop_in in drop_ins {
        let path = folder.join("perjoule.service");
        fs::write(&path, runnable.clone() + &drop_in.unwrap_or_default())?;
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()?;
        let told = String::from_utf8_lossy(&verified.stderr);
        ensure!(
            verified.status.success() && told.trim().is_empty(),
            "systemd-analyze verify: {told}"
        );
    }
    exposed(&root().join("packaging/systemd/perjoule.service"))
}

fn exposed(unit: &Path) -> Result<()> {
    let threshold = format!("--threshold={EXPOSURE}");
    let unit = unit.to_string_lossy();
    output(
        "systemd-analyze",
        &[
            "security",
            "--offline=true",
            "--no-pager",
            &threshold,
            &unit,
        ],
    )
    .with_context(|| {
        format!("systemd-analyze security finds the unit more exposed than {EXPOSURE} tenths")
    })?;
    Ok(())
}

fn compose(programs: &Path) -> Result<()> {
    let check = || Command::new(programs.join("check-jsonschema"));
    let packaging = root().join("packaging");
    run(check()
        .args(["--quiet", "--builtin-schema", "vendor.compose-spec"])
        .arg(packaging.join("compose/compose.yaml"))
        .arg(packaging.join("compose/compose.gpu.yaml")))?;
    run(check()
        .args(["--quiet", "--check-metaschema"])
        .arg(packaging.join("helm/perjoule/values.schema.json")))
}
