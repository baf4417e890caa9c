//! The settings that a file, the environment or the command line gives.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::marker::PhantomData;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use log::LevelFilter;
use serde::{Deserialize, Deserializer, de};

use super::{ConfigError, CpuBudget, HindsightWindow, IdleWatts, LogFormat, SyscallSetting};
use crate::export::Aliases;
use crate::export::http::ListenAddress;
use crate::meters::calibration::Calibration;
use crate::meters::external::NodePower;
use crate::probes::events::EventName;
use crate::probes::health::Tier;
use crate::probes::sched::Detail;
use crate::probes::stacks::MOST_HERTZ;
use crate::suggestion::unknown_field;

/// The settings that one source gives. A list replaces the list of a lower source.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of `Config`")]
pub struct PartialConfig {
    #[serde(default, deserialize_with = "one_or_more")]
    pub listen: Option<Vec<ListenAddress>>,
    pub web_config_file: Option<PathBuf>,
    pub hindsight: Option<HindsightWindow>,
    pub nvml_library: Option<PathBuf>,
    pub host_root: Option<PathBuf>,
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
    #[serde(default, deserialize_with = "off_cpu_millis")]
    pub off_cpu: Option<u32>,
    pub request_tier: Option<Tier>,
    pub engine_metrics: Option<bool>,
    pub usage: Option<bool>,
    pub trace_ids: Option<bool>,
    pub idle_watts: Option<IdleWatts>,
    pub node_power: Option<NodePower>,
    pub ipmi: Option<bool>,
    /// In the file alone.
    pub calibration: Option<BTreeMap<String, Calibration>>,
    pub aliases: Option<Aliases>,
    #[serde(default, deserialize_with = "series")]
    pub series_budget: Option<usize>,
    pub cpu_budget: Option<CpuBudget>,
    #[serde(default, deserialize_with = "level")]
    pub log_level: Option<LevelFilter>,
    pub log_format: Option<LogFormat>,
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

impl PartialConfig {
    /// What this source gives, else what `lower` gives.
    pub(super) fn over(self, lower: Self) -> Self {
        Self {
            listen: self.listen.or(lower.listen),
            web_config_file: self.web_config_file.or(lower.web_config_file),
            hindsight: self.hindsight.or(lower.hindsight),
            nvml_library: self.nvml_library.or(lower.nvml_library),
            host_root: self.host_root.or(lower.host_root),
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
            off_cpu: self.off_cpu.or(lower.off_cpu),
            request_tier: self.request_tier.or(lower.request_tier),
            engine_metrics: self.engine_metrics.or(lower.engine_metrics),
            usage: self.usage.or(lower.usage),
            trace_ids: self.trace_ids.or(lower.trace_ids),
            idle_watts: self.idle_watts.or(lower.idle_watts),
            node_power: self.node_power.or(lower.node_power),
            ipmi: self.ipmi.or(lower.ipmi),
            calibration: self.calibration.or(lower.calibration),
            aliases: self.aliases.or(lower.aliases),
            series_budget: self.series_budget.or(lower.series_budget),
            cpu_budget: self.cpu_budget.or(lower.cpu_budget),
            log_level: self.log_level.or(lower.log_level),
            log_format: self.log_format.or(lower.log_format),
            intervals: PartialIntervals {
                drain_ms: self.intervals.drain_ms.or(lower.intervals.drain_ms),
                discover_ms: self.intervals.discover_ms.or(lower.intervals.discover_ms),
                publish_ms: self.intervals.publish_ms.or(lower.intervals.publish_ms),
            },
        }
    }

    pub(super) fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::Invalid {
            path: path.to_owned(),
            line: line(&text, error.span().map_or(0, |span| span.start)),
            message: message(&error),
            next: advice(&error),
        })
    }

    pub(super) fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = &env;
        Ok(Self {
            listen: variable(env, "PERJOULE_LISTEN", list)?,
            web_config_file: variable(env, "PERJOULE_WEB_CONFIG_FILE", str::parse)?,
            hindsight: variable(env, "PERJOULE_HINDSIGHT", str::parse)?,
            nvml_library: variable(env, "PERJOULE_NVML_LIBRARY", str::parse)?,
            host_root: variable(env, "PERJOULE_HOST_ROOT", str::parse)?,
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
            off_cpu: variable(env, "PERJOULE_OFF_CPU", |text| {
                text.parse()
                    .map_err(|_| NOT_MILLIS.to_owned())
                    .and_then(check_off_cpu)
            })?,
            request_tier: variable(env, "PERJOULE_REQUEST_TIER", str::parse)?,
            engine_metrics: variable(env, "PERJOULE_ENGINE_METRICS", switch)?,
            usage: variable(env, "PERJOULE_USAGE", switch)?,
            trace_ids: variable(env, "PERJOULE_TRACE_IDS", switch)?,
            idle_watts: variable(env, "PERJOULE_IDLE_WATTS", str::parse)?,
            node_power: variable(env, "PERJOULE_NODE_POWER", str::parse)?,
            ipmi: variable(env, "PERJOULE_IPMI", switch)?,
            calibration: None,
            aliases: variable(env, "PERJOULE_ALIASES", str::parse)?,
            series_budget: variable(env, "PERJOULE_SERIES_BUDGET", |text| {
                text.parse()
                    .map_err(|_| "not a whole number of series".to_owned())
                    .and_then(check_series)
            })?,
            cpu_budget: variable(env, "PERJOULE_CPU_BUDGET", str::parse)?,
            log_level: variable(env, "PERJOULE_LOG_LEVEL", parse_level)?,
            log_format: variable(env, "PERJOULE_LOG_FORMAT", str::parse)?,
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

/// The line, from 1, of a byte of the text.
pub(super) fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// What is wrong, in one line.
pub(super) fn message(error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match unknown_field(error.message()) {
        Some((unknown, _)) => format!("unknown key `{unknown}`"),
        None => message,
    }
}

/// What to do about a key or its value.
pub(super) fn advice(error: &toml::de::Error) -> String {
    match unknown_field(error.message()) {
        Some((_, Some(name))) => format!("did you mean `{name}`?"),
        Some(_) => "take it out; docs/configuration.md lists the keys".to_owned(),
        None => "correct the value or take the line out".to_owned(),
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

/// Below, a machine's own series alone are more; above, a scrape takes longer than a tick.
fn check_series(series: usize) -> Result<usize, String> {
    if (500..=100_000).contains(&series) {
        Ok(series)
    } else {
        Err(format!("{series} series are not between 500 and 100000"))
    }
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

/// Shorter waits are too many to be told one by one.
fn check_off_cpu(millis: u32) -> Result<u32, String> {
    within(millis.into(), 1, 60_000).map(|_| millis)
}

fn off_cpu_millis<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let millis = u32::deserialize(from)?;
    check_off_cpu(millis).map(Some).map_err(de::Error::custom)
}

fn series<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    let series = usize::deserialize(from)?;
    check_series(series).map(Some).map_err(de::Error::custom)
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

/// A value, or a list of them.
fn one_or_more<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Option<Vec<T>>, D::Error> {
    struct Values<T>(PhantomData<T>);

    impl<'de, T: FromStr<Err: fmt::Display>> de::Visitor<'de> for Values<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a list of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            Ok(vec![text.parse().map_err(E::custom)?])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(text) = from.next_element::<String>()? {
                values.push(text.parse().map_err(de::Error::custom)?);
            }
            Ok(values)
        }
    }

    from.deserialize_any(Values(PhantomData)).map(Some)
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
