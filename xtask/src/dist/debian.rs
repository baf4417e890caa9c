//! The .deb in a Debian of its own, below `target/`: installed, started as its unit starts it, removed, purged, and
//! nothing left behind. The machine itself is left alone.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::dist;
use crate::demo::stack::Process;
use crate::project::{get, is_root, root, run, target};
use crate::setup;

/// What a Debian has that runs services, and nothing else.
const PACKAGES: &str = "systemd,init-system-helpers";
/// Where dpkg, systemd and the list of users keep their books: they change with any package.
const BOOKS: &[&str] = &[
    "./var/lib/dpkg",
    "./var/lib/systemd/deb-systemd-helper",
    "./var/log",
    "./var/cache",
    "./run",
    "./tmp",
    "./etc/passwd-",
    "./etc/group-",
    "./etc/shadow-",
    "./etc/gshadow-",
    "./etc/.pwd.lock",
];

/// Checks the .deb of an earlier run; returns what could not be, and why.
pub(super) fn check() -> Result<Option<String>> {
    let skipped = |why: &str| Ok(Some(format!("to install the .deb: {why}")));
    let Some(package) = built()? else {
        return skipped("there is none yet; run cargo xtask dist");
    };
    if !is_root() {
        return skipped("not root");
    }
    if !setup::ensure_packages(&[("mmdebstrap", "mmdebstrap")]).is_empty() {
        return skipped("no mmdebstrap");
    }
    let debian = Debian::unpack()?;
    let before = debian.files()?;
    debian.installed(&package)?;
    debian.run_as_its_unit()?;
    debian.chroot(&["dpkg", "--remove", "perjoule"])?;
    ensure!(
        debian.has("etc/perjoule/perjoule.toml") && !debian.has("usr/bin/perjoule"),
        "after removal the configuration is there, and the program is not"
    );
    debian.chroot(&["dpkg", "--purge", "perjoule"])?;
    let left: Vec<String> = debian.files()?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "after a purge there is still: {left:?}");
    println!("the .deb: installed, started, removed, purged");
    Ok(None)
}

fn built() -> Result<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(dist()) else {
        return Ok(None);
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// A root file system; gone when it is dropped.
struct Debian {
    folder: PathBuf,
}

impl Debian {
    /// From an archive that is made when it is missing (a minute).
    fn unpack() -> Result<Self> {
        let archive = target("tools/debian.tar");
        if !archive.is_file() {
            println!("setup: getting a Debian to install into");
            let release = fs::read_to_string("/etc/os-release")?;
            let suite = release
                .lines()
                .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
                .context("/etc/os-release names no suite")?;
            run(Command::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase"])
                .arg(format!("--include={PACKAGES}"))
                .arg(suite)
                .arg(&archive))?;
        }
        let debian = Self {
            folder: target("dist-debian"),
        };
        debian.remove()?;
        fs::create_dir_all(&debian.folder)?;
        run(Command::new("tar")
            .args(["--numeric-owner", "--extract", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(&debian.folder))?;
        Ok(debian)
    }

    fn remove(&self) -> Result<()> {
        match self.folder.exists() {
            // Nothing else is mounted there: mounts are made in a namespace that has ended.
            true => Ok(fs::remove_dir_all(&self.folder)?),
            false => Ok(()),
        }
    }

    fn has(&self, path: &str) -> bool {
        self.folder.join(path).symlink_metadata().is_ok()
    }

    fn files(&self) -> Result<BTreeSet<String>> {
        let found = Command::new("find")
            .args([".", "-xdev"])
            .current_dir(&self.folder)
            .output()?;
        let found = String::from_utf8(found.stdout)?;
        let kept = |path: &&str| !BOOKS.iter().any(|book| path.starts_with(book));
        Ok(found.lines().filter(kept).map(str::to_owned).collect())
    }

    fn chroot(&self, command: &[&str]) -> Result<()> {
        let ran = Command::new("chroot")
            .arg(&self.folder)
            .args(command)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()?;
        let told = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{command:?}: {told}");
        Ok(())
    }

    /// Installs it and looks at what it did.
    fn installed(&self, package: &Path) -> Result<()> {
        fs::copy(package, self.folder.join("tmp/perjoule.deb"))?;
        self.chroot(&["dpkg", "--install", "/tmp/perjoule.deb"])?;
        let enabled = "etc/systemd/system/multi-user.target.wants/perjoule.service";
        for path in [
            "usr/share/man/man1/perjoule-run.1.gz",
            "usr/share/bash-completion/completions/perjoule",
            "usr/share/doc/perjoule/THIRD-PARTY.html",
            enabled,
        ] {
            ensure!(self.has(path), "the .deb did not install {path}");
        }
        let users = fs::read_to_string(self.folder.join("etc/passwd"))?;
        ensure!(users.contains("\nperjoule:"), "there is no user perjoule");
        let unit = "/usr/lib/systemd/system/perjoule.service";
        let verified = Command::new("chroot")
            .arg(&self.folder)
            .args(["systemd-analyze", "verify", "--man=no", unit])
            .output()?;
        let told = String::from_utf8_lossy(&verified.stderr);
        ensure!(
            verified.status.success() && told.trim().is_empty(),
            "systemd-analyze verify: {told}"
        );
        self.chroot(&["perjoule", "--version"])
    }

    /// Its program, as its unit's user and with its capabilities: what doctor finds, and what /metrics serves.
    fn run_as_its_unit(&self) -> Result<()> {
        let state = "/var/lib/perjoule";
        self.chroot(&[
            "install", "-d", "-m", "750", "-o", "perjoule", "-g", "perjoule", state,
        ])?;
        let report = self.command(&["perjoule", "doctor", "--json"])?.output()?;
        let report: Value = serde_json::from_slice(&report.stdout).context("doctor --json")?;
        let failed: Vec<&Value> = report["checks"]
            .as_array()
            .context("doctor names no checks")?
            .iter()
            .filter(|check| check["status"] == "fail")
            .collect();
        ensure!(failed.is_empty(), "doctor, as the unit runs it: {failed:?}");

        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let mut command = self.command(&["perjoule", "run", "--listen", &listen])?;
        let mut agent = Process::start("agent", &mut command, &self.folder.join("tmp"))?;
        let page = served(&mut agent, &format!("http://{listen}/metrics"))?;
        ensure!(
            page.contains("perjoule_probe_up{"),
            "/metrics tells of no probe"
        );
        agent.stop()?;
        ensure!(
            self.has("var/lib/perjoule/state.json"),
            "the agent kept no totals in its state directory"
        );
        Ok(())
    }

    /// A command inside, with the machine's /proc and /sys, as the unit would start it. The mounts are in a namespace
    /// of their own.
    fn command(&self, inside: &[&str]) -> Result<Command> {
        let unit = fs::read_to_string(root().join("packaging/systemd/perjoule.service"))?;
        let capabilities = ambient(&unit)?;
        let granted = format!("-all,{capabilities}");
        let script = "for f in proc sys dev; do mount --rbind /$f \"$0/$f\"; done; exec chroot \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-ec", script])
            .arg(&self.folder)
            .args(["setpriv", "--reuid=perjoule", "--regid=perjoule"])
            .args(["--clear-groups", "--no-new-privs"])
            .arg(format!("--inh-caps={granted}"))
            .arg(format!("--ambient-caps={granted}"))
            .arg(format!("--bounding-set={granted}"))
            .args(inside)
            .env("STATE_DIRECTORY", "/var/lib/perjoule");
        Ok(command)
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            println!("cannot remove {}: {error:#}", self.folder.display());
        }
    }
}

/// The page, as soon as there is one.
fn served(agent: &mut Process, url: &str) -> Result<String> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let start = Instant::now();
    loop {
        match get(url) {
            Ok(page) if page.contains("perjoule_build_info") => return Ok(page),
            _ if start.elapsed() > PATIENCE => bail!("no figures at {url} in {PATIENCE:?}"),
            _ => agent.still_up()?,
        }
        sleep(Duration::from_millis(200));
    }
}

/// What the unit grants, as setpriv takes it: `+bpf,+perfmon`.
fn ambient(unit: &str) -> Result<String> {
    let names: Vec<String> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("AmbientCapabilities="))
        .flat_map(str::split_whitespace)
        .filter_map(|name| Some(format!("+{}", name.strip_prefix("CAP_")?.to_lowercase())))
        .collect();
    if names.is_empty() {
        bail!("perjoule.service grants no capabilities");
    }
    Ok(names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_of_the_unit() {
        let unit = "[Service]\nUser=perjoule\nAmbientCapabilities=CAP_BPF CAP_SYS_PTRACE\n";
        assert_eq!(ambient(unit).unwrap(), "+bpf,+sys_ptrace");
        assert!(ambient("[Service]\n").is_err());
    }
}
