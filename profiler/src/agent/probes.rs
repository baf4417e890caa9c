//! The kernel probes of one agent: loaded together, each failing alone.

use std::path::Path;

use crate::clock::Timestamp;
use crate::finding::{Finding, Status};
use crate::ledger::{Owner, ServiceId};
use crate::probes::health::{ProgramHealth, Verdict};
use crate::probes::load_error::LoadError;
use crate::probes::loader::{Loader, Options};
use crate::probes::owners::Owners;
use crate::probes::requests::{Losses, Observed, RequestProbe};
use crate::probes::requirements;
use crate::probes::sched::{CpuWindow, SchedProbe};
use crate::probes::syscalls::{SyscallCounts, SyscallProbe};
use crate::services::routes::route;

/// Whatever could be attached.
#[derive(Debug)]
pub(super) struct Probes {
    // Probes go before the loader, which detaches their programs.
    requests: Option<RequestProbe>,
    sched: Option<SchedProbe>,
    syscalls: Option<SyscallProbe>,
    owners: Owners,
    loader: Loader,
}

impl Probes {
    /// Loads the object and attaches each probe. An error means that no probe can run at all.
    pub(super) fn attach(syscalls: bool, log_level: log::LevelFilter) -> Result<Self, LoadError> {
        let mut options = Options::default();
        options.log_level = log_level;
        Owners::configure(&mut options);
        SchedProbe::configure(&mut options);
        RequestProbe::configure(&mut options);
        if syscalls {
            SyscallProbe::configure(&mut options);
        }
        let mut loader = Loader::new(&options)?;
        let owners = Owners::attach(&mut loader)?;
        // The loader keeps each verdict for doctor, /metrics and the log.
        let sched = SchedProbe::attach(&mut loader, &owners).ok();
        let requests = RequestProbe::attach(&mut loader).ok();
        let syscalls = if syscalls {
            SyscallProbe::attach(&mut loader).ok()
        } else {
            None
        };
        loader.settle();
        Ok(Self {
            requests,
            sched,
            syscalls,
            owners,
            loader,
        })
    }

    pub(super) fn sees_requests(&self) -> bool {
        self.requests.is_some()
    }

    pub(super) fn sees_cpu_time(&self) -> bool {
        self.sched.is_some()
    }

    /// From now on the process, and the children it makes, are the service's.
    pub(super) fn join(&mut self, pid: u32, service: ServiceId) {
        if !self.owners.set(pid, Owner::Service(service)) {
            log::warn!("process {pid} cannot be followed: the table of processes is full");
        }
    }

    /// The process has ended or is another service's now; its number may be in use again.
    pub(super) fn leave(&mut self, pid: u32, service: ServiceId) {
        if self.owners.get(pid) == Owner::Service(service) {
            self.owners.set(pid, Owner::Other);
        }
    }

    /// The service has ended: its place is free for another.
    pub(super) fn forget(&mut self, service: ServiceId) {
        self.owners.forget(service);
    }

    /// Requests that changed since the last poll, and the moment up to which all is told; `None`
    /// without the probe.
    pub(super) fn poll_requests(&mut self, out: &mut Vec<Observed>) -> Option<Timestamp> {
        Some(self.requests.as_mut()?.poll(&self.owners, route, out))
    }

    /// On-CPU time since the last read; `None` without the probe.
    pub(super) fn read_cpu(&mut self) -> Option<CpuWindow> {
        Some(self.sched.as_mut()?.read(&self.owners))
    }

    /// Calls by class of each service that was counted so far, since it first was; these services
    /// are counted from now on. Empty without the probe.
    pub(super) fn read_syscalls(&mut self, services: &[ServiceId]) -> Vec<SyscallCounts> {
        let Some(probe) = &mut self.syscalls else {
            return Vec::new();
        };
        let counts = probe.read();
        let refused = probe.set_services(&self.owners, services);
        if refused > 0 {
            log::debug!("system calls of {refused} services are not counted: no room");
        }
        counts
    }

    /// What the request probe lost.
    pub(super) fn losses(&self) -> Losses {
        self.requests
            .as_ref()
            .map_or_else(Losses::default, RequestProbe::losses)
    }

    pub(super) fn health(&self) -> Vec<ProgramHealth> {
        self.loader.health()
    }

    pub(super) fn poll_log(&mut self) {
        self.loader.poll_log();
    }
}

/// The machine's requirements, then each program's verdict from attaching it for a moment.
pub(super) fn examine(log_level: log::LevelFilter) -> Vec<Finding> {
    let mut findings = requirements::check(Path::new("/"));
    if findings
        .iter()
        .any(|finding| finding.status == Status::Fail)
    {
        // Each failure says what to do; attaching would fail for the same reason.
        return findings;
    }
    match Probes::attach(true, log_level) {
        Ok(probes) => findings.extend(probes.health().into_iter().map(|program| {
            let id = format!("probe.{}", program.program);
            match program.verdict {
                Verdict::Ok => Finding::pass(id, format!("attached, tier {}", program.tier.name())),
                Verdict::Off => Finding::pass(id, "not asked for"),
                Verdict::Unsupported | Verdict::Broken => {
                    let fix = "the other probes go on without it; a newer kernel may have it";
                    Finding::of(id, Status::Warn, program.text, fix)
                }
            }
        })),
        Err(error) => {
            let fix = "see the message; `perjoule doctor -v` says more";
            findings.push(Finding::of("probes", Status::Fail, error.to_string(), fix));
        }
    }
    findings
}
