//! The simulated serving stack: `inference-sim serve` and the library that shows its GPU.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary;

/// The running stack; ends with this value.
#[derive(Debug)]
pub struct Stack {
    server: Child,
    folder: tempfile::TempDir,
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
        let out = folder.path().join("server.out");
        let server = Command::new(binary("inference-sim"))
            .args(["serve", "--listen", "127.0.0.1:0", "--gpu-state"])
            .arg(folder.path().join("gpu-state"))
            .arg("--truth")
            .arg(folder.path().join("truth.jsonl"))
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
        let text = fs::read_to_string(self.folder.path().join("truth.jsonl")).unwrap_or_default();
        text.lines().count()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.server.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.server.wait();
    }
}
