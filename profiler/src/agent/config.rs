//! The agent's settings: flag, else `PERJOULE_*` variable, else file, else default.
//!
//! Each source is read into a [`PartialConfig`]; [`Config::load`] lays them over each other.
//! Every mistake is an error that names where it stands and what to do: an agent that runs on
//! half-understood settings measures something else than its user believes.

mod cpu_budget;
mod idle_watts;
mod syscalls;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

use crate::meters::calibration::Calibration;
use crate::meters::external::NodePower;
use crate::probes::events::EventName;
use crate::probes::health::Tier;
use crate::probes::sched::Detail;
use crate::probes::stacks::MOST_HERTZ;
use crate::probes::syscalls::Timing;
pub use cpu_budget::{CpuBudget, ParseCpuBudgetError};
pub use idle_watts::{IdleWatts, ParseIdleWattsError};
pub use syscalls::SyscallSetting;

/// The exporter's port.
pub const PORT: u16 = 27182;
/// Where a service listens unless told otherwise: all interfaces, so that it can be scraped.
pub const SERVICE_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
/// Where a command that measures for its user listens, if told to listen at all: loopback.
pub const COMMAND_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
/// What the agent may cost as a service, unless told otherwise.
pub const SERVICE_CPU_BUDGET: CpuBudget = CpuBudget::Share(0.01);
/// The file that is read where none is named and it exists.
pub const DEFAULT_FILE: &str = "/etc/perjoule/perjoule.toml";

/// Every setting, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where `/metrics` is served; `None`: the verb's default, [`SERVICE_LISTEN`] or
    /// [`COMMAND_LISTEN`].
    pub listen: Option<SocketAddr>,
    /// The NVML library; `None`: the system's own `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    /// The model's name, where no engine tells it.
    pub model: Option<String>,
    /// Services chosen by hand.
    pub services: Services,
    /// Count system calls of services; slows every system call of the machine a little.
    pub syscalls: bool,
    /// What is told of services' threads while they do not run.
    pub waits: Detail,
    /// Which of them are timed.
    pub syscall_timing: Timing,
    /// Count services' page faults; slows every page fault of the machine a little.
    pub faults: bool,
    /// Tracepoints to count by service; each slows what it stands in a little.
    pub events: Vec<EventName>,
    /// Read requests inside TLS at services' TLS libraries: each of their calls takes longer.
    pub tls: bool,
    /// Count launches and waits at services' CUDA driver library: each of these calls takes longer.
    pub cuda: bool,
    /// Count services' cycles, instructions and cache misses by the CPUs' own counters.
    pub pmc: bool,
    /// Sample the stacks of services so many times a second on each CPU; for a recording.
    pub stacks: Option<u32>,
    /// The kind of hook that sees requests; `None`: the first that works.
    pub request_tier: Option<Tier>,
    /// Read token counts from engines' own metrics: the agent then asks its services for them.
    pub engine_metrics: bool,
    /// Read the server's own token counts at a response's end: at most 512 bytes are looked at.
    pub usage: bool,
    /// Read requests' `traceparent` headers.
    pub trace_ids: bool,
    /// GPUs' idle floor; with it nothing is learned.
    pub idle_watts: IdleWatts,
    /// A meter outside the machine, in watts.
    pub node_power: Option<NodePower>,
    /// Ask the management controller for the machine's power, where there is one.
    pub ipmi: bool,
    /// Corrections of meters, by device.
    pub calibration: BTreeMap<String, Calibration>,
    /// What the agent may cost before it takes optional probes off; `None`: the verb's default,
    /// [`SERVICE_CPU_BUDGET`] or no limit.
    pub cpu_budget: Option<CpuBudget>,
    /// What is written to stderr.
    pub log_level: LevelFilter,
    /// How often things are done.
    pub intervals: Intervals,
}

/// Services chosen by hand, beside those found from GPU processes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Services {
    /// By any process of theirs.
    pub pids: Vec<u32>,
    /// By a port they listen on.
    pub ports: Vec<u16>,
    /// By their command's name.
    pub names: Vec<String>,
}

/// How often things are done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Intervals {
    /// Between two readings of the kernel's ring and counters.
    pub drain: Duration,
    /// Between two looks for new services.
    pub discover: Duration,
    /// Between two snapshots for `/metrics`.
    pub publish: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            nvml_library: None,
            model: None,
            services: Services::default(),
            syscalls: false,
            waits: Detail::Reasons,
            syscall_timing: Timing::Exact,
            faults: false,
            events: Vec::new(),
            tls: false,
            cuda: false,
            pmc: false,
            stacks: None,
            request_tier: None,
            engine_metrics: true,
            usage: true,
            trace_ids: false,
            idle_watts: IdleWatts::default(),
            node_power: None,
            ipmi: true,
            calibration: BTreeMap::new(),
            cpu_budget: None,
            log_level: LevelFilter::Info,
            intervals: Intervals {
                drain: Duration::from_millis(20),
                discover: Duration::from_secs(1),
                publish: Duration::from_secs(1),
            },
        }
    }
}

/// The settings that one source gives. A list replaces the list of a lower source.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of `Config`")]
pub struct PartialConfig {
    pub listen: Option<SocketAddr>,
    pub nvml_library: Option<PathBuf>,
    pub model: Option<String>,
    #[serde(default)]
    pub services: PartialServices,
    pub syscalls: Option<SyscallSetting>,
    pub faults: Option<bool>,
    pub events: Option<Vec<EventName>>,
    pub waits: Option<Detail>,
    pub tls: Option<bool>,
    pub cuda: Option<bool>,
    pub pmc: Option<bool>,
    #[serde(default, deserialize_with = "stack_hertz")]
    pub stacks: Option<u32>,
    pub request_tier: Option<Tier>,
    pub engine_metrics: Option<bool>,
    pub usage: Option<bool>,
    pub trace_ids: Option<bool>,
    pub idle_watts: Option<IdleWatts>,
    pub node_power: Option<NodePower>,
    pub ipmi: Option<bool>,
    /// In the file alone.
    pub calibration: Option<BTreeMap<String, Calibration>>,
    pub cpu_budget: Option<CpuBudget>,
    #[serde(default, deserialize_with = "level")]
    pub log_level: Option<LevelFilter>,
    #[serde(default)]
    pub intervals: PartialIntervals,
}

/// Part of [`PartialConfig`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of `Services`")]
pub struct PartialServices {
    pub pids: Option<Vec<NonZeroU32>>,
    pub ports: Option<Vec<NonZeroU16>>,
    pub names: Option<Vec<String>>,
}

/// Part of [`PartialConfig`]; milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of `Intervals`")]
pub struct PartialIntervals {
    #[serde(default, deserialize_with = "drain")]
    pub drain_ms: Option<u64>,
    #[serde(default, deserialize_with = "seldom")]
    pub discover_ms: Option<u64>,
    #[serde(default, deserialize_with = "seldom")]
    pub publish_ms: Option<u64>,
}

/// Why the settings cannot be used, and what to do.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is not there, or may not be read.
    #[error("cannot read {}: {source}; correct the path or the file's permissions", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something that is not understood.
    #[error("{}, line {line}: {message}; correct the line or take it out", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong, with the key's name.
        message: String,
    },
    /// Stacks are of no use without a recording.
    #[error("stacks are sampled for a recording; add --record FILE, or leave --stacks out")]
    StacksUnrecorded,
    /// A variable says something that is not understood.
    #[error("{variable}={value}: {reason}; correct the variable or unset it")]
    Variable {
        /// Which variable.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What is wrong.
        reason: String,
    },
}

impl Config {
    /// Reads and resolves all settings. `file`: the one the user named, which must exist, or
    /// [`Self::default_file`]. `env`: the environment, as [`std::env::var`] has it.
    ///
    /// # Errors
    /// The file cannot be read, or a source says something that is not understood.
    pub fn load(
        file: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
        flags: PartialConfig,
    ) -> Result<Self, ConfigError> {
        let file = file.map_or_else(|| Ok(PartialConfig::default()), PartialConfig::from_file)?;
        Ok(Self::resolve(
            flags.over(PartialConfig::from_env(env)?).over(file),
        ))
    }

    /// [`DEFAULT_FILE`] if it exists.
    pub fn default_file() -> Option<&'static Path> {
        let path = Path::new(DEFAULT_FILE);
        path.exists().then_some(path)
    }

    fn resolve(told: PartialConfig) -> Self {
        let default = Self::default();
        let services = told.services;
        let millis = |told: Option<u64>, default| told.map_or(default, Duration::from_millis);
        Self {
            listen: told.listen,
            nvml_library: told.nvml_library,
            model: told.model,
            services: Services {
                pids: services
                    .pids
                    .unwrap_or_default()
                    .iter()
                    .map(|pid| pid.get())
                    .collect(),
                ports: services
                    .ports
                    .unwrap_or_default()
                    .iter()
                    .map(|port| port.get())
                    .collect(),
                names: services.names.unwrap_or_default(),
            },
            syscalls: told.syscalls.is_some_and(|told| told.timing().is_some()),
            syscall_timing: told
                .syscalls
                .and_then(SyscallSetting::timing)
                .unwrap_or_default(),
            faults: told.faults.unwrap_or(default.faults),
            events: told.events.unwrap_or_default(),
            waits: told.waits.unwrap_or(default.waits),
            tls: told.tls.unwrap_or(default.tls),
            cuda: told.cuda.unwrap_or(default.cuda),
            pmc: told.pmc.unwrap_or(default.pmc),
            stacks: told.stacks,
            request_tier: told.request_tier,
            engine_metrics: told.engine_metrics.unwrap_or(default.engine_metrics),
            usage: told.usage.unwrap_or(default.usage),
            trace_ids: told.trace_ids.unwrap_or(default.trace_ids),
            idle_watts: told.idle_watts.unwrap_or_default(),
            node_power: told.node_power,
            ipmi: told.ipmi.unwrap_or(default.ipmi),
            calibration: told.calibration.unwrap_or_default(),
            cpu_budget: told.cpu_budget,
            log_level: told.log_level.unwrap_or(default.log_level),
            intervals: Intervals {
                drain: millis(told.intervals.drain_ms, default.intervals.drain),
                discover: millis(told.intervals.discover_ms, default.intervals.discover),
                publish: millis(told.intervals.publish_ms, default.intervals.publish),
            },
        }
    }
}

impl PartialConfig {
    /// What this source gives, else what `lower` gives.
    fn over(self, lower: Self) -> Self {
        Self {
            listen: self.listen.or(lower.listen),
            nvml_library: self.nvml_library.or(lower.nvml_library),
            model: self.model.or(lower.model),
            services: PartialServices {
                pids: self.services.pids.or(lower.services.pids),
                ports: self.services.ports.or(lower.services.ports),
                names: self.services.names.or(lower.services.names),
            },
            syscalls: self.syscalls.or(lower.syscalls),
            waits: self.waits.or(lower.waits),
            faults: self.faults.or(lower.faults),
            events: self.events.or(lower.events),
            tls: self.tls.or(lower.tls),
            cuda: self.cuda.or(lower.cuda),
            pmc: self.pmc.or(lower.pmc),
            stacks: self.stacks.or(lower.stacks),
            request_tier: self.request_tier.or(lower.request_tier),
            engine_metrics: self.engine_metrics.or(lower.engine_metrics),
            usage: self.usage.or(lower.usage),
            trace_ids: self.trace_ids.or(lower.trace_ids),
            idle_watts: self.idle_watts.or(lower.idle_watts),
            node_power: self.node_power.or(lower.node_power),
            ipmi: self.ipmi.or(lower.ipmi),
            calibration: self.calibration.or(lower.calibration),
            cpu_budget: self.cpu_budget.or(lower.cpu_budget),
            log_level: self.log_level.or(lower.log_level),
            intervals: PartialIntervals {
                drain_ms: self.intervals.drain_ms.or(lower.intervals.drain_ms),
                discover_ms: self.intervals.discover_ms.or(lower.intervals.discover_ms),
                publish_ms: self.intervals.publish_ms.or(lower.intervals.publish_ms),
            },
        }
    }

    fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.as_bytes().iter().take(start);
            ConfigError::Invalid {
                path: path.to_owned(),
                line: 1 + before.filter(|byte| **byte == b'\n').count(),
                message: error
                    .message()
                    .replace("unknown field", "unknown key")
                    .replace('\n', " "),
            }
        })
    }

    fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = &env;
        Ok(Self {
            listen: variable(env, "PERJOULE_LISTEN", str::parse)?,
            nvml_library: variable(env, "PERJOULE_NVML_LIBRARY", str::parse)?,
            model: variable(env, "PERJOULE_MODEL", str::parse)?,
            services: PartialServices {
                pids: variable(env, "PERJOULE_PIDS", list)?,
                ports: variable(env, "PERJOULE_PORTS", list)?,
                names: variable(env, "PERJOULE_NAMES", list)?,
            },
            syscalls: variable(env, "PERJOULE_SYSCALLS", str::parse)?,
            faults: variable(env, "PERJOULE_FAULTS", switch)?,
            events: variable(env, "PERJOULE_EVENTS", list)?,
            waits: variable(env, "PERJOULE_WAITS", str::parse)?,
            tls: variable(env, "PERJOULE_TLS", switch)?,
            cuda: variable(env, "PERJOULE_CUDA", switch)?,
            pmc: variable(env, "PERJOULE_PMC", switch)?,
            stacks: variable(env, "PERJOULE_STACKS", |text| {
                text.parse()
                    .map_err(|_| "not a whole number of samples a second".to_owned())
                    .and_then(check_stack_hertz)
            })?,
            request_tier: variable(env, "PERJOULE_REQUEST_TIER", str::parse)?,
            engine_metrics: variable(env, "PERJOULE_ENGINE_METRICS", switch)?,
            usage: variable(env, "PERJOULE_USAGE", switch)?,
            trace_ids: variable(env, "PERJOULE_TRACE_IDS", switch)?,
            idle_watts: variable(env, "PERJOULE_IDLE_WATTS", str::parse)?,
            node_power: variable(env, "PERJOULE_NODE_POWER", str::parse)?,
            ipmi: variable(env, "PERJOULE_IPMI", switch)?,
            calibration: None,
            cpu_budget: variable(env, "PERJOULE_CPU_BUDGET", str::parse)?,
            log_level: variable(env, "PERJOULE_LOG_LEVEL", parse_level)?,
            intervals: PartialIntervals {
                drain_ms: variable(env, "PERJOULE_DRAIN_MS", |text| {
                    text.parse()
                        .map_err(|_| NOT_MILLIS.to_owned())
                        .and_then(check_drain)
                })?,
                discover_ms: variable(env, "PERJOULE_DISCOVER_MS", |text| {
                    text.parse()
                        .map_err(|_| NOT_MILLIS.to_owned())
                        .and_then(check_seldom)
                })?,
                publish_ms: variable(env, "PERJOULE_PUBLISH_MS", |text| {
                    text.parse()
                        .map_err(|_| NOT_MILLIS.to_owned())
                        .and_then(check_seldom)
                })?,
            },
        })
    }
}

const NOT_MILLIS: &str = "not a whole number of milliseconds";

/// A variable that is set and not empty.
fn variable<T, E: ToString>(
    env: impl Fn(&str) -> Option<String>,
    variable: &'static str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, ConfigError> {
    let Some(value) = env(variable).filter(|value| !value.trim().is_empty()) else {
        return Ok(None);
    };
    match parse(value.trim()) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(reason) => Err(ConfigError::Variable {
            variable,
            reason: reason.to_string(),
            value,
        }),
    }
}

/// Values between commas.
fn list<T: FromStr<Err: ToString>>(text: &str) -> Result<Vec<T>, String> {
    text.split(',')
        .map(|item| {
            item.trim()
                .parse()
                .map_err(|error: T::Err| error.to_string())
        })
        .collect()
}

pub(super) fn switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "true" | "on" | "yes" => Ok(true),
        "0" | "false" | "off" | "no" => Ok(false),
        _ => Err("neither on nor off"),
    }
}

fn parse_level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse()
        .map_err(|_| "not a log level; one of off, error, warn, info, debug, trace")
}

/// The kernel's ring is sized for at most a tenth of a second of records.
fn check_drain(millis: u64) -> Result<u64, String> {
    within(millis, 20, 100)
}

fn check_seldom(millis: u64) -> Result<u64, String> {
    within(millis, 100, 60_000)
}

fn check_stack_hertz(hertz: u32) -> Result<u32, String> {
    if (1..=MOST_HERTZ).contains(&hertz) {
        Ok(hertz)
    } else {
        Err(format!(
            "{hertz} samples a second are not between 1 and {MOST_HERTZ}"
        ))
    }
}

fn stack_hertz<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let hertz = u32::deserialize(from)?;
    check_stack_hertz(hertz)
        .map(Some)
        .map_err(de::Error::custom)
}

fn within(millis: u64, low: u64, high: u64) -> Result<u64, String> {
    if (low..=high).contains(&millis) {
        Ok(millis)
    } else {
        Err(format!("{millis} ms is not between {low} and {high} ms"))
    }
}

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<Option<LevelFilter>, D::Error> {
    let text = String::deserialize(from)?;
    parse_level(&text).map(Some).map_err(de::Error::custom)
}

fn drain<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let millis = u64::deserialize(from)?;
    check_drain(millis).map(Some).map_err(de::Error::custom)
}

fn seldom<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let millis = u64::deserialize(from)?;
    check_seldom(millis).map(Some).map_err(de::Error::custom)
}
