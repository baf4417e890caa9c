//! The simulated serving stack: `inference-sim serve` and the library that shows its GPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use crate::binary;

/// The running stack; ends with this value.
#[derive(Debug)]
pub struct Stack {
    server: Child,
    /// The scenario's and the GPU state's, which several stacks can share.
    folder: Arc<tempfile::TempDir>,
    own: tempfile::TempDir,
    url: String,
}

/// A request as the engine's own record has it.
#[derive(Debug, Clone, Deserialize)]
pub struct Truth {
    /// When the server had read its head, nanoseconds of `CLOCK_BOOTTIME`.
    pub start_ns: u64,
    /// Tokens produced.
    pub output_tokens: u64,
    /// Energy above idle on each of the engine's GPUs, microjoules.
    pub energy_uj: Vec<u64>,
}

impl Stack {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start() -> Self {
        Self::start_with_scenario("")
    }

    /// The same with more lines in the GPU's scenario.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_with_scenario(lines: &str) -> Self {
        Self::start_on(&[0], lines)
    }

    /// The same with an engine that runs every step on these GPUs together.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_on(devices: &[usize], lines: &str) -> Self {
        let devices: Vec<String> = devices.iter().map(usize::to_string).collect();
        Self::start_serving(lines, &["--devices", &devices.join(",")])
    }

    /// The same with these arguments to `inference-sim serve`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_serving(lines: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write_scenario(&folder.path().join("scenario.toml"), lines);
        fs::copy(
            binary("libnvml_sim.so"),
            folder.path().join("libnvidia-ml.so.1"),
        )
        .expect("a library");
        Self::start_in(Arc::new(folder), arguments)
    }

    /// Another stack in the same scenario: on other GPUs of its state, or on the same if both are started
    /// with `--share`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_beside(&self, arguments: &[&str]) -> Self {
        Self::start_in(Arc::clone(&self.folder), arguments)
    }

    fn start_in(folder: Arc<tempfile::TempDir>, arguments: &[&str]) -> Self {
        let own = tempfile::tempdir().expect("a folder");
        let out = own.path().join("server.out");
        let server = Command::new(binary("inference-sim"))
            .args(["serve", "--listen", "127.0.0.1:0", "--gpu-state"])
            .arg(folder.path().join("gpu-state"))
            .arg("--truth")
            .arg(own.path().join("truth.jsonl"))
            .arg("--engine-socket")
            .arg(own.path().join("engine"))
            .args(arguments)
            .stdout(fs::File::create(&out).expect("a file"))
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be started");
        let mut stack = Self {
            server,
            folder,
            own,
            url: String::new(),
        };
        let start = Instant::now();
        stack.url = loop {
            let text = fs::read_to_string(&out).unwrap_or_default();
            if let Some(line) = text
                .lines()
                .find_map(|line| line.strip_prefix("listening on "))
            {
                break line.to_owned();
            }
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the stack does not come up"
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        stack
    }

    /// Its processes: the front, and the engine below it.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.server.id()];
        let mut looked = 0;
        while let Some(pid) = pids.get(looked) {
            // A child is its thread's.
            let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
            for thread in threads.flatten() {
                let children = fs::read_to_string(thread.path().join("children"));
                let children = children.unwrap_or_default();
                let children = children.split_whitespace();
                pids.extend(children.filter_map(|pid| pid.parse::<u32>().ok()));
            }
            looked += 1;
        }
        pids
    }

    /// `perjoule`, with the environment that shows it this stack's GPU.
    pub fn perjoule(&self) -> Command {
        self.perjoule_with(&self.scenario())
    }

    /// The same, but it sees the GPU through a scenario of its own with these lines: faults that
    /// strike nobody else.
    ///
    /// # Panics
    /// If the scenario cannot be written.
    pub fn perjoule_seeing(&self, name: &str, lines: &str) -> Command {
        let scenario = self.folder.path().join(format!("{name}.toml"));
        write_scenario(&scenario, lines);
        self.perjoule_with(&scenario)
    }

    fn perjoule_with(&self, scenario: &Path) -> Command {
        let mut command = Command::new(binary("perjoule"));
        command.env("PERJOULE_NVML_SIM_SCENARIO", scenario);
        command.env("PERJOULE_NVML_LIBRARY", self.library());
        command
    }

    fn scenario(&self) -> PathBuf {
        self.folder.path().join("scenario.toml")
    }

    /// The file that says what the GPUs do.
    pub fn gpu_state(&self) -> PathBuf {
        self.folder.path().join("gpu-state")
    }

    /// The energy counter of a GPU as the stack's own scenario shows it at a moment, millijoules.
    ///
    /// # Panics
    /// If nothing is known of that moment.
    pub fn counter_mj(&self, device: usize, at_ns: u64) -> u64 {
        let output = Command::new(binary("inference-sim"))
            .arg("counter")
            .arg("--scenario")
            .arg(self.scenario())
            .args(["--at", &at_ns.to_string()])
            .args(["--device", &device.to_string()])
            .output()
            .expect("it can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim()
            .parse()
            .unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// The stand-in `libnvidia-ml.so.1`.
    pub fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// Where it serves.
    pub fn port(&self) -> u16 {
        self.url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or(0)
    }

    /// Starts a load of `rate` requests/s for `seconds`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn load(&self, rate: f64, seconds: u64) -> Child {
        self.load_of(&format!("--rate {rate} --seconds {seconds}"))
    }

    /// Starts a load with these arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn load_of(&self, arguments: &str) -> Child {
        Command::new(binary("inference-sim"))
            .args(["load", "--url", &self.url])
            .args(arguments.split_whitespace())
            .stdout(Stdio::null())
            .spawn()
            .expect("it can be started")
    }

    /// The same load to its end; its summary.
    ///
    /// # Panics
    /// If it fails.
    pub fn load_whole(&self, rate: f64, seconds: u64) -> Value {
        let output = Command::new(binary("inference-sim"))
            .args(["load", "--url", &self.url])
            .args(["--rate", &rate.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .stderr(Stdio::inherit())
            .output()
            .expect("it can be started");
        assert!(output.status.success(), "{}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Requests the engine has ended.
    pub fn served(&self) -> usize {
        self.truths().len()
    }

    /// The engine's own records of them, in the order in which they ended.
    ///
    /// # Panics
    /// If there is something else in the file.
    pub fn truths(&self) -> Vec<Truth> {
        let text = fs::read_to_string(self.own.path().join("truth.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }
}

fn write_scenario(path: &Path, lines: &str) {
    let scenario = format!("gpu_state = \"gpu-state\"\n{lines}\n");
    fs::write(path, scenario).expect("a scenario");
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.server.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.server.wait();
    }
}
