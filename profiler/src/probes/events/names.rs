//! Tracepoints' names: as the user writes them, as the kernel lists them, and what a misspelt one
//! may have been meant for.
//!
//! The kernel's types name every tracepoint (`btf_trace_NAME`), so that tracefs need not be
//! mounted. Categories are tracefs's alone: where it is not there, they are not checked.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::EventError;
use crate::probes::btf::VMLINUX;

/// Where tracefs may be.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const TYPE_PREFIX: &[u8] = b"btf_trace_";
/// Names that are offered for a misspelt one.
const OFFERED: usize = 3;
/// Below it two names are not alike.
const LIKENESS: f64 = 0.8;

/// `category:name`, as `perf list` has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventName {
    category: String,
    name: String,
}

/// Not of the form `category:name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not of the form category:name, for example sched:sched_migrate_task")]
pub struct InvalidEventName;

impl EventName {
    /// The tracepoint's own name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for EventName {
    type Err = InvalidEventName;

    fn from_str(text: &str) -> Result<Self, InvalidEventName> {
        let is_word = |word: &str| {
            let word = word.as_bytes();
            !word.is_empty()
                && word.len() < 64
                && word
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        };
        match text.split_once(':') {
            Some((category, name)) if is_word(category) && is_word(name) => Ok(Self {
                category: category.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(InvalidEventName),
        }
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.category, self.name)
    }
}

impl<'de> serde::Deserialize<'de> for EventName {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// That tracefs, where it is mounted, lists the event.
pub(super) fn check(event: &EventName) -> Result<(), EventError> {
    match events() {
        Some(events) if !events.join(&event.category).join(&event.name).exists() => {
            Err(EventError::Unknown {
                event: event.clone(),
                near: near(event, listed(&events)),
            })
        }
        _ => Ok(()),
    }
}

/// The error for an event to which the kernel attaches no program.
pub(super) fn unknown(event: &EventName) -> EventError {
    let event = event.clone();
    if events().is_some() {
        // It passed `check`.
        return EventError::NotRaw { event };
    }
    let types = fs::read(VMLINUX).unwrap_or_default();
    let near = near(&event, in_types(&types));
    EventError::Unknown { event, near }
}

/// What to do about a name that is not there.
pub(super) fn advice(near: &[String]) -> String {
    match near {
        [] => "; `perf list tracepoint` lists them".to_owned(),
        [one] => format!("; was {one} meant?"),
        several => format!("; was one of these meant: {}?", several.join(", ")),
    }
}

fn events() -> Option<PathBuf> {
    TRACEFS
        .iter()
        .map(|root| Path::new(root).join("events"))
        .find(|events| events.is_dir())
}

/// Every event of tracefs.
fn listed(events: &Path) -> Vec<String> {
    let folders = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    let of = |category: String| {
        let names = folders(&events.join(&category));
        names
            .into_iter()
            .map(move |name| format!("{category}:{name}"))
    };
    folders(events).into_iter().flat_map(of).collect()
}

/// Every tracepoint that the kernel's types name, without its category.
fn in_types(types: &[u8]) -> Vec<String> {
    types
        .split(|byte| *byte == 0)
        .filter_map(|text| text.strip_prefix(TYPE_PREFIX))
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .collect()
}

/// The names that are most like the event's.
fn near(event: &EventName, names: Vec<String>) -> Vec<String> {
    let whole = event.to_string();
    let mut alike: Vec<(f64, String)> = names
        .into_iter()
        .map(|name| {
            let wanted = if name.contains(':') {
                &whole
            } else {
                &event.name
            };
            // A right name in a wrong category is what was meant.
            let own = name.split_once(':').map(|(_, own)| own);
            let likeness = if own == Some(&event.name) {
                1.0
            } else {
                strsim::jaro_winkler(wanted, &name)
            };
            (likeness, name)
        })
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .collect();
    alike.sort_by(|one, other| other.0.total_cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    alike.dedup();
    alike
        .into_iter()
        .take(OFFERED)
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> EventName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_has_a_category() {
        assert_eq!(
            named("sched:sched_migrate_task").to_string(),
            "sched:sched_migrate_task"
        );
        for text in ["sched", "", ":", "sched:", ":x", "a:b:c", "../a:b", "a:b c"] {
            assert_eq!(text.parse::<EventName>(), Err(InvalidEventName), "{text}");
        }
    }

    #[test]
    fn a_misspelt_name_offers_the_nearest_first() {
        let names = [
            "sched:sched_migrate_task",
            "sched:sched_move_numa",
            "block:block_rq_issue",
        ];
        let offered = near(
            &named("sched:sched_migrat_task"),
            names.map(str::to_owned).to_vec(),
        );
        assert_eq!(offered.first().unwrap(), "sched:sched_migrate_task");
        assert!(!offered.contains(&"block:block_rq_issue".to_owned()));
        let offered = near(
            &named("task:sched_migrate_task"),
            names.map(str::to_owned).to_vec(),
        );
        assert_eq!(offered.first().unwrap(), "sched:sched_migrate_task");
    }

    #[test]
    fn tracepoints_are_found_among_the_kernels_type_names() {
        let types = b"\0int\0btf_trace_sched_switch\0trace_x\0btf_trace_sys_enter\0";
        assert_eq!(in_types(types), ["sched_switch", "sys_enter"]);
    }
}
