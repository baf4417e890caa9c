//! A real Prometheus on loopback with data of its own.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::demo::stack::Process;
use crate::project::root;

/// How often it scrapes and evaluates rules.
pub(super) const INTERVAL: &str = "2s";

/// One with a folder of its own; killed when dropped.
pub(super) struct Prometheus {
    process: Process,
    url: String,
}

impl Prometheus {
    /// One that scrapes the agent at this address, under the rules that are shipped.
    pub(super) fn scraping(agent: &str, work: &Path) -> Result<Self> {
        let rules = root().join("dashboards/rules.yaml").canonicalize()?;
        let config = format!(
            "global: {{scrape_interval: {INTERVAL}, evaluation_interval: {INTERVAL}}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n\
             - job_name: perjoule\n  static_configs:\n  - targets: ['{agent}']\n    \
             labels: {{cluster: simulated, instance: simulated-node}}\n",
            rules.display()
        );
        Self::start(&config, &work.join("data"), work)
    }

    /// One that has these blocks and scrapes nothing.
    pub(super) fn of_blocks(blocks: &Path, work: &Path) -> Result<Self> {
        Self::start("{}\n", blocks, work)
    }

    fn start(config: &str, data: &Path, work: &Path) -> Result<Self> {
        let file = work.join("prometheus.yml");
        fs::write(&file, config).context("cannot write Prometheus' configuration")?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut process = Process::start(
            "prometheus",
            Command::new("prometheus")
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", data.display()))
                // Blocks of days ago stay.
                .arg("--storage.tsdb.retention.time=1y")
                .arg(format!("--web.listen-address={address}")),
            work,
        )?;
        process.line_after("Server is ready to receive")?;
        Ok(Self {
            process,
            url: format!("http://{address}"),
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn still_up(&mut self) -> Result<()> {
        self.process.still_up()
    }

    pub(super) fn stop(mut self) -> Result<()> {
        self.process.stop()
    }
}
