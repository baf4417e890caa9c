//! Who is at the client's end of a request: a process of the same service, or anybody else.
//!
//! The kernel side says it with the request. Where a server on another CPU read the request
//! before its client's send was over, the kernel's table says it a little later.

use profiler_ebpf::clients::{Place, WAYS};
use profiler_ebpf::owners::OwnerIndex;
use profiler_ebpf::request::{Facts, Peer};

use crate::probes::load_error::ProbeError;
use crate::probes::loader::{Field, Loader};
use crate::probes::owners::Owners;
use crate::probes::shared_memory::{SharedArray, Words};

pub(super) const TABLE: &str = "REQUEST_CLIENTS";

const fn optional(global: &'static str, structure: &'static str, member: &'static str) -> Field {
    Field {
        global,
        structure,
        member,
        programs: &[],
    }
}

/// Kernel fields that tell who a client is; without one, clients of that family are unknown.
pub(super) const FIELDS: &[Field] = &[
    optional("SOCK_ADDRESS", "sock_common", "skc_rcv_saddr"),
    optional("SOCK_PEER_ADDRESS", "sock_common", "skc_daddr"),
    optional("SOCK_ADDRESS_6", "sock_common", "skc_v6_rcv_saddr"),
    optional("SOCK_PEER_ADDRESS_6", "sock_common", "skc_v6_daddr"),
    optional("SOCK_PEER_PROCESS", "sock", "sk_peer_pid"),
    optional("PROCESS_NUMBERS", "pid", "numbers"),
    optional("INET_PORT", "inet_sock", "inet_sport"),
];

/// The process at the client's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// This kernel does not tell.
    Unknown,
    /// Of no service, of another one, or on another machine.
    Outside,
    /// This process of the service that serves the request.
    Own(u32),
}

impl Client {
    pub(super) const fn of(facts: &Facts) -> Self {
        match facts.peer {
            Peer::UNKNOWN => Self::Unknown,
            _ if facts.peer_tgid != 0 => Self::Own(facts.peer_tgid),
            _ => Self::Outside,
        }
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Set([u64; WAYS]);

// SAFETY: `u64`s.
unsafe impl Words for Set {}

/// The kernel side's table of clients.
pub(super) struct Clients(SharedArray<Set>);

impl Clients {
    pub(super) fn new(loader: &Loader) -> Result<Self, ProbeError> {
        loader.shared_array(TABLE).map(Self)
    }

    /// Asks once more who sent the request, if that is open.
    pub(super) fn ask(&self, owners: &Owners, facts: &mut Facts) {
        if facts.peer != Peer::NEAR {
            return;
        }
        let place = Place::of(facts.network, facts.peer_port, facts.port);
        let set = place.set as usize;
        let tgid = place.client(|way| self.0.word(set, way).unwrap_or_default());
        let service = OwnerIndex::try_from(facts.service).ok();
        if tgid != 0 && Some(owners.index_of_process(tgid)) == service {
            facts.peer_tgid = tgid;
        }
    }
}
