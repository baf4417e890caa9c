//! Requests of services, from their sockets: those in flight as they stand, those finished once.
//!
//! In: the owners table (whose processes are followed), the kernel side's slots, ring and
//! counters. Out: [`Observed`] requests for the ledger, a moment up to which all is told, and
//! what was lost. A poll reads memory and makes no system call, but to forget a quiet Unix socket
//! (where that is refused, such sockets keep their slots).

mod choice;
mod clients;
mod follower;
mod http2;
mod io_uring;
mod losses;
mod observed;
mod self_test;
mod slots;
mod sweep;
mod tiers;
mod trace;
mod usage;

use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, RingBuf, Stack};
use profiler_ebpf::http1::TAILS;
use profiler_ebpf::owners::OwnerIndex;
use profiler_ebpf::request::{Counters, Ended, Facts, Phase, SLOTS, STREAMS};

pub use choice::Choice;
pub use clients::Client;
pub use losses::Losses;
pub use observed::Observed;
pub use usage::{Found, usage};

use super::health::Tier;
use super::load_error::ProbeError;
use super::loader::{Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, Words};
use crate::clock::Timestamp;
use crate::ledger::{Owner, Route, ServiceId};
use clients::Clients;
use follower::Follower;
use io_uring::Rings;
use observed::found;
use slots::{Copied, SEQUENCE, read_slot};
use sweep::SOCKET_IDLE;

/// Bytes of the ring: between two polls 8,400 finished requests, or 2,700 with the end of their
/// response; of HTTP/2, which has its header blocks there too, about 3,400.
const RING_BYTES: u32 = 2 * 1024 * 1024;

/// The kernel side takes the time before it publishes; what it publishes may be this late.
const PUBLISHING: Duration = Duration::from_millis(5);

/// Time between two looks for requests and sockets that have been idle for long.
const SWEEP: Duration = Duration::from_secs(1);

/// How long a stream may wait to be told for its header block, which comes right behind it.
const HEADERS_LATE: u64 = 500_000_000;

/// A copy of one CPU's counters.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct CpuCounters(Counters);

// SAFETY: `repr(C)`, `u64` fields only.
unsafe impl Words for CpuCounters {}

/// What the ring says beside headers.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are requests: a box would be an allocation for each"
)]
enum Record {
    /// A request has ended.
    Request(Facts, Option<Found>),
    /// A connection of HTTP/2 has, or some of its streams.
    Connection(http2::Ended),
}

/// The attached probe. The loader must live as long: dropping it detaches the programs.
pub struct RequestProbe {
    slots: SharedArray<Copied>,
    ring: RingBuf<MapData>,
    counters: SharedArray<CpuCounters>,
    sockets: HashMap<MapData, u64, u32>,
    streams: HashMap<MapData, [u64; 2], u32>,
    free: Stack<MapData, u32>,
    choice: Choice,
    clients: Clients,
    rings: Rings,
    /// False where a TCP socket's end cannot be seen.
    sees_ends: bool,
    /// False while there is nobody to follow.
    attached: bool,
    sequences: Vec<u64>,
    /// Slots taken from their sockets, with the sequence they had then.
    quarantine: Vec<(usize, u64)>,
    follower: Follower,
    headers: http2::Streams,
    /// Taken from the ring, not yet told.
    pending: Vec<Record>,
    /// What was counted before the first request that matters.
    base: Counters,
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
    /// What the probe needs of the loader. Ends of responses are kept; no trace ids are read.
    pub fn configure(options: &mut Options) {
        options
            .map_entries("REQUEST_TAILS", TAILS)
            .global("USAGE", [1])
            .fields(tiers::FIELDS)
            .fields(clients::FIELDS)
            .fields(io_uring::FIELDS)
            .map_entries(clients::TABLE, profiler_ebpf::clients::SETS)
            .map_entries("REQUEST_SOCKETS", SLOTS)
            .map_entries("REQUEST_SLOTS", SLOTS)
            .map_entries("REQUEST_STREAMS", STREAMS)
            .map_entries("REQUEST_FREE_SLOTS", SLOTS)
            .map_entries("REQUEST_RING", RING_BYTES)
            .map_entries("REQUEST_COUNTERS", possible_cpus());
    }

    /// After [`Self::configure`]: no end of a response is kept, so no server's own counts are
    /// told, and every chunk counts when it comes.
    pub fn without_usage(options: &mut Options) {
        options.map_entries("REQUEST_TAILS", 1).global("USAGE", [0]);
    }

    /// After [`Self::configure`]: of requests' heads the `traceparent` header is read; of those in
    /// HTTP/2 after [`Self::read_trace_ids`].
    pub fn with_trace_ids(options: &mut Options) {
        options.global("TRACE_IDS", [1]);
    }

    /// Attaches the first tier that works, or `forced`, and no other; see [`Choice`]. Requests of
    /// processes that [`Owners`] gives to a service are followed from then on.
    ///
    /// A tier works if its programs load and see one exchange over loopback, inside this process,
    /// as it was. That exchange is never told.
    pub fn attach(
        loader: &mut Loader,
        owners: &mut Owners,
        forced: Option<Tier>,
    ) -> Result<Self, ProbeError> {
        let slots = loader.shared_array("REQUEST_SLOTS")?;
        let ring = typed("REQUEST_RING", loader.take_map("REQUEST_RING")?)?;
        let counters = loader.shared_array("REQUEST_COUNTERS")?;
        let sockets = typed("REQUEST_SOCKETS", loader.take_map("REQUEST_SOCKETS")?)?;
        let streams = typed("REQUEST_STREAMS", loader.take_map("REQUEST_STREAMS")?)?;
        let free: Stack<MapData, u32> =
            typed("REQUEST_FREE_SLOTS", loader.take_map("REQUEST_FREE_SLOTS")?)?;
        let clients = Clients::new(loader)?;
        let rings = Rings::new(loader)?;
        let mut probe = Self {
            clients,
            rings,
            slots,
            ring,
            counters,
            sockets,
            streams,
            free,
            choice: Choice::new(forced),
            sees_ends: false,
            attached: false,
            sequences: Vec::new(),
            quarantine: Vec::new(),
            follower: Follower::default(),
            headers: http2::Streams::default(),
            pending: Vec::new(),
            base: Counters::default(),
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
        probe.choose(loader, owners)?;
        // What the self-tests were counted as.
        probe.read_counters();
        probe.base = probe.totals;
        probe.read_counters();
        Ok(probe)
    }

    /// Tells the trace ids of HTTP/2's requests too, whose heads the agent reads.
    pub const fn read_trace_ids(&mut self) {
        self.headers.read_trace_ids();
    }

    /// How the tier in use was chosen.
    pub const fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Detaches the programs: no hook slows anybody while there is no service. What is in flight
    /// is forgotten.
    pub fn pause(&mut self, loader: &mut Loader) {
        if std::mem::take(&mut self.attached) {
            self.rings.release(loader);
            tiers::release(loader, self.choice.tier());
        }
    }

    /// Attaches the programs again. Sockets that were followed before may be others by now.
    pub fn resume(&mut self, loader: &mut Loader) -> Result<(), ProbeError> {
        if !self.attached {
            self.forget_sockets();
            let tier = self.choice.tier();
            match tiers::attach(loader, tier) {
                Ok(sees_ends) => self.sees_ends = sees_ends,
                Err(error) => {
                    let program = tiers::first_program(tier);
                    loader.mark(program, error.verdict(), error.to_string());
                    return Err(error);
                }
            }
            self.attached = true;
        }
        Ok(())
    }

    /// Follows the completions of io_urings from when a service's process first moves bytes of a
    /// socket through one: that takes programs which the others need not have loaded. Call it with
    /// every poll; it makes no system call otherwise.
    pub fn follow_rings(&mut self, loader: &mut Loader) {
        if self.attached {
            self.rings.follow(loader);
        }
    }

    /// Frees every slot. For a time when no program runs.
    fn forget_sockets(&mut self) {
        let sockets: Vec<(u64, u32)> = self.sockets.iter().filter_map(Result::ok).collect();
        for (socket, slot) in sockets {
            if self.sockets.remove(&socket).is_ok() {
                // There is room: it came from there.
                let _ = self.free.push(slot, 0);
            }
        }
        let streams: Vec<([u64; 2], u32)> = self.streams.iter().filter_map(Result::ok).collect();
        for (stream, slot) in streams {
            if self.streams.remove(&stream).is_ok() {
                let _ = self.free.push(slot, 0);
            }
        }
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
        // Before the slots, so that a stream that is seen alive has its headers; what has ended
        // is told after the slots.
        self.take_records();
        self.read_slots(owners, &route, out);
        self.take_records();
        self.tell_ended(owners, &route, out);
        if now.since(self.swept) >= SWEEP.as_nanos() as u64 {
            self.swept = now;
            self.follower.give_up_idle(now, &route, out);
            self.end_forgotten_connections(now, owners, &route, out);
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
            notices_lost: notices,
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
            notices,
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

    /// Whether a response was streaming at the last poll: it began to answer before it and had not
    /// ended.
    pub fn sees_streams(&self) -> bool {
        self.follower.has_streams()
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

    /// Connections of HTTP/2 that began, or were found open, since the probe was attached, as of
    /// the last poll.
    pub const fn http2_connections(&self) -> u64 {
        self.totals.connections
    }

    fn read_counters(&mut self) {
        let cpus = (0..self.counters.len()).filter_map(|cpu| self.counters.get(cpu));
        let sum = cpus.fold(Counters::default(), |sum, CpuCounters(cpu)| Counters {
            started: sum.started + cpu.started,
            finished: sum.finished + cpu.finished,
            ring_full: sum.ring_full + cpu.ring_full,
            slots_exhausted: sum.slots_exhausted + cpu.slots_exhausted,
            unreadable: sum.unreadable + cpu.unreadable,
            malformed: sum.malformed + cpu.malformed,
            drained: sum.drained + cpu.drained,
            pipelined: sum.pipelined + cpu.pipelined,
            high_water: sum.high_water.max(cpu.high_water),
            connections: sum.connections + cpu.connections,
            notices_lost: sum.notices_lost + cpu.notices_lost,
            padding: [0; 5],
        });
        let base = &self.base;
        self.totals = Counters {
            started: sum.started.saturating_sub(base.started),
            finished: sum.finished.saturating_sub(base.finished),
            ring_full: sum.ring_full.saturating_sub(base.ring_full),
            slots_exhausted: sum.slots_exhausted.saturating_sub(base.slots_exhausted),
            unreadable: sum.unreadable.saturating_sub(base.unreadable),
            malformed: sum.malformed.saturating_sub(base.malformed),
            drained: sum.drained.saturating_sub(base.drained),
            pipelined: sum.pipelined.saturating_sub(base.pipelined),
            ..sum
        };
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
            if facts.stream != 0 && facts.phase != Phase::IDLE {
                let young = Timestamp::now().since(Timestamp(facts.start)) < HEADERS_LATE;
                if young && !self.headers.knows(&facts) {
                    continue;
                }
                self.headers.complete(&mut facts);
            }
            self.clients.ask(owners, &mut facts);
            if let Some(known) = self.sequences.get_mut(index) {
                *known = sequence;
            }
            let service = service(owners, &facts);
            self.follower.slot(index, &facts, service, &route, out);
        }
    }

    /// Empties the ring.
    fn take_records(&mut self) {
        while let Some(record) = self.ring.next() {
            if http2::is_notice(&record) {
                let ended = self.headers.notice(&record);
                self.pending.extend(ended.map(Record::Connection));
            } else if record.len() >= size_of::<Facts>() {
                // SAFETY: the record has the size of `Facts`, whose every bit pattern is valid;
                // the read may be unaligned.
                let facts = unsafe { record.as_ptr().cast::<Facts>().read_unaligned() };
                let mut counts = None;
                if record.len() >= size_of::<Ended>() {
                    // SAFETY: as above, for `Ended`.
                    let ended = unsafe { record.as_ptr().cast::<Ended>().read_unaligned() };
                    // The response's end goes no further.
                    counts = found(&facts, &ended.kept);
                }
                self.pending.push(Record::Request(facts, counts));
            }
        }
    }

    /// Tells what has ended, in the order in which it did.
    fn tell_ended(
        &mut self,
        owners: &Owners,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) {
        let mut pending = std::mem::take(&mut self.pending);
        for record in &mut pending {
            match record {
                Record::Request(facts, counts) => {
                    self.clients.ask(owners, facts);
                    self.headers.complete(facts);
                    self.headers.forget(facts);
                    let service = service(owners, facts);
                    self.follower.ended(facts, *counts, service, &route, out);
                }
                Record::Connection(ended) => self.end_connection(ended, owners, &route, out),
            }
        }
        pending.clear();
        // Its memory serves the next poll.
        self.pending = pending;
        self.follower.drained(route, out);
    }
}

/// The oldest record of the ring.
fn next_record(ring: &mut RingBuf<MapData>) -> Option<Facts> {
    while let Some(record) = ring.next() {
        if record.len() >= size_of::<Facts>() {
            // SAFETY: the record has the size of `Facts`, whose every bit pattern is valid; the
            // read may be unaligned.
            return Some(unsafe { record.as_ptr().cast::<Facts>().read_unaligned() });
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
