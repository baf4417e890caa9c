//! The scenario: what the simulated machine has, how its sensors behave, what goes wrong.
//!
//! In: a TOML file; every key has a default and an unknown key is an error. Times of faults count
//! from the moment the state file was made, which stands for the driver's load.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use gpu_state::{GpuState, MAX_DEVICES, OpenError};
use serde::Deserialize;

use crate::faults::{Faults, Injected, Jump, Throttle, Xid};

/// The label every device name carries, so that nothing simulated is taken for measured.
const MARK: &str = "(simulated)";

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("scenario {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("scenario {path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: toml::de::Error,
    },
    /// A value that makes no sense.
    #[error("scenario: {0}")]
    Value(String),
    /// The state file cannot be used.
    #[error(transparent)]
    State(#[from] OpenError),
    /// No memory for a private state.
    #[error("cannot map memory for the GPU state: {0}")]
    Memory(io::Error),
}

/// A simulated machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// The file the engine writes, relative to the scenario file; none: all GPUs idle.
    pub gpu_state: Option<PathBuf>,
    /// What `nvidia-smi` would call the driver version.
    pub driver_version: String,
    /// Time between two changes of the energy counter and of the power readings, milliseconds.
    pub tick_ms: f64,
    /// The ticks happen at this time plus multiples of `tick_ms`, milliseconds of boottime.
    pub tick_phase_ms: f64,
    /// Window of the averaged power reading, milliseconds.
    pub averaging_ms: f64,
    /// Window of the instant power reading, milliseconds; an A100's sees 25 of every 100.
    pub instant_ms: f64,
    /// How long before a tick the shown energy and power were true, milliseconds.
    pub lag_ms: f64,
    /// Shown ÷ true, energy and power alike; 1 is a perfect sensor.
    pub gain: f64,
    /// Standard deviation of the noise of one tick's mean power, watts.
    pub noise_watts: f64,
    /// Another seed, another noise.
    pub noise_seed: u64,
    /// The GPUs, by index.
    #[serde(rename = "device")]
    pub devices: Vec<Device>,
    /// What goes wrong, on every GPU.
    pub faults: Faults,
    /// What goes wrong with single functions and fields.
    #[serde(rename = "fault")]
    pub injected: Vec<Injected>,
    /// A file to which every call appends its function's name, relative to the scenario file.
    pub call_log: Option<PathBuf>,
}

/// One GPU.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// Its name; "(simulated)" is added if missing.
    pub name: String,
    /// Its UUID; made from the index if empty.
    pub uuid: String,
    /// What it draws when nothing runs, watts.
    pub idle_watts: f64,
    /// Enforced power limit, watts; also the default limit.
    pub limit_watts: f64,
    /// Lowest limit it accepts, watts.
    pub min_limit_watts: f64,
    /// Highest limit it accepts, watts.
    pub max_limit_watts: f64,
    /// It is there from this moment on, seconds.
    pub appears_at_s: f64,
    /// Clock of its streaming multiprocessors, megahertz.
    pub sm_clock_mhz: u32,
    /// Clock of its memory, megahertz.
    pub memory_clock_mhz: u32,
    /// Degrees Celsius.
    pub temperature_c: u32,
    /// Memory, bytes; what its processes hold is used.
    pub memory_bytes: u64,
    /// Sent and received over PCIe, each, bytes a second.
    pub pcie_bytes_per_s: f64,
    /// Sent and received over NVLink, each, bytes a second; NOT_SUPPORTED if absent.
    pub nvlink_bytes_per_s: Option<f64>,
    /// Power of the whole module of a superchip, watts; NOT_SUPPORTED if absent.
    pub module_watts: Option<f64>,
    /// Devices of the state file whose engines take turns on it. Its own place, if neither it nor one
    /// of its instances names any.
    pub engines: Vec<usize>,
    /// It tells what its parts do (GPM); Hopper and later.
    pub gpm: bool,
    /// MIG mode.
    pub mig: bool,
    /// MIG mode changes to the other, seconds.
    pub mig_changes_at_s: Option<f64>,
    /// `nvmlComputeMode_t`.
    pub compute_mode: u32,
    /// `nvmlGpuVirtualizationMode_t`.
    pub virtualization: u32,
    /// Jumps of its energy counter.
    #[serde(rename = "jump")]
    pub jumps: Vec<Jump>,
    /// Times in which its clocks are held down; it idles otherwise.
    #[serde(rename = "throttle")]
    pub throttles: Vec<Throttle>,
    /// Its critical errors.
    #[serde(rename = "xid")]
    pub xids: Vec<Xid>,
    /// What it is split into while MIG is on.
    #[serde(rename = "instance")]
    pub instances: Vec<Instance>,
}

/// One GPU instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Its id on its board.
    pub id: u32,
    /// How many of the board's seven slices it has.
    #[serde(default = "one")]
    pub slices: u32,
    /// UUID of its MIG device; made from board and id if empty.
    #[serde(default)]
    pub uuid: String,
    /// Devices of the state file whose engines run on it.
    #[serde(default)]
    pub engines: Vec<usize>,
}

const fn one() -> u32 {
    1
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            gpu_state: None,
            driver_version: "550.54.15".to_owned(),
            tick_ms: 100.0,
            tick_phase_ms: 0.0,
            averaging_ms: 1_000.0,
            instant_ms: 25.0,
            lag_ms: 0.0,
            gain: 1.0,
            noise_watts: 8.0,
            noise_seed: 1,
            devices: vec![Device::numbered(0)],
            faults: Faults::default(),
            injected: Vec::new(),
            call_log: None,
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        Self {
            name: format!("NVIDIA A100-SXM4-80GB {MARK}"),
            uuid: String::new(),
            idle_watts: 83.0,
            limit_watts: 400.0,
            min_limit_watts: 100.0,
            max_limit_watts: 400.0,
            appears_at_s: 0.0,
            sm_clock_mhz: 1_410,
            memory_clock_mhz: 1_593,
            temperature_c: 41,
            memory_bytes: 80 << 30,
            pcie_bytes_per_s: 2e6,
            nvlink_bytes_per_s: Some(1_024e3),
            module_watts: None,
            engines: Vec::new(),
            gpm: false,
            mig: false,
            mig_changes_at_s: None,
            compute_mode: 0,
            virtualization: 0,
            jumps: Vec::new(),
            throttles: Vec::new(),
            xids: Vec::new(),
            instances: Vec::new(),
        }
    }
}

impl Device {
    fn numbered(index: usize) -> Self {
        Self {
            uuid: uuid_of(index),
            engines: vec![index],
            ..Self::default()
        }
    }

    /// All engines that run on it, in whatever mode.
    pub(crate) fn all_engines(&self) -> impl Iterator<Item = usize> {
        let of_instances = self.instances.iter().flat_map(|instance| &instance.engines);
        self.engines.iter().chain(of_instances).copied()
    }

    fn place_engines(&mut self, index: usize) {
        if self.all_engines().next().is_none() {
            self.engines.push(index);
        }
        for instance in &mut self.instances {
            if instance.uuid.is_empty() {
                let board = self.uuid.trim_start_matches("GPU-");
                instance.uuid = format!("MIG-{board}-{}", instance.id);
            }
        }
    }
}

fn uuid_of(index: usize) -> String {
    format!("GPU-51300000-0000-4000-8000-{index:012x}")
}

impl Scenario {
    /// Reads a scenario file; a relative `gpu_state` starts at the file's own folder.
    ///
    /// # Errors
    /// The file cannot be read, is not a scenario, or makes no sense.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path).map_err(|source| ScenarioError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut scenario: Self = toml::from_str(&text).map_err(|source| ScenarioError::Syntax {
            path: path.to_owned(),
            source,
        })?;
        if let Some(folder) = path.parent() {
            for file in [&mut scenario.gpu_state, &mut scenario.call_log] {
                *file = file.take().map(|file| folder.join(file));
            }
        }
        scenario.complete()
    }

    /// The scenario [`crate::SCENARIO_VARIABLE`] names, or one idle A100.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_environment() -> Result<Self, ScenarioError> {
        match std::env::var_os(crate::SCENARIO_VARIABLE) {
            Some(path) => Self::load(Path::new(&path)),
            None => Ok(Self::default()),
        }
    }

    /// Opens (or makes) the state file; without one, a private state in which all GPUs idle.
    ///
    /// # Errors
    /// The state file cannot be used.
    pub fn open_state(&self) -> Result<GpuState, ScenarioError> {
        match &self.gpu_state {
            Some(path) => Ok(GpuState::open_or_create(path)?),
            None => GpuState::anonymous().map_err(ScenarioError::Memory),
        }
    }

    fn complete(mut self) -> Result<Self, ScenarioError> {
        let refuse = |what: String| Err(ScenarioError::Value(what));
        if self.devices.len() > MAX_DEVICES {
            return refuse(format!("at most {MAX_DEVICES} devices"));
        }
        for (key, value, least) in [
            ("tick_ms", self.tick_ms, 1.0),
            ("averaging_ms", self.averaging_ms, 1.0),
            ("instant_ms", self.instant_ms, 1.0),
            ("tick_phase_ms", self.tick_phase_ms, 0.0),
            ("lag_ms", self.lag_ms, 0.0),
            ("gain", self.gain, 0.01),
            ("noise_watts", self.noise_watts, 0.0),
            ("slow_call_ms", self.faults.slow_call_ms, 0.0),
        ] {
            if !(least..=1e6).contains(&value) {
                return refuse(format!("{key} = {value} is not between {least} and 1e6"));
            }
        }
        for fault in &self.injected {
            let field = fault.call.strip_prefix("field:");
            let known = fault.call == "*"
                || crate::FUNCTIONS.contains(&fault.call.as_str())
                || field.is_some_and(|id| id.parse::<u32>().is_ok());
            if !known {
                return refuse(format!("{:?} is no function or field", fault.call));
            }
        }
        let mut engines = BTreeSet::new();
        for (index, device) in self.devices.iter_mut().enumerate() {
            if device.uuid.is_empty() {
                device.uuid = uuid_of(index);
            }
            device.place_engines(index);
            for engine in device.all_engines() {
                if engine >= MAX_DEVICES || !engines.insert(engine) {
                    return refuse(format!("engine {engine} is not there, or runs elsewhere"));
                }
            }
            let slices = device.instances.iter().map(|instance| instance.slices);
            if device.instances.len() > 7 || slices.sum::<u32>() > 7 {
                return refuse(format!("device {index}: more than 7 slices"));
            }
            if !device.name.contains(MARK) {
                device.name = format!("{} {MARK}", device.name);
            }
            for watts in [
                device.idle_watts,
                device.limit_watts,
                device.min_limit_watts,
                device.max_limit_watts,
            ] {
                if !(0.0..=1e5).contains(&watts) {
                    return refuse(format!("device {index}: {watts} watts"));
                }
            }
            for amount in [device.pcie_bytes_per_s, device.appears_at_s] {
                if !(0.0..=1e15).contains(&amount) {
                    return refuse(format!("device {index}: {amount}"));
                }
            }
            // The counter must never fall, so its noise must stay below the idle energy.
            let most = device.idle_watts / crate::noise::LARGEST_STEP;
            if self.noise_watts > most {
                return refuse(format!("device {index}: noise_watts above {most:.1}"));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Scenario, ScenarioError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scenario.toml");
        std::fs::write(&path, text).unwrap();
        Scenario::load(&path)
    }

    #[test]
    fn an_empty_file_is_one_a100_that_says_it_is_simulated() {
        let scenario = load("").unwrap();
        assert_eq!(scenario.devices.len(), 1);
        assert_eq!(
            scenario.devices[0].name,
            "NVIDIA A100-SXM4-80GB (simulated)"
        );
        assert!(scenario.devices[0].uuid.starts_with("GPU-"));
    }

    #[test]
    fn devices_get_distinct_uuids_and_the_mark_whatever_their_names() {
        let scenario = load("[[device]]\nname = \"NVIDIA H100\"\n[[device]]\n").unwrap();
        assert_eq!(scenario.devices[0].name, "NVIDIA H100 (simulated)");
        assert_ne!(scenario.devices[0].uuid, scenario.devices[1].uuid);
    }

    #[test]
    fn unknown_keys_and_senseless_values_are_errors() {
        for text in [
            "tick = 100",
            "[[device]]\nidle = 3",
            "[faults]\nunsupported = [\"energie\"]",
            "tick_ms = 0",
            "gain = nan",
            "noise_watts = 50",
            "[[fault]]\ncall = \"nvmlDeviceGetNames\"",
            "[[fault]]\ncall = \"*\"\nanswer = \"no\"",
            "[[device]]\nengines = [3, 3]",
            "[[device]]\nengines = [1]\n[[device]]",
            "[[device]]\n[[device.instance]]\nid = 1\nslices = 8",
        ] {
            assert!(load(text).is_err(), "accepted: {text}");
        }
    }

    #[test]
    fn the_state_file_lies_beside_the_scenario() {
        let path = load("gpu_state = \"gpu\"").unwrap().gpu_state.unwrap();
        assert!(path.is_absolute() && path.ends_with("gpu"));
    }
}
