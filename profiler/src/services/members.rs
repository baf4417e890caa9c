//! What a service is made of while it is looked for: parts, processes, listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::cgroups::Group;
use super::pod_logs::PodLogs;
use super::processes::{Key, Process, Processes};
use super::sockets::{self, Socket};
use super::{Family, Listener, Target, tree};
use crate::clock::Timestamp;
use crate::ledger::ServiceId;
use crate::pods::PodNames;

/// Looks at listening sockets between two searches of all connections for the ones that lead
/// from a service to itself.
const CONNECTIONS_EVERY: u32 = 2;
/// Between two looks at the listening sockets around a service that listens already: the kernel
/// walks its whole table of connections for each, which takes milliseconds.
pub const LISTENERS_EVERY: Duration = Duration::from_secs(10);
/// So often a container's names are looked for: its link is made a moment after it has started.
const MOST_LOOKS: u8 = 5;

/// Something whose processes belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// A container, job or unit.
    Group(Group),
    /// A process and all below it.
    Tree(Key),
}

/// What a process belongs to: its container, job or unit, else its tree.
pub(super) fn part_of(
    processes: &Processes,
    process: &Process,
    agent_line: &BTreeSet<u32>,
) -> Part {
    match &process.group {
        // The agent's own unit or container may hold more than the agent; it is no service then.
        Some(group) if !agent_line.iter().any(|pid| is_in(processes, *pid, group)) => {
            Part::Group(group.clone())
        }
        _ => Part::Tree(tree::root(processes, process, agent_line)),
    }
}

fn is_in(processes: &Processes, pid: u32, group: &Group) -> bool {
    processes
        .get(pid)
        .is_some_and(|process| process.group.as_ref() == Some(group))
}

/// Whether a target of this name means the process.
pub(super) fn is_called(processes: &Processes, process: &Process, name: &str) -> bool {
    process.comm == name
        || process.group.as_ref().is_some_and(|group| {
            group.id == name || group.short_id() == name || group.name() == name
        })
        || processes.name(process) == name
}

/// What listeners are made from: a service's processes, and all listening sockets in their
/// network namespaces.
type Seen = (BTreeSet<u32>, BTreeSet<(u64, Socket)>);

/// A service, or what may become one.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    /// Its place among the services, once it is one.
    pub(super) id: Option<ServiceId>,
    /// Since when the service has no process.
    pub(super) ended: Option<Timestamp>,
    /// What another candidate that continues it is also known by.
    pub(super) identity: Option<String>,
    /// What Kubernetes calls its container.
    pub(super) pod: Option<PodNames>,
    /// The container that was looked for, and how often.
    pod_of: Option<Group>,
    pod_looks: u8,
    target: Option<usize>,
    parts: Vec<Part>,
    members: BTreeMap<u32, Key>,
    pids: BTreeSet<u32>,
    listeners: Vec<Listener>,
    /// What the listeners were made from: they change only with these.
    seen: Option<Seen>,
    /// Listeners that the service was seen to connect to itself, by inode.
    own_peers: BTreeSet<u64>,
    refreshes: u32,
    /// When listening sockets were last looked at.
    looked: Timestamp,
}

impl Candidate {
    /// One for the target of this number.
    pub(super) fn picked(target: usize) -> Self {
        Self {
            target: Some(target),
            ..Self::default()
        }
    }

    /// One that was found through a process on a GPU.
    pub(super) fn found(part: Part) -> Self {
        Self {
            parts: vec![part],
            ..Self::default()
        }
    }

    pub(super) fn is_picked(&self) -> bool {
        self.target.is_some()
    }

    pub(super) fn target<'t>(&self, targets: &'t [Target]) -> Option<&'t Target> {
        targets.get(self.target?)
    }

    /// Whether anything was ever found for it.
    pub(super) fn is_bound(&self) -> bool {
        !self.parts.is_empty()
    }

    pub(super) fn pids(&self) -> &BTreeSet<u32> {
        &self.pids
    }

    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Whether it is still the same processes, listening, and was looked at of late.
    pub(super) fn is_settled(&self, now: Timestamp) -> bool {
        !self.listeners.is_empty()
            && self
                .seen
                .as_ref()
                .is_some_and(|(pids, _)| *pids == self.pids)
            && now < self.looked.plus(LISTENERS_EVERY)
    }

    /// Whether it is alive and these sockets are among its listeners.
    pub(super) fn knows(&self, sockets: &BTreeSet<Socket>) -> bool {
        let is_own = |socket: &Socket| self.listeners.iter().any(|l| l.inode == socket.inode);
        !self.pids.is_empty() && sockets.iter().all(is_own)
    }

    pub(super) fn add_parts(&mut self, parts: Vec<Part>) {
        for part in parts {
            if !self.parts.contains(&part) {
                self.parts.push(part);
            }
        }
    }

    /// The container, job or unit that all its processes are of.
    pub(super) fn group<'p>(&self, processes: &'p Processes) -> Option<&'p Group> {
        let mut groups = self
            .pids
            .iter()
            .map(|pid| processes.get(*pid)?.group.as_ref());
        let first = groups.next()??;
        groups.all(|group| group == Some(first)).then_some(first)
    }

    /// Looks what Kubernetes calls its container, as long as not all is known.
    pub(super) fn look_for_pod(&mut self, processes: &Processes, logs: &PodLogs) {
        let group = self.group(processes);
        if self.pod_of.as_ref() != group {
            self.pod_of = group.cloned();
            self.pod_looks = 0;
            self.pod = None;
        }
        let is_known = |names: &PodNames| !names.container.is_empty();
        if self.pod_looks == MOST_LOOKS || self.pod.as_ref().is_some_and(is_known) {
            return;
        }
        if let Some(group) = group {
            self.pod_looks += 1;
            self.pod = logs.names(group).or(self.pod.take());
        }
    }

    /// Whether it serves, or was named by hand.
    pub(super) fn is_service(&self) -> bool {
        !self.pids.is_empty() && (self.is_picked() || self.listens_on_tcp())
    }

    pub(super) fn listens_on_tcp(&self) -> bool {
        self.listeners
            .iter()
            .any(|listener| listener.family != Family::Unix)
    }

    pub(super) fn ports(&self) -> BTreeSet<u16> {
        let outer = self.listeners.iter().filter(|listener| !listener.inner);
        outer
            .filter(|listener| listener.family != Family::Unix)
            .map(|l| l.port)
            .collect()
    }

    /// Its name: of its container in Kubernetes or its group, else of its topmost process.
    pub(super) fn name(&self, processes: &Processes) -> String {
        if let Some(Part::Group(group)) = self.parts.first() {
            let pod = self.pod.as_ref().map(|names| names.name().to_owned());
            return pod.unwrap_or_else(|| group.name());
        }
        let members = || self.pids.iter().filter_map(|pid| processes.get(*pid));
        let topmost = members().filter(|process| !self.pids.contains(&process.parent));
        topmost.min_by_key(|process| process.start).map_or_else(
            || "process".to_owned(),
            |process| processes.name(process).to_owned(),
        )
    }

    /// Collects its processes: all in its groups, and all below its trees. A process once in a
    /// tree stays in it, also when its parent ends before it. `taken` are those of the candidates
    /// before this one.
    pub(super) fn gather(&mut self, processes: &Processes, agent: u32, taken: &mut BTreeSet<u32>) {
        let mut found: BTreeSet<u32> = BTreeSet::new();
        // Ended parts of a restarted service would add up for ever.
        let mut ended = Vec::new();
        for (place, part) in self.parts.iter().enumerate() {
            let lives = match part {
                Part::Group(group) => {
                    found.extend(processes.in_group(group));
                    processes.in_group(group).next().is_some()
                }
                Part::Tree(root) => processes.find(*root).is_some(),
            };
            if !lives {
                ended.push(place);
            }
        }
        let roots = self.parts.iter().filter_map(|part| match part {
            Part::Tree(root) => Some(*root),
            Part::Group(_) => None,
        });
        let has_trees = self.parts.iter().any(|part| matches!(part, Part::Tree(_)));
        let sticky = self.members.values().copied().filter(|_| has_trees);
        let start: BTreeMap<u32, &Process> = roots
            .chain(sticky)
            .filter_map(|key| processes.find(key))
            .map(|process| (process.pid, process))
            .collect();
        let group = start
            .values()
            .next()
            .and_then(|process| process.group.clone());
        found.extend(processes.descendants(start.keys().copied(), |child| {
            tree::enters(child, group.as_ref(), agent) && !taken.contains(&child.pid)
        }));
        found.remove(&agent);
        found.retain(|pid| !taken.contains(pid) && processes.get(*pid).is_some());
        taken.extend(&found);
        self.members = found
            .iter()
            .filter_map(|pid| processes.get(*pid))
            .map(|process| (process.pid, process.key()))
            .collect();
        self.pids = found;
        // A tree without its root lives on in the members; the first part names the candidate.
        for place in ended.into_iter().rev() {
            if self.parts.len() > 1 {
                self.parts.remove(place);
            }
        }
    }

    /// Finds its listeners, if its processes or the listening sockets around it have changed.
    pub(super) fn look_for_listeners(
        &mut self,
        proc: &Path,
        processes: &Processes,
        networks: &mut Networks,
        now: Timestamp,
    ) {
        if self.pids.is_empty() {
            self.listeners.clear();
            self.seen = None;
            return;
        }
        if self.is_settled(now) {
            return;
        }
        self.looked = now;
        let mut around: BTreeMap<u64, u32> = BTreeMap::new();
        for pid in &self.pids {
            if let Some(network) = processes.network(*pid) {
                around.entry(network).or_insert(*pid);
            }
        }
        let mut sockets: BTreeSet<(u64, Socket)> = BTreeSet::new();
        for (network, pid) in &around {
            let listening = networks.listening(*network, &processes.directory(*pid));
            sockets.extend(listening.iter().map(|socket| (*network, *socket)));
        }
        let state = (self.pids.clone(), sockets);
        if self.seen.as_ref() != Some(&state) {
            let all: BTreeSet<Socket> = state.1.iter().map(|(_, socket)| *socket).collect();
            let owners = sockets::owners(proc, &self.pids, &all);
            self.listeners = state
                .1
                .iter()
                .filter_map(|(network, socket)| {
                    let Socket {
                        inode,
                        family,
                        address,
                        port,
                        loopback,
                    } = *socket;
                    let owners = owners.get(socket)?.clone();
                    let (network, inner) = (*network, false);
                    Some(Listener {
                        family,
                        address,
                        port,
                        loopback,
                        inode,
                        network,
                        owners,
                        inner,
                    })
                })
                .collect();
            let listeners = &self.listeners;
            let is_there = |inode: &u64| listeners.iter().any(|there| there.inode == *inode);
            self.own_peers.retain(is_there);
            self.seen = Some(state);
            self.refreshes = 0;
        }
        let doubtful = self.below_another(processes);
        if doubtful.iter().any(|inode| !self.own_peers.contains(inode)) {
            if self.refreshes.is_multiple_of(CONNECTIONS_EVERY) {
                self.look_for_own_connections(proc, &around, processes, &doubtful);
            }
            self.refreshes = self.refreshes.wrapping_add(1);
        }
        self.mark_inner(&doubtful);
    }

    /// TCP listeners whose owners all run below a process that owns another one.
    fn below_another(&self, processes: &Processes) -> BTreeSet<u64> {
        let tcp = || {
            self.listeners
                .iter()
                .filter(|listener| listener.family != Family::Unix)
        };
        let is_below = |listener: &Listener, pid: u32| {
            processes.ancestors(pid).any(|above| {
                !listener.owners.contains(&above.pid)
                    && tcp().any(|other| other.owners.contains(&above.pid))
            })
        };
        tcp()
            .filter(|listener| listener.owners.iter().all(|pid| is_below(listener, *pid)))
            .map(|listener| listener.inode)
            .collect()
    }

    fn look_for_own_connections(
        &mut self,
        proc: &Path,
        around: &BTreeMap<u64, u32>,
        processes: &Processes,
        doubtful: &BTreeSet<u64>,
    ) {
        let own: BTreeSet<u64> = self
            .pids
            .iter()
            .flat_map(|pid| sockets::open_sockets(&proc.join(pid.to_string())))
            .collect();
        for (network, pid) in around {
            let leading: BTreeSet<u16> = sockets::connections(&processes.directory(*pid))
                .into_iter()
                .filter(|(_, inode)| own.contains(inode))
                .map(|(port, _)| port)
                .collect();
            for listener in &self.listeners {
                if listener.network == *network
                    && doubtful.contains(&listener.inode)
                    && leading.contains(&listener.port)
                {
                    self.own_peers.insert(listener.inode);
                }
            }
        }
    }

    /// A listener is inner if it lies below another one and either only this host can reach it
    /// or the service was seen to connect to it itself. Being below alone is not enough: the
    /// listeners of workers under a supervising process that has its own port are where requests
    /// arrive. A Unix socket is inner wherever the service has a TCP port.
    fn mark_inner(&mut self, doubtful: &BTreeSet<u64>) {
        let has_tcp = self.listens_on_tcp();
        for listener in &mut self.listeners {
            listener.inner = match listener.family {
                Family::Unix => has_tcp,
                _ => {
                    doubtful.contains(&listener.inode)
                        && (listener.loopback || self.own_peers.contains(&listener.inode))
                }
            };
        }
    }
}

/// The listening sockets of each network namespace, looked up once a refresh.
#[derive(Debug, Default)]
pub(super) struct Networks(BTreeMap<u64, BTreeSet<Socket>>);

impl Networks {
    fn listening(&mut self, network: u64, directory: &Path) -> &BTreeSet<Socket> {
        self.0
            .entry(network)
            .or_insert_with(|| sockets::listening(directory))
    }
}
