//! Requests of services, from their sockets: those in flight as they stand, those finished once.
//!
//! In: the owners table (whose processes are followed), the kernel side's slots, ring and
//! counters. Out: [`Observed`] requests for the ledger, a moment up to which all is told, and
//! what was lost. A poll reads memory and makes no system call, but to forget a quiet Unix socket
//! (where that is refused, such sockets keep their slots).

mod clients;
mod follower;
mod observed;
mod usage;

use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, RingBuf, Stack};
use profiler_ebpf::owners::OwnerIndex;
use profiler_ebpf::request::{Counters, Facts, Phase, SLOTS, Slot};

pub use clients::Client;
pub use observed::Observed;
pub use usage::{Found, usage};

use super::load_error::ProbeError;
use super::loader::{Field, Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, Words};
use crate::clock::Timestamp;
use crate::ledger::{Owner, Route, ServiceId};
use clients::Clients;
use follower::Follower;

const RECEIVE: &str = "sock_recv_length";
const SEND: &str = "sock_send_length";
const DESTROY: &str = "tcp_destroy_sock";

/// Bytes of the ring: 4,200 finished requests between two polls.
const RING_BYTES: u32 = 1024 * 1024;

/// The kernel side takes the time before it publishes; what it publishes may be this late.
const PUBLISHING: Duration = Duration::from_millis(5);

/// Time between two looks for requests and sockets that have been idle for long.
const SWEEP: Duration = Duration::from_secs(1);

/// A socket that has no end of its own to be seen is forgotten after this long without a request.
const SOCKET_IDLE: u64 = 60_000_000_000;

const AF_UNIX: u16 = 1;

/// Kernel fields the probe reads.
const FIELDS: &[Field] = &[
    Field {
        global: "SOCK_FAMILY",
        structure: "sock_common",
        member: "skc_family",
        programs: &[RECEIVE],
    },
    Field {
        global: "SOCK_STATE",
        structure: "sock_common",
        member: "skc_state",
        programs: &[RECEIVE],
    },
    Field {
        global: "SOCK_PORT",
        structure: "sock_common",
        member: "skc_num",
        programs: &[RECEIVE],
    },
    Field {
        global: "SOCK_PEER_PORT",
        structure: "sock_common",
        member: "skc_dport",
        programs: &[],
    },
    Field {
        global: "SOCK_NETWORK",
        structure: "sock_common",
        member: "skc_net.net",
        programs: &[],
    },
    Field {
        global: "NETWORK_NUMBER",
        structure: "net",
        member: "ns.inum",
        programs: &[],
    },
];

/// A copy of a slot, word by word.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Copied(Slot);

// SAFETY: `Slot` is `repr(C)` and made of integers without padding between them; its size, a
// multiple of 8, is checked below.
unsafe impl Words for Copied {}
const _: () = assert!(size_of::<Slot>() == 320 && size_of::<Facts>() == 240);

/// The word of a slot that changes with every change of its facts.
const SEQUENCE: usize = std::mem::offset_of!(Slot, sequence) / size_of::<u64>();

/// A copy of one CPU's counters.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct CpuCounters(Counters);

// SAFETY: `repr(C)`, `u64` fields only.
unsafe impl Words for CpuCounters {}

/// What the probe refused or lost since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Finished requests whose record found the ring full. Those that a poll had seen alive
    /// ended `Incomplete`; see `recovered`.
    pub ring_full: u64,
    /// Of `ring_full`, those that were still told, as `Incomplete`.
    pub recovered: u64,
    /// Requests on sockets for which there was no slot.
    pub slots_exhausted: u64,
    /// Requests sent before the response to the one before.
    pub pipelined: u64,
    /// Sends or receives that had to be read and could not be.
    pub unreadable: u64,
    /// Responses whose framing made no sense.
    pub malformed: u64,
    /// Requests of services forgotten before they ended.
    pub unowned: u64,
    /// Not a loss: requests that a closing server read and threw away; the client asks again.
    pub drained: u64,
}

impl Losses {
    /// Each count with its reason, as metrics have it; a drained request is no loss.
    pub const fn by_reason(&self) -> [(&'static str, u64); 6] {
        let Self {
            ring_full,
            slots_exhausted,
            pipelined,
            unreadable,
            malformed,
            unowned,
            ..
        } = *self;
        [
            ("ring_full", ring_full),
            ("slots_exhausted", slots_exhausted),
            ("pipelined", pipelined),
            ("unreadable", unreadable),
            ("malformed", malformed),
            ("unowned", unowned),
        ]
    }

    /// Losses of any kind, of parts of requests included.
    pub fn events(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    /// Requests of which nothing was ever told.
    pub const fn requests(&self) -> u64 {
        self.ring_full.saturating_sub(self.recovered)
            + self.slots_exhausted
            + self.pipelined
            + self.unowned
    }
}

/// The attached probe. The loader must live as long: dropping it detaches the programs.
pub struct RequestProbe {
    slots: SharedArray<Copied>,
    ring: RingBuf<MapData>,
    counters: SharedArray<CpuCounters>,
    sockets: HashMap<MapData, u64, u32>,
    free: Stack<MapData, u32>,
    clients: Clients,
    /// False where a TCP socket's end cannot be seen.
    sees_ends: bool,
    sequences: Vec<u64>,
    /// Slots taken from their sockets, with the sequence they had then.
    quarantine: Vec<(usize, u64)>,
    follower: Follower,
    totals: Counters,
    swept: Timestamp,
    socket_idle: u64,
}

impl std::fmt::Debug for RequestProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestProbe")
            .field("follower", &self.follower)
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}

impl RequestProbe {
    /// What the probe needs of the loader.
    pub fn configure(options: &mut Options) {
        options
            .fields(FIELDS)
            .fields(clients::FIELDS)
            .map_entries(clients::TABLE, profiler_ebpf::clients::PLACES)
            .map_entries("REQUEST_SOCKETS", SLOTS)
            .map_entries("REQUEST_SLOTS", SLOTS)
            .map_entries("REQUEST_FREE_SLOTS", SLOTS)
            .map_entries("REQUEST_RING", RING_BYTES)
            .map_entries("REQUEST_COUNTERS", possible_cpus());
    }

    /// Attaches the three programs. Requests of processes that [`Owners`] gives to a service are
    /// followed from then on.
    ///
    /// Without `tcp_destroy_sock` the probe works too: requests cut off by a close then end by
    /// the idle time-out. Without one of the others it fails, and leaves none attached.
    pub fn attach(loader: &mut Loader) -> Result<Self, ProbeError> {
        let slots = loader.shared_array("REQUEST_SLOTS")?;
        let ring = typed("REQUEST_RING", loader.take_map("REQUEST_RING")?)?;
        let counters = loader.shared_array("REQUEST_COUNTERS")?;
        let sockets = typed("REQUEST_SOCKETS", loader.take_map("REQUEST_SOCKETS")?)?;
        let free: Stack<MapData, u32> =
            typed("REQUEST_FREE_SLOTS", loader.take_map("REQUEST_FREE_SLOTS")?)?;
        let clients = Clients::new(loader)?;
        let mut probe = Self {
            clients,
            slots,
            ring,
            counters,
            sockets,
            free,
            sees_ends: false,
            sequences: Vec::new(),
            quarantine: Vec::new(),
            follower: Follower::default(),
            totals: Counters::default(),
            swept: Timestamp::now(),
            socket_idle: SOCKET_IDLE,
        };
        for index in (0..probe.slots.len() as u32).rev() {
            probe
                .free
                .push(index, 0)
                .map_err(|error| map_error("REQUEST_FREE_SLOTS", error))?;
        }
        // The one that begins requests comes last: the others are then there to end them.
        probe.sees_ends = loader.attach_btf_tracepoint(DESTROY, DESTROY).is_ok();
        let attached = loader
            .attach_btf_tracepoint(SEND, SEND)
            .and_then(|()| loader.attach_btf_tracepoint(RECEIVE, RECEIVE));
        if let Err(error) = attached {
            loader.detach(SEND);
            loader.detach(DESTROY);
            return Err(error);
        }
        Ok(probe)
    }

    /// Appends what changed since the last poll: requests in flight as they stand, and each
    /// finished request once, after all that was said of it alive. `route` maps a path (without
    /// query; a long one is cut, to no less than 56 bytes) to a route; the path is kept nowhere.
    ///
    /// Returns the moment up to which everything has been told. A request that ends later than
    /// it should (the client's half-close, an idle time-out) may state an `end` before an
    /// earlier poll's moment; its `at` does not lie before it by more than the poll period.
    pub fn poll(
        &mut self,
        owners: &Owners,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) -> Timestamp {
        let now = Timestamp::now();
        self.read_counters();
        self.read_slots(owners, &route, out);
        self.drain(owners, &route, out);
        if now.since(self.swept) >= SWEEP.as_nanos() as u64 {
            self.swept = now;
            self.follower.give_up_idle(now, &route, out);
            self.release_idle_sockets(now);
        }
        now.minus(PUBLISHING)
    }

    /// The last poll: what is still in flight ends here, incomplete, at its last data.
    pub fn finish(
        &mut self,
        owners: &Owners,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) -> Timestamp {
        let until = self.poll(owners, &route, out);
        self.follower.finish(route, out);
        until
    }

    /// What was refused or lost since the probe was attached, as of the last poll.
    pub const fn losses(&self) -> Losses {
        let Counters {
            ring_full,
            slots_exhausted,
            unreadable,
            malformed,
            drained,
            pipelined,
            ..
        } = self.totals;
        Losses {
            ring_full,
            recovered: self.follower.recovered(),
            slots_exhausted,
            pipelined,
            unreadable,
            malformed,
            unowned: self.follower.unowned(),
            drained,
        }
    }

    /// A socket without an end that can be seen (a Unix socket) is forgotten after `idle` without
    /// a request; 60 s unless set.
    pub const fn forget_sockets_after(&mut self, idle: Duration) {
        self.socket_idle = idle.as_nanos() as u64;
    }

    /// Sockets followed at this moment. Makes a system call for each.
    pub fn sockets(&self) -> usize {
        self.sockets.keys().filter_map(Result::ok).count()
    }

    /// Requests that began since the probe was attached, as of the last poll.
    pub const fn started(&self) -> u64 {
        self.totals.started
    }

    /// Connections that switched to another protocol (101) since the probe was attached, as of
    /// the last poll. The request that asked for it ends with its answer, status 101; nothing
    /// that follows on the connection is a request.
    pub const fn sessions(&self) -> u64 {
        self.follower.sessions()
    }

    fn read_counters(&mut self) {
        let cpus = (0..self.counters.len()).filter_map(|cpu| self.counters.get(cpu));
        self.totals = cpus.fold(Counters::default(), |sum, CpuCounters(cpu)| Counters {
            started: sum.started + cpu.started,
            finished: sum.finished + cpu.finished,
            ring_full: sum.ring_full + cpu.ring_full,
            slots_exhausted: sum.slots_exhausted + cpu.slots_exhausted,
            unreadable: sum.unreadable + cpu.unreadable,
            malformed: sum.malformed + cpu.malformed,
            drained: sum.drained + cpu.drained,
            pipelined: sum.pipelined + cpu.pipelined,
            high_water: sum.high_water.max(cpu.high_water),
            padding: [0; 7],
        });
    }

    fn read_slots(
        &mut self,
        owners: &Owners,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) {
        let used = (self.totals.high_water as usize).min(self.slots.len());
        if self.sequences.len() < used {
            self.sequences.resize(used, 0);
        }
        for index in 0..used {
            let known = self.sequences.get(index).copied();
            if self.slots.word(index, SEQUENCE) == known {
                continue;
            }
            // A slot that is being written is read at the next poll.
            let Some((sequence, mut facts)) = read_slot(&self.slots, index) else {
                continue;
            };
            self.clients.ask(owners, &mut facts);
            if let Some(known) = self.sequences.get_mut(index) {
                *known = sequence;
            }
            let service = service(owners, &facts);
            self.follower.slot(index, &facts, service, &route, out);
        }
    }

    fn drain(&mut self, owners: &Owners, route: impl Fn(&[u8]) -> Route, out: &mut Vec<Observed>) {
        while let Some(record) = self.ring.next() {
            if record.len() < size_of::<Facts>() {
                continue;
            }
            // SAFETY: the record has the size of `Facts`, whose every bit pattern is valid; the
            // read may be unaligned.
            let mut facts = unsafe { record.as_ptr().cast::<Facts>().read_unaligned() };
            self.clients.ask(owners, &mut facts);
            let service = service(owners, &facts);
            self.follower.ended(&facts, service, &route, out);
        }
        self.follower.drained(route, out);
    }

    /// Frees slots of sockets that have no end to be seen and have long been quiet. The socket
    /// is forgotten first; the slot is used again only if the kernel side has not touched it
    /// since, one sweep later.
    fn release_idle_sockets(&mut self, now: Timestamp) {
        for (index, sequence) in std::mem::take(&mut self.quarantine) {
            match read_slot(&self.slots, index) {
                Some((current, facts)) if facts.phase == Phase::IDLE => {
                    let untouched = current == sequence;
                    if !untouched || self.free.push(index as u32, 0).is_err() {
                        self.quarantine.push((index, current));
                    }
                }
                _ => self.quarantine.push((index, sequence)),
            }
        }
        for index in 0..self.sequences.len() {
            let Some((sequence, facts)) = read_slot(&self.slots, index) else {
                continue;
            };
            let quiet = facts.phase == Phase::IDLE
                && now.since(observed::latest(&facts)) > self.socket_idle;
            let endless = facts.family == AF_UNIX || !self.sees_ends;
            if quiet
                && endless
                && self.sockets.get(&facts.socket, 0).ok() == Some(index as u32)
                && self.sockets.remove(&facts.socket).is_ok()
            {
                self.quarantine.push((index, sequence));
            }
        }
    }
}

/// A slot's facts with the sequence they belong to; `None` while the kernel side writes.
fn read_slot(slots: &SharedArray<Copied>, index: usize) -> Option<(u64, Facts)> {
    for _ in 0..4 {
        let before = slots.word(index, SEQUENCE)?;
        let Copied(slot) = slots.get(index)?;
        if before % 2 == 0 && slots.word(index, SEQUENCE)? == before {
            return Some((before, slot.facts));
        }
    }
    None
}

fn service(owners: &Owners, facts: &Facts) -> Option<ServiceId> {
    match owners.name(OwnerIndex::try_from(facts.service).ok()?)? {
        Owner::Service(service) => Some(service),
        _ => None,
    }
}

fn typed<T>(name: &'static str, map: Map) -> Result<T, ProbeError>
where
    T: TryFrom<Map>,
{
    T::try_from(map).map_err(|_| ProbeError::MapShape { map: name })
}

fn map_error(map: &'static str, error: aya::maps::MapError) -> ProbeError {
    ProbeError::Map {
        map,
        source: std::io::Error::other(error),
    }
}

#[cfg(test)]
mod fixtures {
    use super::*;

    /// A request that was read at 10, with `line` as its first bytes.
    pub(super) fn facts(line: &[u8]) -> Facts {
        // SAFETY: integers only.
        let mut facts: Facts = unsafe { std::mem::zeroed() };
        facts.id = 1;
        facts.start = 10;
        facts.request_end = 10;
        facts.line_len = line.len() as u8;
        for (to, from) in facts.line.iter_mut().zip(line) {
            *to = *from;
        }
        facts
    }
}
