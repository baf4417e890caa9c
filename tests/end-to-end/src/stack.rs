//! The simulated serving stack: `inference-sim serve` and the library that shows its GPU.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        let folder = tempfile::tempdir().expect("a folder");
        let scenario = format!("gpu_state = \"gpu-state\"\n{lines}\n");
        fs::write(folder.path().join("scenario.toml"), scenario).expect("a scenario");
        fs::copy(
            binary("libnvml_sim.so"),
            folder.path().join("libnvidia-ml.so.1"),
        )
        .expect("a library");
        Self::serve(Arc::new(folder), devices)
    }

    /// Another stack in the same scenario, on other GPUs of its state.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_beside(&self, devices: &[usize]) -> Self {
        Self::serve(Arc::clone(&self.folder), devices)
    }

    fn serve(folder: Arc<tempfile::TempDir>, devices: &[usize]) -> Self {
        let own = tempfile::tempdir().expect("a folder");
        let out = own.path().join("server.out");
        let server = Command::new(binary("inference-sim"))
            .args(["serve", "--listen", "127.0.0.1:0", "--gpu-state"])
            .arg(folder.path().join("gpu-state"))
            .arg("--engine-socket")
            .arg(own.path().join("engine"))
            .arg("--truth")
            .arg(own.path().join("truth.jsonl"))
            .arg("--devices")
            .arg(
                devices
                    .iter()
                    .map(usize::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
            )
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

    /// `perjoule`, with the environment that shows it this stack's GPU.
    pub fn perjoule(&self) -> Command {
        let mut command = Command::new(binary("perjoule"));
        command.env(
            "PERJOULE_NVML_SIM_SCENARIO",
            self.folder.path().join("scenario.toml"),
        );
        command.env("PERJOULE_NVML_LIBRARY", self.library());
        command
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
        Command::new(binary("inference-sim"))
            .args(["load", "--url", &self.url])
            .args([
                "--rate",
                &rate.to_string(),
                "--seconds",
                &seconds.to_string(),
            ])
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
        self.truth().len()
    }

    /// What each of them truly took, as the engine says.
    ///
    /// # Panics
    /// If that is not JSON.
    pub fn truth(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.own.path().join("truth.jsonl")).unwrap_or_default();
        let line = |line| serde_json::from_str(line).expect("a line of JSON");
        text.lines().map(line).collect()
    }

    /// The file that says what the GPUs do.
    pub fn gpu_state(&self) -> PathBuf {
        self.folder.path().join("gpu-state")
    }

    /// A board's counter as the driver shows it at a moment of `CLOCK_BOOTTIME` (nanoseconds),
    /// millijoules.
    ///
    /// # Panics
    /// If nothing is known of it.
    pub fn counter_at(&self, device: usize, moment: u64) -> u64 {
        let output = Command::new(binary("inference-sim"))
            .args(["counter", "--scenario"])
            .arg(self.folder.path().join("scenario.toml"))
            .args(["--device", &device.to_string()])
            .args(["--at", &moment.to_string()])
            .output()
            .expect("it can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        let number = text.trim().parse();
        number.unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.server.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.server.wait();
    }
}
