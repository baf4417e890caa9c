//! Draws the dashboards and a report with simulated data: `cargo xtask dashboards --render`. The data come from a real Prometheus,
//! the pictures from Perses' panels in a browser without a screen.

mod browser;
mod drawing;
mod history;
mod node;
mod prometheus;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::browser::{Browser, Drawn};
use self::drawing::Drawing;
use self::node::{Node, RECORDING};
use self::prometheus::Prometheus;
use super::Shipped;
use crate::project::{is_root, root, run as run_command, target};
use crate::{demo, setup};

/// Debian packages that it needs.
const PACKAGES: &[(&str, &str)] = &[
    ("prometheus", "prometheus"),
    ("chromium", "chromium"),
    ("node", "nodejs"),
    ("npm", "npm"),
];
/// The one that shows recorded series, of days that no simulation waits for.
const OF_DAYS: &str = "fleet-efficiency";
/// Families of which this node has nothing to tell; the end-to-end test of the dashboards names the same.
const ABSENT: &[&str] = &[
    // `--cuda`, and a server with a libcuda.
    "perjoule_cuda_",
    // `--pmc`, and performance counters.
    "perjoule_cpu_instructions_total",
    // A sensor of the whole machine.
    "perjoule_node_power_watts",
    // A board that has reported an error.
    "perjoule_gpu_xid_errors_total",
    // A server that waits for its disk.
    "perjoule_disk_wait_seconds",
];
/// What a page of documentation may carry.
const LARGEST_PICTURE: u64 = 400_000;

/// Draws these into a folder, having watched a simulated node for so long.
pub(super) fn run(dashboards: &[Shipped], folder: &Path, seconds: u64) -> Result<()> {
    ensure!(
        is_root(),
        "--render runs the agent, which loads BPF programs: run it as root, e.g. with \
         `sudo -E env PATH=$PATH cargo xtask dashboards --render`"
    );
    let missing = setup::ensure_packages(PACKAGES);
    ensure!(
        missing.is_empty(),
        "--render needs the packages {}",
        missing.join(", ")
    );
    let browser = Browser::prepare()?;
    demo::build()?;
    let folder = root().join(folder);
    fs::create_dir_all(&folder).context("cannot make the folder of the pictures")?;
    let work = target("render-data");
    if work.exists() {
        fs::remove_dir_all(&work).context("cannot clear target/render-data")?;
    }
    let pictures = Pictures { browser, folder };

    let (of_days, of_nodes): (Vec<_>, Vec<_>) = dashboards
        .iter()
        .partition(|dashboard| dashboard.name == OF_DAYS);
    let mut faults = pictures.draw_live(&of_nodes, &work.join("node"), seconds)?;
    faults.extend(pictures.draw_report(&work.join("node"))?);
    faults.extend(pictures.draw_history(&of_days, &work.join("history"))?);
    ensure!(
        faults.is_empty(),
        "not all was drawn:\n{}",
        faults.join("\n")
    );
    Ok(())
}

/// Who draws, and where to.
struct Pictures {
    browser: Browser,
    folder: PathBuf,
}

impl Pictures {
    /// Of a node that has been watched for so long, which is as far back as they look; returns what is missing in them.
    fn draw_live(&self, dashboards: &[&Shipped], work: &Path, seconds: u64) -> Result<Vec<String>> {
        fs::create_dir_all(work)?;
        let mut node = Node::start(work)?;
        let mut prometheus = Prometheus::scraping(node.metrics_address()?, work)?;
        println!("watching two simulated services on eight simulated GPUs for {seconds} s");
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(seconds) {
            node.fail_a_request();
            node.still_up()?;
            prometheus.still_up()?;
            sleep(Duration::from_secs(10));
        }
        let mut faults = Vec::new();
        for dashboard in dashboards {
            let drawing = Drawing::of(&dashboard.json, Some(seconds))?;
            faults.extend(self.draw(dashboard.name, &drawing, &prometheus)?);
        }
        prometheus.stop()?;
        node.stop()?;
        Ok(faults)
    }

    /// The report of the node that was watched. What shows all of it, and in other looks, stays below `target/`; returns
    /// what it asked the network for.
    fn draw_report(&self, work: &Path) -> Result<Vec<String>> {
        let report = work.join("report.html");
        let mut perjoule = Command::new(target("release/perjoule"));
        perjoule
            .args(["report", "--format", "html", "--country", "DE"])
            .args(["--price", "0.21", "--currency", "EUR"])
            // Its title is the path as it was given.
            .arg(RECORDING)
            .current_dir(work)
            .stdout(fs::File::create(&report).context("cannot make the report")?);
        run_command(&mut perjoule)?;
        let asked = self.browser.draw_report(&report, work)?;
        fs::copy(work.join("report.png"), self.folder.join("report.png"))?;
        println!("drew {} in three looks", report.display());
        let fault = |address| format!("the report asks for {address}");
        Ok(asked.into_iter().map(fault).collect())
    }

    /// Of clusters over days, as far back as each dashboard looks; returns what is missing in them.
    fn draw_history(&self, dashboards: &[&Shipped], work: &Path) -> Result<Vec<String>> {
        fs::create_dir_all(work)?;
        let mut faults = Vec::new();
        for dashboard in dashboards {
            let drawing = Drawing::of(&dashboard.json, None)?;
            let blocks = history::write(drawing.seconds, work)?;
            let prometheus = Prometheus::of_blocks(&blocks, work)?;
            faults.extend(self.draw(dashboard.name, &drawing, &prometheus)?);
            prometheus.stop()?;
        }
        Ok(faults)
    }

    fn draw(&self, name: &str, drawing: &Drawing, prometheus: &Prometheus) -> Result<Vec<String>> {
        let picture = self.folder.join(format!("{name}.png"));
        let drawn = self
            .browser
            .draw(&drawing.json, prometheus.url(), &picture)?;
        let mut faults = faults(&drawn);
        let size = fs::metadata(&picture)?.len();
        if size > LARGEST_PICTURE {
            faults.push(format!("a picture of {size} bytes, not {LARGEST_PICTURE}"));
        }
        println!(
            "drew {}: {} panels, {} kB",
            picture.display(),
            drawn.len(),
            size / 1000
        );
        Ok(faults
            .into_iter()
            .map(|fault| format!("{name}: {fault}"))
            .collect())
    }
}

/// What went wrong in panels: what they say, and expressions that found nothing and should have.
fn faults(drawn: &[Drawn]) -> Vec<String> {
    let mut faults = Vec::new();
    for panel in drawn {
        faults.extend(
            panel
                .alerts
                .iter()
                .map(|alert| format!("{}: it shows {alert}", panel.title)),
        );
        for query in &panel.queries {
            if let Some(error) = &query.error {
                faults.push(format!("{}: {error}: {}", panel.title, query.expr));
            } else if query.series == 0 && !ABSENT.iter().any(|family| query.expr.contains(family))
            {
                faults.push(format!("{}: nothing found: {}", panel.title, query.expr));
            }
        }
    }
    faults
}

/// How many seconds back a time range such as `now-7d` looks.
fn looks_back(from: &str) -> Result<u64> {
    let back = || {
        let rest = from.strip_prefix("now-")?;
        let units = [("m", 60), ("h", 3_600), ("d", 86_400)];
        let in_unit =
            |(unit, seconds)| Some(rest.strip_suffix(unit)?.parse::<u64>().ok()? * seconds);
        units.into_iter().find_map(in_unit)
    };
    back().with_context(|| format!("not a time range: {from}"))
}

/// A number of the JSON.
fn number(json: &Value) -> Result<u64> {
    json.as_u64()
        .with_context(|| format!("not a number: {json}"))
}
