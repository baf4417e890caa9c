//! What the host did for a service: system calls by class, page faults, tracepoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::durations::Durations;

/// What the host did for a service. A map is empty where its figures were not asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// System calls by class; a class that was never called is left out.
    #[serde(default)]
    pub syscalls: BTreeMap<String, SyscallReport>,
    /// Page faults by kind: minor, major.
    #[serde(default)]
    pub page_faults: BTreeMap<String, u64>,
    /// Events of the tracepoints that were named.
    #[serde(default)]
    pub tracepoints: BTreeMap<String, u64>,
}

/// System calls of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyscallReport {
    /// How many began.
    pub calls: u64,
    /// How many of them were timed and have ended.
    pub timed: u64,
    /// The time of those that were timed; null without any.
    pub time_s: Option<f64>,
    /// Its 99th percentile, within a factor of two; null without any, or above 69 s.
    pub p99_s: Option<f64>,
}

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct HostSums {
    syscalls: BTreeMap<&'static str, (u64, Durations)>,
    page_faults: BTreeMap<&'static str, u64>,
    tracepoints: BTreeMap<String, u64>,
}

impl HostSums {
    /// The same classes, kinds and events, with nothing counted yet.
    pub(super) fn emptied(&self) -> Self {
        Self {
            syscalls: self
                .syscalls
                .keys()
                .map(|class| (*class, Default::default()))
                .collect(),
            page_faults: self.page_faults.keys().map(|kind| (*kind, 0)).collect(),
            tracepoints: self
                .tracepoints
                .keys()
                .map(|event| (event.clone(), 0))
                .collect(),
        }
    }

    pub(super) fn add_syscalls(&mut self, class: &'static str, calls: u64, timed: &Durations) {
        let (sum, durations) = self.syscalls.entry(class).or_default();
        *sum += calls;
        durations.add(timed);
    }

    pub(super) fn add_page_faults(&mut self, kind: &'static str, count: u64) {
        *self.page_faults.entry(kind).or_default() += count;
    }

    pub(super) fn add_tracepoint(&mut self, event: &str, count: u64) {
        *self.tracepoints.entry(event.to_owned()).or_default() += count;
    }

    /// `None` where nothing was told.
    pub(super) fn report(&self) -> Option<HostReport> {
        let is_empty =
            self.syscalls.is_empty() && self.page_faults.is_empty() && self.tracepoints.is_empty();
        let called = self.syscalls.iter().filter(|(_, (calls, _))| *calls > 0);
        (!is_empty).then(|| HostReport {
            syscalls: called
                .map(|(class, (calls, durations))| {
                    let timed = durations.count();
                    let report = SyscallReport {
                        calls: *calls,
                        timed,
                        time_s: (timed > 0).then(|| durations.nanos as f64 / 1e9),
                        p99_s: durations.quantile(0.99).map(|nanos| nanos / 1e9),
                    };
                    ((*class).to_owned(), report)
                })
                .collect(),
            page_faults: self
                .page_faults
                .iter()
                .map(|(kind, count)| ((*kind).to_owned(), *count))
                .collect(),
            tracepoints: self.tracepoints.clone(),
        })
    }
}
