//! From flags to settings.

use std::env;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};

use clap::Args;
use log::LevelFilter;

use crate::agent::config::{
    Config, ConfigError, CpuBudget, IdleWatts, LogFormat, PartialConfig, PartialServices,
    SyscallSetting,
};
use crate::meters::external::NodePower;
use crate::probes::events::EventName;
use crate::probes::health::Tier;
use crate::probes::sched::Detail;

/// What to watch, and how; the same for every verb that measures.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Target {
    /// The service of this process and all below it
    #[arg(short, long, value_name = "PID")]
    pid: Vec<NonZeroU32>,
    /// The service that listens on this TCP port
    #[arg(long, value_name = "PORT")]
    port: Vec<NonZeroU16>,
    /// The service of this name: container, unit or program
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// The NVML library [default: libnvidia-ml.so.1]
    #[arg(long, value_name = "FILE")]
    pub(super) nvml_library: Option<PathBuf>,
    /// Where the machine's file system begins, seen from a container; what Kubernetes calls
    /// containers is read below it [default: /]
    #[arg(long, value_name = "DIRECTORY")]
    host_root: Option<PathBuf>,
    /// The GPUs' idle power: watts for all, or DEVICE=watts; switches learning off
    #[arg(long, value_name = "[DEVICE=]W")]
    idle_watts: Vec<IdleWatts>,
    /// A meter of the whole machine: a URL (plain http) or file with its watts, #METRIC behind it
    /// for a Prometheus sample
    #[arg(long, value_name = "URL|FILE")]
    node_power: Option<NodePower>,
    /// Count system calls by class, and time every one (exact) or one in 64 (sampled); slows
    /// every system call of the machine a little
    #[arg(long, value_name = "exact|sampled", num_args = 0..=1, default_missing_value = "exact")]
    syscalls: Option<SyscallSetting>,
    /// Count page faults; slows every page fault of the machine a little
    #[arg(long)]
    faults: bool,
    /// Count this tracepoint in services' processes, for example sched:sched_migrate_task; up to 8
    #[arg(long, value_name = "CATEGORY:NAME")]
    event: Vec<EventName>,
    /// What is told of the services' threads while they do not run: off, run-queue (latency, switches,
    /// migrations), reasons (also why they block) [default: reasons]
    #[arg(long, value_name = "DETAIL")]
    waits: Option<Detail>,
    /// See requests inside TLS (OpenSSL, BoringSSL); slows every call of the service's TLS library
    #[arg(long)]
    tls: bool,
    /// Count CUDA launches and the time spent waiting for the GPU; slows every launch a little
    #[arg(long)]
    cuda: bool,
    /// Count cycles, instructions and cache misses, where the CPUs have counters
    #[arg(long)]
    pmc: bool,
    /// Sample the stacks of the services this often a second on each CPU [default: 49], for `perjoule
    /// script --format svg`; for a recording or `run --hindsight`
    #[arg(long, value_name = "HZ", num_args = 0..=1, default_missing_value = "49",
        value_parser = clap::value_parser!(u32).range(1..=999))]
    stacks: Option<u32>,
    /// Take the stacks where threads of the services wait for this many milliseconds or longer
    /// [default: 1], for `perjoule script --off-cpu`; for a recording or `run --hindsight`
    #[arg(long, value_name = "MS", num_args = 0..=1, default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=60_000))]
    off_cpu: Option<u32>,
    /// The kind of hook that sees requests: tp_btf, fexit, kprobe, raw_tp [default: the first
    /// that works]
    #[arg(long, value_name = "TIER")]
    request_tier: Option<Tier>,
    /// Do not read token counts from the inference engine's own /metrics, once a second
    #[arg(long)]
    no_engine_metrics: bool,
    /// Do not read the server's own token counts at the end of its responses
    #[arg(long)]
    no_usage: bool,
    /// Read the traceparent header of requests, and write the trace's id to the recording
    #[arg(long)]
    trace_ids: bool,
    /// What perjoule may cost, per cent of a core, or none: above it, optional probes are taken off
    /// [default: 1 for `run`, else none]
    #[arg(long, value_name = "PERCENT")]
    cpu_budget: Option<CpuBudget>,
    /// How the log is written: text, or json: one object a line [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// The model's name, for service_info
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

/// Where a recording is written beside what the verb does.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Record {
    /// Record everything booked in this file (SQLite); `perjoule report` and `script` read it
    #[arg(long, value_name = "FILE")]
    pub(super) record: Option<PathBuf>,
}

impl Target {
    /// True if services are named by hand.
    pub(super) fn names_services(&self) -> bool {
        !(self.pid.is_empty() && self.port.is_empty() && self.name.is_empty())
    }

    /// True if all that is watched ends with processes that are named.
    pub(super) fn names_only_processes(&self) -> bool {
        !self.pid.is_empty() && self.port.is_empty() && self.name.is_empty()
    }

    /// Adds a process to the services named by hand.
    pub(super) fn add_pid(&mut self, pid: NonZeroU32) {
        self.pid.push(pid);
    }

    /// These flags over the environment over the file. `keeps_stacks`: true if something on disk does.
    pub(super) fn config(
        &self,
        file: Option<&Path>,
        verbose: u8,
        keeps_stacks: impl FnOnce(&Config) -> bool,
    ) -> Result<Config, ConfigError> {
        let list = |empty: bool| (!empty).then_some(());
        let idle_watts = self.idle_watts.iter().cloned().reduce(IdleWatts::and);
        let flags = PartialConfig {
            nvml_library: self.nvml_library.clone(),
            host_root: self.host_root.clone(),
            model: self.model.clone(),
            services: PartialServices {
                pids: list(self.pid.is_empty()).map(|()| self.pid.clone()),
                ports: list(self.port.is_empty()).map(|()| self.port.clone()),
                names: list(self.name.is_empty()).map(|()| self.name.clone()),
            },
            syscalls: self.syscalls,
            faults: self.faults.then_some(true),
            events: list(self.event.is_empty()).map(|()| self.event.clone()),
            waits: self.waits,
            tls: self.tls.then_some(true),
            cuda: self.cuda.then_some(true),
            pmc: self.pmc.then_some(true),
            stacks: self.stacks,
            off_cpu: self.off_cpu,
            request_tier: self.request_tier,
            engine_metrics: self.no_engine_metrics.then_some(false),
            usage: self.no_usage.then_some(false),
            trace_ids: self.trace_ids.then_some(true),
            idle_watts,
            node_power: self.node_power.clone(),
            cpu_budget: self.cpu_budget,
            log_level: level(verbose),
            log_format: self.log_format,
            ..PartialConfig::default()
        };
        let config = load(file, flags)?;
        if config.wanted_stacks().any() && !keeps_stacks(&config) {
            return Err(ConfigError::StacksUnrecorded);
        }
        if config.off_cpu.is_some() && config.waits == Detail::Nothing {
            return Err(ConfigError::WaitsUnfollowed);
        }
        Ok(config)
    }
}

/// The user's file, else the machine's if there is one, below environment and flags.
pub(super) fn load(file: Option<&Path>, flags: PartialConfig) -> Result<Config, ConfigError> {
    let file = match file {
        Some(file) => Some(file),
        None => Config::default_file(),
    };
    Config::load(file, |name| env::var(name).ok(), flags)
}

/// What `-v` asks for; `None` leaves it to the settings.
pub(super) const fn level(verbose: u8) -> Option<LevelFilter> {
    match verbose {
        0 => None,
        1 => Some(LevelFilter::Debug),
        _ => Some(LevelFilter::Trace),
    }
}
