//! The processes of the demo: the serving stack, the agent beside it, the load.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::recording;
use crate::project::target;

/// How long a process may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// A simulated GPU like the engine's default.
pub(crate) const SCENARIO: &str = "gpu_state = \"gpu-state\"\n";

/// One request as the engine's own record has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Truth {
    pub(super) start_s: f64,
    pub(super) output_tokens: u64,
    pub(super) energy_uj: u64,
}

/// The serving stack and the agent; both end with this value.
#[derive(Debug)]
pub(super) struct Stack {
    folder: PathBuf,
    server: Process,
    agent: Process,
    url: String,
    metrics_url: String,
}

impl Stack {
    /// Starts the server, then the agent, and waits until the agent has booked something.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let scenario = folder.join("scenario.toml");
        fs::write(&scenario, SCENARIO).context("cannot write the scenario")?;
        // The loader wants the library's real name.
        let library = folder.join("libnvidia-ml.so.1");
        fs::copy(target("release/libnvml_sim.so"), &library).context("nvml-sim is not built")?;

        let mut server = Process::start(
            "server",
            Command::new(target("release/inference-sim"))
                .args(["serve", "--listen", "127.0.0.1:0", "--gpu-state"])
                .arg(folder.join("gpu-state"))
                .arg("--truth")
                .arg(folder.join("truth.jsonl")),
            folder,
        )?;
        let url = server.line_after("listening on ")?;

        // It is told nothing of the server: it finds it by its GPU context.
        let mut agent = Process::start(
            "agent",
            Command::new(target("release/perjoule"))
                .args(["run", "--stacks", "--cpu-budget", "none"])
                .args(["--listen", "127.0.0.1:0"])
                .arg("--nvml-library")
                .arg(&library)
                .arg("--record")
                .arg(folder.join("perjoule.pj"))
                .env("PERJOULE_NVML_SIM_SCENARIO", &scenario),
            folder,
        )?;
        let metrics_url = agent.line_after("metrics on ")?;
        let stack = Self {
            folder: folder.to_owned(),
            server,
            agent,
            url,
            metrics_url,
        };
        stack.wait_for_first_interval()?;
        Ok(stack)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn metrics_url(&self) -> &str {
        &self.metrics_url
    }

    pub(super) fn recording(&self) -> PathBuf {
        self.folder.join("perjoule.pj")
    }

    /// Starts the load.
    pub(super) fn load(&self, rate: f64, seconds: u64, seed: u64) -> Result<Load> {
        let process = Process::start(
            "load",
            Command::new(target("release/inference-sim"))
                .args(["load", "--url", &self.url])
                .args(["--rate", &rate.to_string()])
                .args(["--seconds", &seconds.to_string()])
                .args(["--seed", &seed.to_string()]),
            &self.folder,
        )?;
        Ok(Load { process })
    }

    /// An error if the server or the agent ended by itself.
    pub(super) fn still_up(&mut self) -> Result<()> {
        self.server.still_up()?;
        self.agent.still_up()
    }

    /// Every request the engine has ended, by its own record.
    pub(super) fn truths(&self) -> Result<Vec<Truth>> {
        let text = fs::read_to_string(self.folder.join("truth.jsonl"))
            .context("the engine wrote no record")?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line)?;
                let truth = || {
                    Some(Truth {
                        start_s: value.get("start_ns")?.as_u64()? as f64 * 1e-9,
                        output_tokens: value.get("output_tokens")?.as_u64()?,
                        energy_uj: value
                            .get("energy_uj")?
                            .as_array()?
                            .iter()
                            .filter_map(Value::as_u64)
                            .sum(),
                    })
                };
                truth().with_context(|| format!("the engine's record: {line}"))
            })
            .collect()
    }

    /// The simulated counter after its tick that was booked at `at_s`, in joules.
    pub(super) fn counter_joules(&self, device: usize, at_s: f64) -> Result<f64> {
        // The booked moment is the middle of a bracket around the tick; half a tick later the
        // counter still shows that tick's value.
        let at_ns = (at_s * 1e9) as u64 + 50_000_000;
        let output = Command::new(target("release/inference-sim"))
            .args(["counter", "--scenario"])
            .arg(self.folder.join("scenario.toml"))
            .args(["--at", &at_ns.to_string(), "--device", &device.to_string()])
            .output()
            .context("cannot ask the simulator for its counter")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let millijoules: f64 = text.trim().parse().with_context(|| {
            format!(
                "the simulator's counter: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok(millijoules * 1e-3)
    }

    pub(super) fn stop_agent(&mut self) -> Result<()> {
        self.agent.stop()
    }

    pub(super) fn stop(mut self) -> Result<()> {
        self.agent.stop()?;
        self.server.stop()
    }

    /// Returns at the first SIGINT.
    pub(super) fn wait_for_interrupt(&mut self) -> Result<()> {
        static INTERRUPTED: AtomicBool = AtomicBool::new(false);
        extern "C" fn interrupted(_: libc::c_int) {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe {
            libc::signal(libc::SIGINT, interrupted as *const () as libc::sighandler_t);
        }
        while !INTERRUPTED.load(Ordering::Relaxed) {
            self.still_up()?;
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn wait_for_first_interval(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            if recording::has_begun(&self.recording()) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("the agent booked nothing in {PATIENCE:?}; see target/demo/agent.log");
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// A recording as Markdown for a planner.
pub(super) fn report(recording: &Path) -> Result<String> {
    printed("report", recording, "md")
}

/// Its energy flame graph.
pub(super) fn flame_graph(recording: &Path) -> Result<String> {
    printed("script", recording, "svg")
}

fn printed(verb: &str, recording: &Path, format: &str) -> Result<String> {
    let output = Command::new(target("release/perjoule"))
        .arg(verb)
        .arg(recording)
        .args(["--format", format])
        .output()
        .with_context(|| format!("cannot run perjoule {verb}"))?;
    if !output.status.success() {
        bail!(
            "perjoule {verb}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The load generator.
#[derive(Debug)]
pub(super) struct Load {
    process: Process,
}

impl Load {
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.child.try_wait()?.is_some())
    }

    /// What it printed at its end.
    pub(super) fn summary(&mut self) -> Result<Value> {
        let text = fs::read_to_string(&self.process.out)?;
        let last = text.lines().last().context("the load printed nothing")?;
        serde_json::from_str(last).context("the load's last line")
    }
}

/// A child with its output in files; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    out: PathBuf,
}

impl Process {
    pub(crate) fn start(name: &'static str, command: &mut Command, folder: &Path) -> Result<Self> {
        let out = folder.join(format!("{name}.out"));
        let log = folder.join(format!("{name}.log"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        Ok(Self { name, child, out })
    }

    /// Waits for a line on stdout or stderr that begins with `prefix` and returns the rest of it.
    pub(crate) fn line_after(&mut self, prefix: &str) -> Result<String> {
        self.line_within(prefix, PATIENCE)
    }

    /// The same for one that may take longer.
    pub(crate) fn line_within(&mut self, prefix: &str, patience: Duration) -> Result<String> {
        let start = Instant::now();
        while start.elapsed() < patience {
            for file in [self.out.clone(), self.out.with_extension("log")] {
                let lines = BufReader::new(File::open(file)?).lines();
                let found = lines
                    .map_while(std::result::Result::ok)
                    .find_map(|line| Some(line.split_once(prefix)?.1.trim().to_owned()));
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            self.still_up()?;
            sleep(Duration::from_millis(20));
        }
        bail!("the {} did not say `{prefix}…` in {patience:?}", self.name)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn still_up(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = fs::read_to_string(self.out.with_extension("log")).unwrap_or_default();
            bail!("the {} ended by itself ({status}):\n{log}", self.name);
        }
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // SAFETY: kill has no memory effects; the child is not yet waited for, so its id is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("the {} ended with {status}", self.name);
                }
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        bail!("the {} did not end in {PATIENCE:?}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A panic or an error must not leave servers behind; one that has ended is no fault.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
