//! The agent's settings: flag, else `PERJOULE_*` variable, else file, else default.
//!
//! Each source is read into a [`PartialConfig`]; [`Config::load`] lays them over each other.
//! Every mistake is an error that names where it stands and what to do: an agent that runs on
//! half-understood settings measures something else than its user believes.

pub mod check;
mod cpu_budget;
mod idle_watts;
mod log_format;
mod sources;
mod syscalls;
#[cfg(test)]
mod tests;
mod time_span;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use thiserror::Error;

use crate::export::http::ListenAddress;
use crate::export::{Aliases, SERIES_BUDGET};
use crate::meters::calibration::Calibration;
use crate::meters::external::NodePower;
use crate::probes::events::EventName;
use crate::probes::health::Tier;
use crate::probes::sched::Detail;
use crate::probes::stacks::Wanted;
use crate::probes::syscalls::Timing;
pub use cpu_budget::{CpuBudget, ParseCpuBudgetError};
pub use idle_watts::{IdleWatts, ParseIdleWattsError};
pub use log_format::LogFormat;
pub use sources::{PartialConfig, PartialIntervals, PartialServices};
pub use syscalls::SyscallSetting;
pub use time_span::{HindsightWindow, ParseHindsightError, ParseSpanError, Unit, parse_span};

/// The exporter's port.
pub const PORT: u16 = 27182;
/// Where a service listens unless told otherwise: every address, so that it can be scraped.
pub const SERVICE_LISTEN: ListenAddress = ListenAddress::Everywhere(PORT);
/// What the agent may cost as a service, unless told otherwise.
pub const SERVICE_CPU_BUDGET: CpuBudget = CpuBudget::Share(0.01);
/// The file that is read where none is named and it exists.
pub const DEFAULT_FILE: &str = "/etc/perjoule/perjoule.toml";

/// Every setting, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where `run` serves `/metrics`; `None`: [`SERVICE_LISTEN`]. No other verb serves anything.
    pub listen: Option<Vec<ListenAddress>>,
    /// Who may read it, and over what; `None`: everybody, over plain HTTP.
    pub web_config_file: Option<PathBuf>,
    /// How many of the last minutes `run` keeps on disk, if any.
    pub hindsight: Option<HindsightWindow>,
    /// The NVML library; `None`: the system's own `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    /// Where the machine's file system begins, as this process sees it.
    pub host_root: PathBuf,
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
    /// Sample the stacks of services so many times a second on each CPU; for a recording or the last minutes.
    pub stacks: Option<u32>,
    /// Take the stacks of services' waits that last so many milliseconds; likewise.
    pub off_cpu: Option<u32>,
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
    /// Whose names a few metrics are shown under beside their own.
    pub aliases: Aliases,
    /// How many series `/metrics` may have before services share them.
    pub series_budget: usize,
    /// What the agent may cost before it takes optional probes off; `None`: the verb's default,
    /// [`SERVICE_CPU_BUDGET`] or no limit.
    pub cpu_budget: Option<CpuBudget>,
    /// What is written to stderr.
    pub log_level: LevelFilter,
    /// How it is written.
    pub log_format: LogFormat,
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
            web_config_file: None,
            hindsight: None,
            nvml_library: None,
            host_root: PathBuf::from("/"),
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
            off_cpu: None,
            request_tier: None,
            engine_metrics: true,
            usage: true,
            trace_ids: false,
            idle_watts: IdleWatts::default(),
            node_power: None,
            ipmi: true,
            calibration: BTreeMap::new(),
            aliases: Aliases::None,
            series_budget: SERIES_BUDGET,
            cpu_budget: None,
            log_level: LevelFilter::Info,
            log_format: LogFormat::Text,
            intervals: Intervals {
                drain: Duration::from_millis(20),
                discover: Duration::from_secs(1),
                publish: Duration::from_secs(1),
            },
        }
    }
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
    #[error("{}, line {line}: {message}; {next}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong, with the key's name.
        message: String,
        /// What to do.
        next: String,
    },
    /// Stacks are of no use where nothing keeps them.
    #[error(
        "stacks are taken for a recording or the last minutes; add --record FILE (run: or --hindsight 10m), or \
         leave --stacks and --off-cpu out"
    )]
    StacksUnrecorded,
    /// The last minutes are to be kept, and nobody says where.
    #[error(
        "the last minutes need a place: name it with --hindsight-file FILE, or set STATE_DIRECTORY, as \
         systemd's StateDirectory= does"
    )]
    HindsightNowhere,
    /// A place for minutes that nobody wants kept.
    #[error(
        "--hindsight-file without --hindsight keeps nothing; add --hindsight 10m, or take it out"
    )]
    HindsightUnasked,
    /// Waits are not followed, whose stacks are wanted.
    #[error(
        "stacks of waits need --waits reasons or run-queue; take --waits off out, or --off-cpu"
    )]
    WaitsUnfollowed,
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

    /// Which stacks are taken.
    pub fn wanted_stacks(&self) -> Wanted {
        let millis = |millis: u32| Duration::from_millis(millis.into());
        Wanted {
            on_cpu: self.stacks,
            off_cpu: self.off_cpu.map(millis),
        }
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
            web_config_file: told.web_config_file,
            hindsight: told.hindsight,
            nvml_library: told.nvml_library,
            host_root: told.host_root.unwrap_or(default.host_root),
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
            off_cpu: told.off_cpu,
            request_tier: told.request_tier,
            engine_metrics: told.engine_metrics.unwrap_or(default.engine_metrics),
            usage: told.usage.unwrap_or(default.usage),
            trace_ids: told.trace_ids.unwrap_or(default.trace_ids),
            idle_watts: told.idle_watts.unwrap_or_default(),
            node_power: told.node_power,
            ipmi: told.ipmi.unwrap_or(default.ipmi),
            calibration: told.calibration.unwrap_or_default(),
            aliases: told.aliases.unwrap_or(default.aliases),
            series_budget: told.series_budget.unwrap_or(default.series_budget),
            cpu_budget: told.cpu_budget,
            log_level: told.log_level.unwrap_or(default.log_level),
            log_format: told.log_format.unwrap_or(default.log_format),
            intervals: Intervals {
                drain: millis(told.intervals.drain_ms, default.intervals.drain),
                discover: millis(told.intervals.discover_ms, default.intervals.discover),
                publish: millis(told.intervals.publish_ms, default.intervals.publish),
            },
        }
    }
}
