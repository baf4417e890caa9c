//! Each thread of the services, for who asks for it: what it did, and its name while it lived.

use std::collections::BTreeMap;
use std::fs;

use super::probes::Probes;
use crate::ledger::ServiceId;
use crate::services::Service;
use crate::waits::ThreadTimes;

/// Threads that are remembered; more are not asked for their names.
const MOST: usize = 16_384;

/// A thread as it was seen last.
#[derive(Debug, Clone)]
pub(super) struct Thread {
    pub(super) service: ServiceId,
    /// The kernel's name for it; empty if it ended before it was asked.
    pub(super) name: String,
    pub(super) times: ThreadTimes,
}

/// Every thread that was seen, by process and thread id. One that lived between two looks is in its
/// service's sums only.
#[derive(Debug, Default)]
pub(super) struct Threads(BTreeMap<(u32, u32), Thread>);

impl Threads {
    /// Looks at all threads.
    pub(super) fn look(&mut self, probes: &Probes, services: &[Service]) {
        for times in probes.threads() {
            let ThreadTimes { tid, tgid, .. } = times;
            if let Some(known) = self.0.get_mut(&(tgid, tid)) {
                known.times = times;
                continue;
            }
            let owner = services.iter().find(|service| service.pids.contains(&tgid));
            if let Some(service) = owner
                && self.0.len() < MOST
            {
                let name = fs::read_to_string(format!("/proc/{tgid}/task/{tid}/comm"));
                let thread = Thread {
                    service: service.id,
                    name: name.unwrap_or_default().trim_end().to_owned(),
                    times,
                };
                self.0.insert((tgid, tid), thread);
            }
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Thread> {
        self.0.values()
    }
}
