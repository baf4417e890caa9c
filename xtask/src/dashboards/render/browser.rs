//! Perses' panels in a headless Chromium: `xtask/render`, installed and bundled below `target/`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::project::{check, find_on_path, root, run, shown, target};

/// What is taken from the checkout.
const FILES: [&str; 4] = ["package.json", "page.jsx", "draw.mjs", "report.mjs"];

/// Ready to draw.
pub(super) struct Browser {
    folder: PathBuf,
    chromium: PathBuf,
}

/// A panel of a picture.
pub(super) struct Drawn {
    pub(super) title: String,
    /// Messages in the panel's place.
    pub(super) alerts: Vec<String>,
    pub(super) queries: Vec<Query>,
}

/// One of its expressions.
pub(super) struct Query {
    pub(super) expr: String,
    pub(super) error: Option<String>,
    /// How many it found.
    pub(super) series: u64,
}

impl Browser {
    /// Installs the packages if they are missing or others, and bundles the page.
    pub(super) fn prepare() -> Result<Self> {
        let folder = target("render");
        fs::create_dir_all(&folder).context("cannot make target/render")?;
        for file in FILES {
            fs::copy(root().join("xtask/render").join(file), folder.join(file))?;
        }
        // Beside what was installed: what it was installed from.
        let record = folder.join("installed.json");
        let wanted = fs::read_to_string(folder.join("package.json"))?;
        if !fs::read_to_string(&record).is_ok_and(|made| made == wanted) {
            println!("getting the packages of xtask/render (about a minute, 500 MB)");
            run(Command::new("npm").current_dir(&folder).args([
                "install",
                "--no-package-lock",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
            ]))
            .context("npm could not install them")?;
            fs::write(record, wanted)?;
        }
        run(Command::new(folder.join("node_modules/.bin/esbuild"))
            .current_dir(&folder)
            .args(["page.jsx", "--bundle", "--minify", "--outfile=page.js"])
            .args(["--jsx=automatic", "--log-level=warning"])
            // One copy of each package: some ask for others in the old way, too.
            .arg("--main-fields=browser,module,main")
            // What Perses' packages expect of a bundler.
            .arg("--define:global=window")
            .arg("--define:process.env.NODE_ENV=\"production\"")
            .args(["--loader:.woff=dataurl", "--loader:.woff2=dataurl"]))
        .context("the page cannot be bundled")?;
        Ok(Self {
            folder,
            chromium: find_on_path("chromium").context("no chromium on PATH")?,
        })
    }

    /// Draws with data of this Prometheus; returns what came of each panel.
    pub(super) fn draw(
        &self,
        drawing: &Value,
        prometheus: &str,
        picture: &Path,
    ) -> Result<Vec<Drawn>> {
        let file = self.folder.join("drawing.json");
        fs::write(&file, drawing.to_string())?;
        let told = self.node(
            "draw.mjs",
            [prometheus.as_ref(), file.as_os_str(), picture.as_os_str()],
        )?;
        let panels: Vec<Value> =
            serde_json::from_slice(&told).context("draw.mjs says something else")?;
        panels
            .iter()
            .map(|panel| Drawn::read(panel).with_context(|| format!("not a panel: {panel}")))
            .collect()
    }

    /// Draws a report in all its looks; returns the addresses that it asked for beside its own.
    pub(super) fn draw_report(&self, report: &Path, folder: &Path) -> Result<Vec<String>> {
        let told = self.node("report.mjs", [report.as_os_str(), folder.as_os_str()])?;
        serde_json::from_slice(&told).context("report.mjs says something else")
    }

    /// What a script of `xtask/render` says.
    fn node<'a>(
        &self,
        script: &str,
        arguments: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<Vec<u8>> {
        let mut node = Command::new("node");
        node.current_dir(&self.folder)
            .arg(script)
            .arg(&self.chromium)
            .args(arguments)
            .stderr(Stdio::inherit());
        let output = node.output().context("cannot run node")?;
        check(output.status, &shown(&node))?;
        Ok(output.stdout)
    }
}

impl Drawn {
    fn read(panel: &Value) -> Option<Self> {
        let text = |json: &Value| Some(json.as_str()?.to_owned());
        let alerts = panel["alerts"].as_array()?.iter();
        let queries = panel["queries"].as_array()?.iter();
        Some(Self {
            title: text(&panel["title"])?,
            alerts: alerts.map(text).collect::<Option<_>>()?,
            queries: queries
                .map(|query| {
                    Some(Query {
                        expr: text(&query["expr"])?,
                        error: text(&query["error"]),
                        series: query["series"].as_u64()?,
                    })
                })
                .collect::<Option<_>>()?,
        })
    }
}
