//! The processes of the bench: the agent, the servers it watches and their clients. All of it is
//! on loopback, and all of it ends with its value.

use std::env;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{paced, usage};
use crate::demo::stack::{Process, SCENARIO};
use crate::project::{find_on_path, get, target};

/// Nobody ends a client by hand: it is stopped when what was to be measured has been.
const FOR_LONG: u64 = 600;
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent.
#[derive(Debug)]
pub(super) struct Agent {
    process: Process,
    started: Instant,
    pub(super) metrics_url: String,
}

impl Agent {
    fn start(command: &mut Command, folder: &Path, other: Option<&Path>) -> Result<Self> {
        let name = if other.is_some() {
            "agent-other"
        } else {
            "agent"
        };
        let started = Instant::now();
        let mut process = Process::start(name, command, folder)?;
        let metrics_url = process.line_after("metrics on ")?;
        Ok(Self {
            process,
            started,
            metrics_url,
        })
    }

    /// One that watches the service of a process.
    pub(super) fn of_process(process: u32, folder: &Path) -> Result<Self> {
        let mut command = agent(None);
        command.args(["--pid", &process.to_string()]);
        Self::start(&mut command, folder, None)
    }

    /// Waits until `/metrics` shows booked energy; returns seconds since the agent was started.
    pub(super) fn first_figure(&self) -> Result<f64> {
        while !usage::has_figures(&self.metrics_url)? {
            if self.started.elapsed() > PATIENCE {
                bail!("the agent has booked nothing");
            }
            sleep(Duration::from_millis(10));
        }
        Ok(self.started.elapsed().as_secs_f64())
    }

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Finished requests that found the ring full.
    pub(super) fn ring_drops(&self) -> Result<f64> {
        get(&self.metrics_url)?
            .lines()
            .find(|line| line.contains("reason=\"ring_full\""))
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .context("the agent states no ring drops")
    }

    pub(super) fn stop(mut self) -> Result<()> {
        self.process.stop()
    }
}

/// A server that an agent can watch.
pub(super) trait Server {
    /// Starts an agent that watches this server: the one of this checkout, or another program.
    fn agent(&self, program: Option<&Path>) -> Result<Agent>;

    /// The process that answers requests.
    fn process(&self) -> u32;
}

/// A server that can be asked for as much as it can serve.
pub(super) trait Saturated: Server {
    /// Returns requests a second.
    fn saturate(&self, seconds: u64) -> Result<f64>;
}

fn agent(program: Option<&Path>) -> Command {
    let mut command = match program {
        Some(other) => Command::new(other),
        None => Command::new(target("release/perjoule")),
    };
    command.args(["run", "--listen", "127.0.0.1:0"]);
    command
}

/// An agent that watches this process's service, with these settings.
pub(super) fn agent_of(process: u32, settings: &[&str], folder: &Path) -> Result<Agent> {
    let mut command = agent(None);
    command.args(["--pid", &process.to_string()]).args(settings);
    Agent::start(&mut command, folder, None)
}

/// The simulated inference server and its simulated GPU.
#[derive(Debug)]
pub(super) struct Inference {
    folder: PathBuf,
    process: Process,
    url: String,
}

impl Inference {
    pub(super) fn start(folder: &Path) -> Result<Self> {
        fs::write(folder.join("scenario.toml"), SCENARIO)?;
        // The loader wants the library's real name.
        fs::copy(
            target("release/libnvml_sim.so"),
            folder.join("libnvidia-ml.so.1"),
        )
        .context("nvml-sim is not built")?;
        let mut process = Process::start(
            "server",
            Command::new(target("release/inference-sim"))
                .args(["serve", "--listen", "127.0.0.1:0", "--gpu-state"])
                .arg(folder.join("gpu-state"))
                .arg("--truth")
                .arg(folder.join("truth.jsonl")),
            folder,
        )?;
        let url = process.line_after("listening on ")?;
        Ok(Self {
            folder: folder.to_owned(),
            process,
            url,
        })
    }

    fn client(&self, rate: f64, seconds: u64) -> Command {
        let mut command = Command::new(target("release/inference-sim"));
        command
            .args(["load", "--url", &self.url])
            .args(["--rate", &rate.to_string()])
            .args(["--seconds", &seconds.to_string()]);
        command
    }

    /// Streams arrive at `rate` a second until the value is dropped.
    pub(super) fn load(&self, rate: f64) -> Result<Process> {
        Process::start("load", &mut self.client(rate, FOR_LONG), &self.folder)
    }

    /// The same requests at the same times every time; returns what the client saw.
    pub(super) fn load_for(&self, rate: f64, seconds: u64) -> Result<Value> {
        last_line(&mut self.client(rate, seconds)).and_then(|line| Ok(serde_json::from_str(&line)?))
    }
}

impl Inference {
    /// An agent that tells so much of what threads wait for, and also watches this process.
    pub(super) fn agent_of_waits(&self, detail: &str, process: Option<u32>) -> Result<Agent> {
        let mut command = agent(None);
        command.args(["--waits", detail]);
        if let Some(process) = process {
            command.args(["--pid", &process.to_string()]);
        }
        Agent::start(self.show_gpu(&mut command), &self.folder, None)
    }

    /// The server is found by its GPU context.
    fn show_gpu<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env(
                "PERJOULE_NVML_SIM_SCENARIO",
                self.folder.join("scenario.toml"),
            )
            .env(
                "PERJOULE_NVML_LIBRARY",
                self.folder.join("libnvidia-ml.so.1"),
            )
    }
}

impl Server for Inference {
    fn agent(&self, program: Option<&Path>) -> Result<Agent> {
        let mut command = agent(program);
        Agent::start(self.show_gpu(&mut command), &self.folder, program)
    }

    fn process(&self) -> u32 {
        self.process.id()
    }
}

/// nginx, one process, and one small file: as cheap as a request gets.
#[derive(Debug)]
pub(super) struct Nginx {
    folder: PathBuf,
    process: Process,
    port: u16,
}

impl Nginx {
    /// `None` if it is not installed.
    pub(super) fn start(folder: &Path) -> Result<Option<Self>> {
        let (Some(nginx), Some(_)) = (find_on_path("nginx"), find_on_path("wrk")) else {
            return Ok(None);
        };
        let root = folder.join("nginx");
        fs::create_dir_all(&root)?;
        fs::write(root.join("file.txt"), "a small file\n")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = root.display();
        let configuration = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; keepalive_requests 1000000000;\n\
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
               fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi;\n\
               scgi_temp_path {at}/scgi;\n\
               server {{ listen 127.0.0.1:{port}; root {at}; }} }}\n"
        );
        fs::write(root.join("nginx.conf"), configuration)?;
        let mut process = Process::start(
            "nginx",
            Command::new(nginx).arg("-c").arg(root.join("nginx.conf")),
            folder,
        )?;
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            process.still_up()?;
            if start.elapsed() > PATIENCE {
                bail!("nginx does not come up");
            }
            sleep(Duration::from_millis(20));
        }
        Ok(Some(Self {
            folder: root,
            process,
            port,
        }))
    }

    fn client(&self, seconds: u64) -> Command {
        let mut command = Command::new("wrk");
        command.args(["-t1", &format!("-d{seconds}s")]);
        command
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/file.txt", self.port)
    }

    /// As many requests as it can serve, until the value is dropped.
    pub(super) fn load(&self) -> Result<Process> {
        let mut command = self.client(FOR_LONG);
        command.arg("-c16").arg(self.url());
        Process::start("wrk", &mut command, &self.folder)
    }

    /// `per_s` requests a second while `measure` runs; returns how many it was, and what was
    /// measured.
    pub(super) fn paced<T>(
        &self,
        per_s: u32,
        measure: impl FnOnce() -> Result<T>,
    ) -> Result<(f64, T)> {
        paced::during(self.port, "/file.txt", per_s, measure)
    }
}

impl Server for Nginx {
    fn agent(&self, program: Option<&Path>) -> Result<Agent> {
        let mut command = agent(program);
        command.args(["--port", &self.port.to_string()]);
        Agent::start(&mut command, &self.folder, program)
    }

    fn process(&self) -> u32 {
        self.process.id()
    }
}

/// A server that streams without a GPU, and its clients: see [`super::streams`].
#[derive(Debug)]
pub(super) struct Streams {
    folder: PathBuf,
    process: Process,
    address: String,
}

impl Streams {
    /// It computes for `work` rounds before each event.
    pub(super) fn start(folder: &Path, work: u64) -> Result<Self> {
        let mut process = Process::start(
            "streams",
            Command::new(env::current_exe()?).args([
                "bench-streams",
                "serve",
                "--work",
                &work.to_string(),
            ]),
            folder,
        )?;
        let address = process.line_after("listening on ")?;
        Ok(Self {
            folder: folder.to_owned(),
            process,
            address,
        })
    }

    fn client(&self, seconds: u64) -> Result<Command> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["bench-streams", "load", "--address", &self.address])
            .args(["--seconds", &seconds.to_string()]);
        Ok(command)
    }

    /// As many streams as it can serve, until the value is dropped.
    pub(super) fn load(&self) -> Result<Process> {
        Process::start("stream-clients", &mut self.client(FOR_LONG)?, &self.folder)
    }
}

impl Server for Streams {
    fn agent(&self, program: Option<&Path>) -> Result<Agent> {
        let (_, port) = self.address.rsplit_once(':').context("no port")?;
        let mut command = agent(program);
        command.args(["--port", port]);
        Agent::start(&mut command, &self.folder, program)
    }

    fn process(&self) -> u32 {
        self.process.id()
    }
}

impl Saturated for Streams {
    fn saturate(&self, seconds: u64) -> Result<f64> {
        Ok(last_line(&mut self.client(seconds)?)?.trim().parse()?)
    }
}

impl Saturated for Nginx {
    fn saturate(&self, seconds: u64) -> Result<f64> {
        requests_per_s(self.client(seconds).arg("-c16").arg(self.url()))
    }
}

fn requests_per_s(wrk: &mut Command) -> Result<f64> {
    let output = wrk.output().context("cannot start wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("Requests/sec:")?
                .trim()
                .parse()
                .ok()
        })
        .with_context(|| format!("wrk stated no requests/s:\n{text}"))
}

fn last_line(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot start the load")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().context("the load printed nothing")?;
    Ok(last.to_owned())
}
