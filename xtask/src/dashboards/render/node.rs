//! A simulated node: two services of four GPUs each, their clients, and the agent.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::demo::stack::{Process, SCENARIO};
use crate::project::{get, target};

/// What the agent records, in the folder that the node was given.
pub(super) const RECORDING: &str = "node.pj";
/// For as long as somebody may want to look.
const FOR_LONG: &str = "86400";
/// Each service: its processes' names, its model, its GPUs, and its clients' load.
const SERVICES: [Service; 2] = [
    Service {
        names: ["server-8b", "load-8b"],
        model: "simulated-8b",
        devices: "0,1,2,3",
        load: ["4", "0.1"],
    },
    Service {
        names: ["server-70b", "load-70b"],
        model: "simulated-70b",
        devices: "4,5,6,7",
        load: ["2", "0"],
    },
];

struct Service {
    names: [&'static str; 2],
    model: &'static str,
    devices: &'static str,
    /// Requests a second, and the share whose clients leave early.
    load: [&'static str; 2],
}

/// All of its processes; killed when dropped.
pub(super) struct Node {
    loads: Vec<Process>,
    servers: Vec<Process>,
    agent: Process,
    urls: Vec<String>,
    metrics_url: String,
}

impl Node {
    pub(super) fn start(work: &Path) -> Result<Self> {
        let scenario = work.join("scenario.toml");
        let boards: String = (0..8)
            .map(|n| {
                // Real ones differ from their first letters on.
                format!("[[device]]\ngpm = true\nuuid = \"GPU-{n}5130000-0000-4000-8000-000000000000\"\n")
            })
            .collect();
        fs::write(&scenario, format!("{SCENARIO}{boards}")).context("cannot write the scenario")?;
        // The loader wants the library's real name.
        let library = work.join("libnvidia-ml.so.1");
        fs::copy(target("release/libnvml_sim.so"), &library).context("nvml-sim is not built")?;

        let mut servers = Vec::new();
        let mut urls = Vec::new();
        for service in &SERVICES {
            let [name, _] = service.names;
            let mut server = Process::start(
                name,
                Command::new(target("release/inference-sim"))
                    .args(["serve", "--listen", "127.0.0.1:0", "--model", service.model])
                    .args(["--devices", service.devices])
                    .arg("--gpu-state")
                    .arg(work.join("gpu-state"))
                    .arg("--truth")
                    .arg(work.join(format!("{name}.jsonl")))
                    .arg("--engine-socket")
                    .arg(work.join(format!("{name}.socket"))),
                work,
            )?;
            urls.push(server.line_after("listening on ")?);
            servers.push(server);
        }
        let mut agent = Process::start(
            "agent",
            Command::new(target("release/perjoule"))
                .args(["run", "--listen", "127.0.0.1:0", "--cpu-budget", "none"])
                .args(["--syscalls", "exact", "--faults"])
                .arg("--nvml-library")
                .arg(&library)
                .arg("--record")
                .arg(work.join(RECORDING))
                .env("PERJOULE_NVML_SIM_SCENARIO", &scenario),
            work,
        )?;
        let metrics_url = agent.line_after("metrics on ")?;
        let mut loads = Vec::new();
        for (service, url) in SERVICES.iter().zip(&urls) {
            let ([_, name], [rate, leave]) = (service.names, service.load);
            let mut load = Command::new(target("release/inference-sim"));
            load.args(["load", "--url", url, "--seconds", FOR_LONG])
                .args(["--rate", rate, "--abort-share", leave]);
            loads.push(Process::start(name, &mut load, work)?);
        }
        Ok(Self {
            loads,
            servers,
            agent,
            urls,
            metrics_url,
        })
    }

    /// Where the agent is scraped.
    pub(super) fn metrics_address(&self) -> Result<&str> {
        let address = || self.metrics_url.strip_prefix("http://")?.split('/').next();
        address().with_context(|| format!("not an address: {}", self.metrics_url))
    }

    /// One request that is refused, of each service.
    pub(super) fn fail_a_request(&self) {
        for url in &self.urls {
            // What is refused is refused: the services' own health is asked elsewhere.
            let _ = get(&format!("{url}/v1/nothing"));
        }
    }

    /// An error if anything ended by itself.
    pub(super) fn still_up(&mut self) -> Result<()> {
        let all = self.loads.iter_mut().chain(&mut self.servers);
        all.chain([&mut self.agent]).try_for_each(Process::still_up)
    }

    pub(super) fn stop(mut self) -> Result<()> {
        // Clients do not end by themselves; dropped they are killed.
        self.loads.clear();
        self.agent.stop()?;
        self.servers.iter_mut().try_for_each(Process::stop)
    }
}
