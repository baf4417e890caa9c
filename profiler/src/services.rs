//! Who is who: which processes serve requests together, and where they listen.
//!
//! A *service* is a container, a Slurm job or a systemd unit; else a process tree. It is found
//! through its processes on a GPU, once it also listens on a TCP port, or is named by hand. In:
//! `/proc` and the process ids that hold GPUs. Out: [`Service`]s with ids that stay the same while
//! processes come and go.
//!
//! Everything is as of the latest [`Services::refresh`]. One is due whenever [`Population`] changes,
//! but at most once a second; once a second while [`Services::is_settling`]; else every
//! [`LISTENERS_EVERY`]. Then a new process of a service is known within a second, and so is its
//! first listener; another one within ten, if its processes stay the same. A child that lives for
//! less than that may never be known; its CPU time is then `other`.
//!
//! **Names.** What Kubernetes calls a container, else the unit or job that runs it, else its first
//! twelve digits; a unit's name, `job-<number>`; a tree is named by its topmost process: its program's
//! file name, or the module or script that an interpreter runs. Names are unique: the second `vllm`
//! is `vllm-2`.
//!
//! **The same service.** A service whose processes have all ended is continued by its own container,
//! job or unit, and by one of the same name, and in Kubernetes of the same workload, that listens on
//! one of the same ports. After a minute it is forgotten: what comes then has a new id, and the name
//! if that is free. So the list is bounded by what is alive and what ended of late.

pub mod cgroups;
mod members;
mod names;
mod pod_logs;
mod population;
mod ports;
mod processes;
pub mod routes;
mod service;
mod sockets;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use members::LISTENERS_EVERY;
pub use pod_logs::PODS as POD_LOGS;
pub use population::Population;
pub use service::{Changes, Listener, Selection, Service, Target, find};
pub use sockets::Family;

use crate::clock::Timestamp;
use crate::ledger::{Holders, InstanceHolders, MeterId, Owner, ServiceId};
use members::{Candidate, Part};
use pod_logs::PodLogs;
use processes::{Key, Processes};

/// So long the processes of a service are still known after their end: their last CPU time and
/// requests arrive later than they leave.
const REMEMBERED: Duration = Duration::from_secs(10);
/// A service is forgotten so long after its last process,
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// or after [`REMEMBERED`] where more than this have ended of late: the kernel side has room for 252.
const MOST_ENDED: usize = 100;

/// All services, as of the latest refresh.
#[derive(Debug)]
pub struct Services {
    proc: PathBuf,
    agent: u32,
    selection: Selection,
    processes: Processes,
    pod_logs: PodLogs,
    candidates: Vec<Candidate>,
    /// By id.
    services: Vec<Service>,
    /// No id is given twice.
    next: u32,
    /// Whose each process is.
    owners: BTreeMap<u32, (Key, ServiceId)>,
    /// Processes that ended of late.
    departed: Vec<(u32, ServiceId, Timestamp)>,
}

impl Services {
    /// No services yet; the first [`Self::refresh`] finds them. `proc` is `/proc`; `host_root`: where
    /// the machine's file system begins.
    pub fn new(selection: Selection, proc: &Path, host_root: &Path) -> Self {
        let proc = proc.to_owned();
        let candidates = (0..selection.targets.len())
            .map(Candidate::picked)
            .collect();
        Self {
            processes: Processes::new(proc.clone()),
            pod_logs: PodLogs::new(host_root),
            agent: std::process::id(),
            selection,
            candidates,
            services: Vec::new(),
            next: 0,
            owners: BTreeMap::new(),
            departed: Vec::new(),
            proc,
        }
    }

    /// Looks again at all processes, listeners and the given holders of GPUs: (its meter,
    /// process ids on it). It is `now`. Takes milliseconds.
    ///
    /// # Errors
    /// When `/proc` cannot be listed; everything stays as it was.
    pub fn refresh(&mut self, gpus: &[(MeterId, Vec<u32>)], now: Timestamp) -> io::Result<Changes> {
        let watched: BTreeSet<u32> = self
            .candidates
            .iter()
            .flat_map(Candidate::pids)
            .copied()
            .collect();
        self.processes.refresh(&watched, now)?;
        let agent_line = tree::agent_line(&self.processes, self.agent);
        self.follow_targets(&agent_line, now);
        let mut taken = BTreeSet::new();
        for candidate in &mut self.candidates {
            candidate.gather(&self.processes, self.agent, &mut taken);
        }
        if self.selection.on_gpus {
            self.find_on_gpus(gpus, &agent_line, &mut taken);
        }
        let mut networks = members::Networks::default();
        for candidate in &mut self.candidates {
            candidate.look_for_listeners(&self.proc, &self.processes, &mut networks, now);
        }
        let mut changes = self.publish(gpus, now);
        changes.forgotten = self.forget_ended(now);
        // Groups that have ended and are no service, or none that is remembered, are of no interest.
        self.candidates.retain(|candidate| {
            candidate.id.is_some() || candidate.is_picked() || !candidate.pids().is_empty()
        });
        Ok(changes)
    }

    /// Finds the groups behind targets that have none, or may have more by now.
    fn follow_targets(&mut self, agent_line: &BTreeSet<u32>, now: Timestamp) {
        for candidate in &mut self.candidates {
            let Some(target) = candidate.target(&self.selection.targets) else {
                continue;
            };
            let processes = &self.processes;
            let parts: Vec<Part> = match target {
                // Once found, the process id may be somebody else's after its end.
                Target::Pid(_) if candidate.is_bound() => continue,
                Target::Pid(pid) => processes
                    .get(*pid)
                    .map(|process| Part::Tree(process.key()))
                    .into_iter()
                    .collect(),
                // Looking through everybody's sockets is dear: only for a listener that is new.
                Target::Port(_) if candidate.is_settled(now) => continue,
                Target::Port(port) if candidate.knows(&ports::sockets_here(&self.proc, *port)) => {
                    continue;
                }
                Target::Port(port) => ports::owners(&self.proc, processes, *port)
                    .into_iter()
                    .filter(|pid| *pid != self.agent)
                    .filter_map(|pid| processes.get(pid))
                    .map(|process| members::part_of(processes, process, agent_line))
                    .collect(),
                Target::Name(name) => processes
                    .iter()
                    .filter(|process| !agent_line.contains(&process.pid))
                    .filter(|process| members::is_called(processes, process, name))
                    .map(|process| members::part_of(processes, process, agent_line))
                    .collect(),
            };
            candidate.add_parts(parts);
        }
    }

    /// Every process on a GPU that no candidate has yet makes one.
    fn find_on_gpus(
        &mut self,
        gpus: &[(MeterId, Vec<u32>)],
        agent_line: &BTreeSet<u32>,
        taken: &mut BTreeSet<u32>,
    ) {
        for pid in gpus.iter().flat_map(|(_, pids)| pids) {
            if taken.contains(pid) || agent_line.contains(pid) {
                continue;
            }
            let Some(process) = self.processes.get(*pid) else {
                continue;
            };
            let part = members::part_of(&self.processes, process, agent_line);
            let mut candidate = Candidate::found(part);
            candidate.gather(&self.processes, self.agent, taken);
            self.candidates.push(candidate);
        }
    }

    /// Makes services of the candidates that are some, and brings the others up to date.
    fn publish(&mut self, gpus: &[(MeterId, Vec<u32>)], now: Timestamp) -> Changes {
        let mut changes = Changes::default();
        let mut owners = BTreeMap::new();
        for index in 0..self.candidates.len() {
            if let Some(candidate) = self.candidates.get_mut(index)
                && candidate.is_service()
            {
                candidate.look_for_pod(&self.processes, &self.pod_logs);
            }
            self.give_id(index);
            let Some(candidate) = self.candidates.get(index) else {
                continue;
            };
            let Some(id) = candidate.id else { continue };
            let place = self.services.binary_search_by_key(&id, |known| known.id);
            let Some(service) = place.ok().and_then(|place| self.services.get_mut(place)) else {
                continue;
            };
            for pid in candidate.pids() {
                if let Some(process) = self.processes.get(*pid) {
                    owners.insert(*pid, (process.key(), id));
                }
            }
            service.pids.clone_from(candidate.pids());
            // A service that has ended is still where it was.
            if !service.pids.is_empty() {
                service.group = candidate.group(&self.processes).cloned();
                service.pod.clone_from(&candidate.pod);
            }
            service.gpus = gpus
                .iter()
                .filter(|(_, pids)| service.pids.iter().any(|pid| pids.contains(pid)))
                .map(|(meter, _)| *meter)
                .collect();
            // A service that has ended keeps its listeners' ports, by which its successor is
            // known.
            if !service.pids.is_empty() && service.listeners != candidate.listeners() {
                service.listeners = candidate.listeners().to_vec();
                changes.listeners.push(id);
            }
        }
        for (pid, (key, id)) in &self.owners {
            if owners.get(pid) != Some(&(*key, *id)) {
                changes.left.push((*pid, *id));
                self.departed.push((*pid, *id, now));
            }
        }
        for (pid, (key, id)) in &owners {
            if self.owners.get(pid) != Some(&(*key, *id)) {
                changes.joined.push((*pid, *id));
            }
        }
        self.owners = owners;
        self.departed.retain(|(_, _, at)| now < at.plus(REMEMBERED));
        changes
    }

    /// Forgets services that ended long ago, and says which.
    fn forget_ended(&mut self, now: Timestamp) -> Vec<ServiceId> {
        let mut ended = 0;
        for candidate in &mut self.candidates {
            if candidate.id.is_none() || !candidate.pids().is_empty() {
                candidate.ended = None;
            } else {
                candidate.ended.get_or_insert(now);
                ended += 1;
            }
        }
        let patience = if ended > MOST_ENDED {
            REMEMBERED
        } else {
            FORGOTTEN_AFTER
        };
        let mut forgotten = Vec::new();
        for candidate in &mut self.candidates {
            if candidate.ended.is_some_and(|at| now >= at.plus(patience)) {
                forgotten.extend(candidate.id.take());
            }
        }
        forgotten.sort_unstable();
        self.services
            .retain(|service| forgotten.binary_search(&service.id).is_err());
        forgotten
    }

    /// Gives a candidate that has become a service its id and name.
    fn give_id(&mut self, index: usize) {
        let Some(candidate) = self.candidates.get(index) else {
            return;
        };
        if candidate.id.is_some() || !candidate.is_service() {
            return;
        }
        let name = match candidate.target(&self.selection.targets) {
            Some(Target::Name(name)) => name.clone(),
            _ => candidate.name(&self.processes),
        };
        // Containers of one name in two workloads are two services.
        let identity = candidate.pod.as_ref().map_or_else(
            || name.clone(),
            |pod| format!("{}/{}/{name}", pod.namespace, pod.workload()),
        );
        let ports = candidate.ports();
        // The one it continues: its processes have ended, and name and port are the same.
        let earlier = self.candidates.iter().position(|other| {
            other.id.is_some()
                && !other.is_picked()
                && other.pids().is_empty()
                && other.identity.as_ref() == Some(&identity)
                && other
                    .id
                    .and_then(|id| self.get(id))
                    .is_some_and(|service| !service.ports().is_disjoint(&ports))
        });
        let id = match earlier.and_then(|place| self.candidates.get_mut(place)) {
            Some(other) => other.id.take(),
            None => None,
        };
        let id = id.unwrap_or_else(|| {
            let id = ServiceId(self.next);
            self.next += 1;
            self.services.push(Service {
                id,
                name: self.unique_name(&name),
                group: None,
                pod: None,
                pids: BTreeSet::new(),
                listeners: Vec::new(),
                gpus: Vec::new(),
            });
            id
        });
        if let Some(candidate) = self.candidates.get_mut(index) {
            candidate.id = Some(id);
            candidate.identity = Some(identity);
        }
    }

    fn unique_name(&self, base: &str) -> String {
        let free = |name: &str| self.services.iter().all(|service| service.name != name);
        if free(base) {
            return base.to_owned();
        }
        let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
        numbered
            .into_iter()
            .find(|name| free(name))
            .unwrap_or_else(|| base.to_owned())
    }

    /// All services by id, those that ended of late included.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.services.iter()
    }

    /// One service.
    pub fn get(&self, id: ServiceId) -> Option<&Service> {
        find(&self.services, id)
    }

    /// The service of a process, also for ten seconds after its end.
    pub fn service_of(&self, pid: u32) -> Option<ServiceId> {
        self.owners.get(&pid).map(|(_, id)| *id).or_else(|| {
            let departed = self
                .departed
                .iter()
                .rev()
                .find(|(departed, ..)| *departed == pid);
            // Unless the number is in use again.
            departed
                .filter(|_| self.processes.get(pid).is_none())
                .map(|(_, id, _)| *id)
        })
    }

    /// Whose CPU time a process's is.
    pub fn owner(&self, pid: u32) -> Owner {
        if pid == self.agent {
            return Owner::Agent;
        }
        self.service_of(pid).map_or(Owner::Other, Owner::Service)
    }

    /// Who holds a GPU, as the ledger takes it: process ids, and the instance that each is on, of a GPU
    /// that is split.
    pub fn holders(
        &self,
        meter: MeterId,
        at: Timestamp,
        processes: &[(u32, Option<u32>)],
    ) -> Holders {
        let all = processes.iter().map(|(pid, _)| *pid);
        let (services, others) = self.holders_among(all);
        let placed: BTreeSet<u32> = processes.iter().filter_map(|on| on.1).collect();
        let instances = placed.into_iter().map(|instance| {
            let on = processes.iter().filter(|on| on.1 == Some(instance));
            let (services, others) = self.holders_among(on.map(|(pid, _)| *pid));
            InstanceHolders {
                instance,
                services,
                others,
            }
        });
        Holders {
            meter,
            at,
            services,
            others,
            instances: instances.collect(),
        }
    }

    /// The services of processes, and how many are of none.
    fn holders_among(&self, pids: impl Iterator<Item = u32>) -> (Vec<ServiceId>, u32) {
        let (mut services, mut others) = (BTreeSet::new(), 0);
        for pid in pids {
            match self.service_of(pid) {
                Some(id) => {
                    services.insert(id);
                }
                None => others += 1,
            }
        }
        (services.into_iter().collect(), others)
    }

    /// Services whose listeners' processes have all ended, as of now: they may be being started
    /// again. One system call a service that is alive.
    pub fn ended(&self) -> impl Iterator<Item = ServiceId> {
        // A process that has ended and is not waited for yet runs no program.
        let runs = |pid: &u32| fs::read_link(self.proc.join(format!("{pid}/exe"))).is_ok();
        let has_ended = move |service: &&Service| {
            let mut owners = service
                .listeners
                .iter()
                .flat_map(|listener| &listener.owners);
            !service.listeners.is_empty() && (service.pids.is_empty() || !owners.any(runs))
        };
        self.services
            .iter()
            .filter(has_ended)
            .map(|service| service.id)
    }

    /// Whether something may yet change that no process's birth or end tells: a young process may
    /// become another program or move to another cgroup, a server is about to listen, and a target
    /// that has no process may be served by one that is there.
    pub fn is_settling(&self) -> bool {
        let mut young = self.processes.young();
        let unfinished = |candidate: &Candidate| {
            if candidate.pids().is_empty() {
                candidate.is_picked()
            } else {
                candidate.listeners().is_empty()
            }
        };
        young.any(|process| process.pid != self.agent) || self.candidates.iter().any(unfinished)
    }

    /// Targets for which nothing has been found so far.
    pub fn missing(&self) -> Vec<&Target> {
        self.candidates
            .iter()
            .filter(|candidate| candidate.id.is_none())
            .filter_map(|candidate| candidate.target(&self.selection.targets))
            .collect()
    }
}

#[cfg(test)]
mod tests;
