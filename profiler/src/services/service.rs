//! What is looked for and what is found: targets, services, listeners.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Family;
use super::cgroups::Group;
use crate::ledger::{MeterId, ServiceId};
use crate::pods::PodNames;

/// A service named by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A process and all below it.
    Pid(u32),
    /// The owners of the TCP listeners on this port, each with its container, unit or tree. In
    /// the agent's network namespace if anybody listens there, else in any.
    Port(u16),
    /// Every container (id or its first twelve digits), job, unit or program of exactly this
    /// name. A program goes by its file name, the module or script that an interpreter runs, or
    /// the kernel's name for it.
    Name(String),
}

/// Which services are looked for.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Those named by hand.
    pub targets: Vec<Target>,
    /// Also those that hold a GPU and listen on a TCP port.
    pub on_gpus: bool,
}

/// A listening socket of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its address family.
    pub family: Family,
    /// What it is bound to; `None` for Unix sockets.
    pub address: Option<IpAddr>,
    /// Its port; 0 for Unix sockets.
    pub port: u16,
    /// Only this host can reach it.
    pub loopback: bool,
    /// The socket's inode.
    pub inode: u64,
    /// The network namespace it is in, as `/proc/<pid>/ns/net` numbers it.
    pub network: u64,
    /// The service's processes that have it open.
    pub owners: BTreeSet<u32>,
    /// Requests on it come from the service itself, so that counting them would count twice.
    pub inner: bool,
}

/// Processes that serve requests together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its place in the ledger.
    pub id: ServiceId,
    /// Its name, unique among all services that are known.
    pub name: String,
    /// The container, job or unit that all its processes are of.
    pub group: Option<Group>,
    /// What Kubernetes calls its container, as far as the host's log directories say.
    pub pod: Option<PodNames>,
    /// Its processes; empty once they have ended.
    pub pids: BTreeSet<u32>,
    /// Where it listens.
    pub listeners: Vec<Listener>,
    /// The GPUs it holds a context on.
    pub gpus: Vec<MeterId>,
}

impl Service {
    /// The ports on which requests from outside arrive.
    pub fn ports(&self) -> BTreeSet<u16> {
        let outer = self.listeners.iter().filter(|listener| !listener.inner);
        outer
            .filter(|listener| listener.family != Family::Unix)
            .map(|l| l.port)
            .collect()
    }
}

/// One of these, which are in the order of their ids.
pub fn find(services: &[Service], id: ServiceId) -> Option<&Service> {
    let place = services.binary_search_by_key(&id, |service| service.id);
    services.get(place.ok()?)
}

/// What a refresh changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Processes that became part of a service.
    pub joined: Vec<(u32, ServiceId)>,
    /// Processes that ended.
    pub left: Vec<(u32, ServiceId)>,
    /// Services whose listeners are not what they were.
    pub listeners: Vec<ServiceId>,
    /// Services that ended long ago: nobody will be called by these ids again.
    pub forgotten: Vec<ServiceId>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
