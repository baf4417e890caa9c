//! The Helm chart: linted, rendered by Helm itself (its library, from PyPI), and held against Kubernetes' schemas;
//! packaging/kubernetes is what it renders for clusters without Helm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::project::{root, run, shown, target};

/// The oldest that the chart takes (fields of AppArmor) and the newest whose schema there is.
const KUBERNETES: &[&str] = &["1.30", "1.37"];
const HEADER: &str = "# Written by `cargo xtask dist --write` from packaging/helm/perjoule, for clusters without Helm.\n";

/// Values that are rendered: as they are, for the plain manifests, and with everything on.
const PLAIN: &str = "plain.yaml";
const FEATURES: &str = "features.yaml";

/// Writes the plain manifests.
pub(super) fn write() -> Result<()> {
    let helm = Helm::new()?;
    fs::write(plain_manifests(), helm.plain()?)?;
    println!("wrote {}", plain_manifests().display());
    Ok(())
}

/// Checks them and the chart.
pub(super) fn check() -> Result<()> {
    let helm = Helm::new()?;
    for values in [None, Some(PLAIN), Some(FEATURES)] {
        helm.lint(values)?;
        let rendered = helm.render(values)?;
        least_privilege(&rendered, values == Some(FEATURES))?;
        helm.validate(values.unwrap_or("default.yaml"), &rendered)?;
    }
    whole_files(&helm.render(Some(FEATURES))?)?;
    helm.refuses("port: 0")?;
    helm.refuses("prot: 27182")?;
    let written = fs::read_to_string(plain_manifests()).unwrap_or_default();
    ensure!(
        written == helm.plain()?,
        "{} differs from what the chart renders; run cargo xtask dist --write",
        plain_manifests().display()
    );
    Ok(())
}

fn plain_manifests() -> PathBuf {
    root().join("packaging/kubernetes/perjoule.yaml")
}

/// What nobody may take away unseen.
fn least_privilege(rendered: &str, everything: bool) -> Result<()> {
    for wanted in [
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "automountServiceAccountToken: false",
        "drop: [ALL]",
    ] {
        ensure!(rendered.contains(wanted), "the chart lacks `{wanted}`");
    }
    for refused in ["privileged: true", "kind: ClusterRole", "hostNetwork: true"] {
        ensure!(!rendered.contains(refused), "the chart has `{refused}`");
    }
    ensure!(
        rendered.contains("SYS_ADMIN") == everything,
        "SYS_ADMIN goes with the features that need it, and with no other"
    );
    Ok(())
}

/// Dashboards and rules are in it as they are in dashboards/.
fn whole_files(rendered: &str) -> Result<()> {
    let folder = root().join("dashboards");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let indent = match &*name {
            "rules.yaml" | "alerts.yaml" => "  ",
            name if name.ends_with(".json") => "    ",
            _ => continue,
        };
        let text = fs::read_to_string(&path)?;
        let block: String = text
            .trim_end()
            .lines()
            .map(|line| format!("\n{indent}{line}"))
            .collect();
        ensure!(
            trimmed(rendered).contains(&trimmed(&block)),
            "the chart does not render {name} as it is"
        );
    }
    Ok(())
}

/// Without blanks at the ends of lines, which Helm gives to empty ones.
fn trimmed(text: &str) -> String {
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// Helm and the schemas, in an environment of their own.
struct Helm {
    programs: PathBuf,
    folder: PathBuf,
}

impl Helm {
    fn new() -> Result<Self> {
        let programs = super::check::environment()?;
        let folder = target("packaging");
        fs::create_dir_all(&folder)?;
        Ok(Self { programs, folder })
    }

    fn command(&self, verb: &str, values: Option<&Path>) -> Command {
        let folder = root().join("packaging/helm");
        let mut command = Command::new(self.programs.join("python"));
        command
            .arg(folder.join("chart.py"))
            .arg(verb)
            .arg(folder.join("perjoule"))
            .args(values);
        command
    }

    fn values(name: &str) -> PathBuf {
        root().join("packaging/helm").join(name)
    }

    fn lint(&self, values: Option<&str>) -> Result<()> {
        self.told("lint", values).map(drop)
    }

    fn render(&self, values: Option<&str>) -> Result<String> {
        self.told("template", values)
    }

    /// What it prints; what it says on stderr only if it fails, because it tells of every link that it follows.
    fn told(&self, verb: &str, values: Option<&str>) -> Result<String> {
        let values = values.map(Self::values);
        let mut command = self.command(verb, values.as_deref());
        let ran = command.output().context("python")?;
        if !ran.status.success() {
            let told = String::from_utf8_lossy(&ran.stderr);
            bail!("failed: {}\n{told}", shown(&command));
        }
        Ok(String::from_utf8(ran.stdout)?)
    }

    fn plain(&self) -> Result<String> {
        Ok(format!("{HEADER}{}", self.render(Some(PLAIN))?))
    }

    /// Against the schemas, strictly: a field that Kubernetes does not know is an error.
    fn validate(&self, name: &str, rendered: &str) -> Result<()> {
        // What the Prometheus operator defines has no schema there.
        let known: String = rendered
            .split("---\n")
            .filter(|document| !document.contains("apiVersion: monitoring.coreos.com/"))
            .map(|document| format!("---\n{document}"))
            .collect();
        let file = self.folder.join(name);
        fs::write(&file, known)?;
        for version in KUBERNETES {
            run(Command::new(self.programs.join("kubernetes-validate"))
                .args(["--strict", "--quiet", "-k", version])
                .arg(&file))?;
        }
        Ok(())
    }

    /// Values that make no sense are refused, not rendered.
    fn refuses(&self, values: &str) -> Result<()> {
        let file = self.folder.join("refused.yaml");
        fs::write(&file, values)?;
        let rendered = self.command("template", Some(&file)).output()?;
        ensure!(
            !rendered.status.success(),
            "the chart takes `{values}`, which makes no sense"
        );
        Ok(())
    }
}
