//! From the stage to what is downloaded: the archive, the .deb, the .rpm, the chart, the image's folder, the bill of
//! materials, and the sums of all.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::stage::tool;
use super::{VERSION, dist};
use crate::project::{output, root, run};

/// Makes all of them.
pub(super) fn make(stage: &Path, epoch: &str) -> Result<()> {
    println!("dist: .deb and .rpm");
    run(tool("deb")?
        .args(["--no-build", "--no-strip", "--locked", "--quiet"])
        .args(["--package", "profiler", "--output"])
        .arg(dist())
        .env("SOURCE_DATE_EPOCH", epoch))?;
    run(tool("generate-rpm")?
        .args(["--package", "profiler", "--source-date", epoch])
        // What rpm's own script would find depends on whether the machine has it.
        .args(["--auto-req", "builtin", "--output"])
        .arg(dist()))?;
    println!("dist: archive, chart, image, bill of materials");
    archive(stage, epoch)?;
    chart(epoch)?;
    image(stage)?;
    materials(epoch)?;
    sums()
}

/// For machines with neither package manager.
fn archive(stage: &Path, epoch: &str) -> Result<()> {
    let name = format!("perjoule-{VERSION}-{}-linux", std::env::consts::ARCH);
    let folder = dist().join(&name);
    fs::create_dir_all(&folder)?;
    copy(
        &folder,
        &[
            &stage.join("perjoule"),
            &stage.join("man"),
            &stage.join("completions"),
            &stage.join("THIRD-PARTY.html"),
            &root().join("packaging/systemd"),
            &root().join("packaging/perjoule.toml"),
            &root().join("dashboards"),
            &root().join("LICENSE-MIT"),
            &root().join("LICENSE-APACHE"),
            &root().join("README.md"),
            &root().join("CHANGELOG.md"),
        ],
    )?;
    tar(&format!("{name}.tar.gz"), &dist(), &name, epoch, &[])?;
    fs::remove_dir_all(folder)?;
    let debug = format!("{name}-debug.tar.gz");
    tar(&debug, stage, "perjoule.debug", epoch, &[])
}

/// As `helm package` would: the dashboards, a link in the checkout, are files in it.
fn chart(epoch: &str) -> Result<()> {
    tar(
        &format!("perjoule-chart-{VERSION}.tgz"),
        &root().join("packaging/helm"),
        "perjoule",
        epoch,
        &[
            "--dereference",
            "--exclude=*.test.yaml",
            "--exclude=provisioning",
        ],
    )
}

/// The folder that packaging/Containerfile is built in.
fn image(stage: &Path) -> Result<()> {
    let folder = dist().join("image");
    let licences = folder.join("licences");
    fs::create_dir_all(&licences)?;
    copy(&folder, &[&stage.join("perjoule")])?;
    copy(
        &licences,
        &[
            &stage.join("THIRD-PARTY.html"),
            &root().join("LICENSE-MIT"),
            &root().join("LICENSE-APACHE"),
        ],
    )
}

/// CycloneDX. The tool writes one beside every manifest of the workspace: the program's is taken, the rest go.
fn materials(epoch: &str) -> Result<()> {
    run(tool("cyclonedx")?
        .args(["--manifest-path", "profiler/Cargo.toml", "--format", "json"])
        .args(["--spec-version", "1.5", "--quiet"])
        .args(["--override-filename", "perjoule.cdx"])
        .env("SOURCE_DATE_EPOCH", epoch))?;
    let told = fs::read_to_string(root().join("profiler/perjoule.cdx.json"))
        .context("cargo cyclonedx wrote nothing for the program")?;
    let place = root().canonicalize()?;
    let named = format!("/usr/src/perjoule-{VERSION}");
    fs::write(
        dist().join(format!("perjoule-{VERSION}.cdx.json")),
        told.replace(&*place.to_string_lossy(), &named),
    )?;
    let written = output(
        "find",
        &[
            &root().to_string_lossy(),
            "-path",
            "*/target",
            "-prune",
            "-o",
            "-name",
            "perjoule.cdx.json",
            "-print",
        ],
    )
    .context("find")?;
    for file in written.lines() {
        fs::remove_file(file)?;
    }
    Ok(())
}

fn sums() -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dist())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    let sums = Command::new("sha256sum")
        .args(names)
        .current_dir(dist())
        .output()
        .context("sha256sum")?;
    Ok(fs::write(dist().join("SHA256SUMS"), sums.stdout)?)
}

fn copy(to: &Path, what: &[&Path]) -> Result<()> {
    run(Command::new("cp").arg("--recursive").args(what).arg(to))
}

/// Packs `what` of `folder`: the same bytes from the same files, whoever packs them.
fn tar(name: &str, folder: &Path, what: &str, epoch: &str, more: &[&str]) -> Result<()> {
    run(Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mode=u=rwX,go=rX", "--format=gnu"])
        .arg(format!("--mtime=@{epoch}"))
        .args(["--use-compress-program", "gzip -9 -n"])
        .args(more)
        .arg("--create")
        .arg("--file")
        .arg(dist().join(name))
        .arg("--directory")
        .arg(folder)
        .arg(what))
}
