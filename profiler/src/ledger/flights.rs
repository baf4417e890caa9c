//! Requests in flight, and the services that serve them: turns what is told of a request into
//! edges of work.
//!
//! In: [`Request`]s as they stood at some moment, in any order. Out: edges for the timeline, and
//! each request with the energy that was put on its work.
//!
//! A request waits for first data; with it, it is known whether the response streams. First data
//! is resolved in order of time once every request up to it has been told, because a prompt is
//! read when the one before it is done. A response that does not stream works for its whole time
//! in service. A request that cannot be waited for any longer is presumed to be of the kind its
//! service mostly serves.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use super::prefill::{PrefillSpeed, Prompt, SAME_STEP};
use super::work::{Change, Edge, Kind, RATE_ONE, Worker};
use super::{End, Outcome, Request, RequestId, Route, ServiceId};
use crate::clock::Timestamp;

/// Where a request keeps its energy: GPU by kind of work, then CPU, then DRAM.
pub(super) const ENERGIES: usize = 6;
/// Identities of booked requests that are remembered, so that a late word about one of them does
/// not bring it back.
const REMEMBERED: usize = 4_096;

/// Hashes identities that the agent itself gave out: nobody can choose them to collide.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

type Ids<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// How a request's work is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// No first data yet, or not resolved yet.
    Waiting,
    /// It was not to be waited for any longer; true: taken as one that does not stream.
    Presumed(bool),
    /// Chunks are seen.
    Streaming,
    /// Only its time in service is seen.
    Unstreamed,
    /// It costs nobody energy.
    Free,
}

/// One request that is not booked yet.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) request: Request,
    pub(super) service: u32,
    pub(super) mode: Mode,
    /// 2⁻⁶⁴ µJ, as [`super::work`] keeps it.
    pub(super) energies: [u128; ENERGIES],
    /// Length of its prefill window and half-width of that, seconds.
    pub(super) prefill: (f64, f64),
    told_at: Timestamp,
    chunks: u64,
    chunks_until: Timestamp,
}

/// First data that is not resolved yet.
#[derive(Debug, Clone, Copy)]
struct First {
    at: Timestamp,
    id: RequestId,
    flight: u32,
    service: u32,
}

/// One service's requests.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) id: ServiceId,
    /// Requests that are not booked yet.
    pub(super) open: u64,
    /// By component: µJ put on its requests, and µJ already booked to them.
    pub(super) given: [i128; 3],
    pub(super) booked: [i128; 3],
    /// By component: what rounding has left over, 2⁻⁶⁴ µJ.
    pub(super) carry: [u64; 3],
    pub(super) speed: PrefillSpeed,
    /// No first data yet.
    waiting: BTreeSet<(Timestamp, u32)>,
    /// The same, and some interval could not wait for it; later ones still do.
    overdue: BTreeSet<(Timestamp, u32)>,
    /// Responses that stream, and that do not.
    kinds: Kinds,
    /// The same of those whose first data was overdue.
    overdue_kinds: Kinds,
}

/// How many responses streamed and how many did not, lately.
#[derive(Debug, Clone, Copy, Default)]
struct Kinds {
    streamed: f64,
    unstreamed: f64,
}

impl Kinds {
    fn count(&mut self, streamed: bool) {
        const KEEP: f64 = 0.98;
        self.streamed = self.streamed * KEEP + f64::from(u8::from(streamed));
        self.unstreamed = self.unstreamed * KEEP + f64::from(u8::from(!streamed));
    }

    fn mostly_unstreamed(self) -> bool {
        self.unstreamed > self.streamed
    }
}

impl Service {
    fn new(id: ServiceId) -> Self {
        Self {
            id,
            open: 0,
            given: [0; 3],
            booked: [0; 3],
            carry: [0; 3],
            speed: PrefillSpeed::default(),
            waiting: BTreeSet::new(),
            overdue: BTreeSet::new(),
            kinds: Kinds::default(),
            overdue_kinds: Kinds::default(),
        }
    }

    /// True if a request that started before `before` has no first data yet.
    pub(super) fn waits(&self, before: Timestamp) -> bool {
        let waits = |set: &BTreeSet<(Timestamp, u32)>| {
            set.first().is_some_and(|(start, _)| *start < before)
        };
        waits(&self.waiting) || waits(&self.overdue)
    }

    /// Waits no longer for this request.
    fn forget(&mut self, start: Timestamp, flight: u32) {
        if !self.waiting.remove(&(start, flight)) {
            self.overdue.remove(&(start, flight));
        }
    }

    /// True if a response whose first data is overdue most likely does not stream: where streams
    /// are quick to begin, silence tells that it does not.
    fn overdue_is_unstreamed(&self) -> bool {
        let Kinds {
            streamed,
            unstreamed,
        } = self.overdue_kinds;
        let known = streamed + unstreamed > 0.0;
        if known {
            self.overdue_kinds
        } else {
            self.kinds
        }
        .mostly_unstreamed()
    }
}

/// All requests that are not booked yet.
#[derive(Debug, Default)]
pub(super) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
    index: Ids<RequestId, u32>,
    booked: HashSet<RequestId, BuildHasherDefault<IdHasher>>,
    booked_order: VecDeque<RequestId>,
    firsts: Vec<First>,
    ended: BTreeSet<(Timestamp, u32)>,
    pub(super) services: Vec<Service>,
    service_index: Ids<ServiceId, u32>,
    ignored: u64,
}

impl Flights {
    /// A service's place.
    pub(super) fn service(&mut self, id: ServiceId) -> u32 {
        let services = &mut self.services;
        *self.service_index.entry(id).or_insert_with(|| {
            services.push(Service::new(id));
            services.len() as u32 - 1
        })
    }

    /// A request, if its slot is taken.
    pub(super) fn get_mut(&mut self, flight: u32) -> Option<&mut Flight> {
        self.slots.get_mut(flight as usize)?.as_mut()
    }

    /// Facts about requests that came too late or twice and were ignored.
    pub(super) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes a request as it stood at `at`. `told` is the moment up to which all was told before.
    pub(super) fn observe(
        &mut self,
        at: Timestamp,
        request: Request,
        told: Timestamp,
        edges: &mut Vec<Edge>,
    ) {
        let flight = match self.index.get(&request.id) {
            Some(&flight) => flight,
            None if self.booked.contains(&request.id) || (request.end.is_none() && at < told) => {
                self.ignored += 1;
                return;
            }
            None => self.start(at, request, edges),
        };
        let Some(known) = self.slots.get_mut(flight as usize).and_then(Option::as_mut) else {
            return;
        };
        if known.request.end.is_some() || (at < known.told_at && request.end.is_none()) {
            self.ignored += 1;
            return;
        }
        let worker = Worker {
            flight,
            service: known.service,
        };
        let Some(service) = self.services.get_mut(known.service as usize) else {
            return;
        };
        let had_first_data = known.request.first_data;
        // What a request is does not change; only how far it has come does.
        let request = in_order(Request {
            service: known.request.service,
            start: known.request.start,
            first_data: had_first_data.or(request.first_data),
            ..request
        });
        known.request = request;
        let looked = std::mem::replace(&mut known.told_at, at);
        if known.mode == Mode::Free {
            if let Some(end) = request.end {
                self.ended.insert((end.at, flight));
            }
            return;
        }
        if let (None, Some(first)) = (had_first_data, request.first_data) {
            let service = known.service;
            self.firsts.push(First {
                at: first,
                id: request.id,
                flight,
                service,
            });
        }
        known.follow_chunks(looked, worker, service, edges);
        if let Some(end) = request.end {
            edges.push(worker.edge(end.at, Kind::Residency, Change::End(RATE_ONE)));
            if matches!(known.mode, Mode::Unstreamed | Mode::Presumed(true)) {
                edges.push(worker.edge(end.at, Kind::Unstreamed, Change::End(RATE_ONE)));
            }
            if known.request.first_data.is_none() {
                service.forget(known.request.start, flight);
                if known.mode == Mode::Waiting {
                    known.mode = Mode::Presumed(service.kinds.mostly_unstreamed());
                    if known.mode == Mode::Presumed(true) {
                        let (from, to) = (known.request.start, Some(end.at));
                        worker.begin(from, to, Kind::Unstreamed, edges);
                    }
                }
            }
            self.ended.insert((end.at, flight));
        }
    }

    fn start(&mut self, at: Timestamp, request: Request, edges: &mut Vec<Edge>) -> u32 {
        let service = self.service(request.service);
        let flight = self.free.pop().unwrap_or(self.slots.len() as u32);
        let free = request.route == Route::Health;
        let known = Flight {
            request: Request {
                first_data: None,
                last_data: None,
                end: None,
                ..request
            },
            service,
            mode: if free { Mode::Free } else { Mode::Waiting },
            energies: [0; ENERGIES],
            prefill: (0.0, 0.0),
            told_at: request.start.min(at),
            chunks: 0,
            chunks_until: request.start,
        };
        if let Some(slot) = self.slots.get_mut(flight as usize) {
            *slot = Some(known);
        } else {
            self.slots.push(Some(known));
        }
        self.index.insert(request.id, flight);
        if let Some(service) = self.services.get_mut(service as usize) {
            if service.open == 0 {
                // Half a microjoule: sums are rounded, not cut off.
                service.carry = [1 << 63; 3];
            }
            service.open += 1;
            if !free {
                service.waiting.insert((request.start, flight));
            }
        }
        if !free {
            let worker = Worker { flight, service };
            edges.push(worker.edge(request.start, Kind::Residency, Change::Begin(RATE_ONE)));
        }
        flight
    }

    /// Resolves first data up to `told`, in order of time.
    pub(super) fn resolve(&mut self, told: Timestamp, edges: &mut Vec<Edge>) {
        let ready = |first: &First| first.at <= told;
        if !self.firsts.iter().any(ready) {
            return;
        }
        let mut firsts: Vec<First> = self.firsts.extract_if(.., |first| ready(first)).collect();
        firsts.sort_unstable_by_key(|first| (first.service, first.at, first.id));
        let mut rest = firsts.as_slice();
        while let Some((first, _)) = rest.split_first() {
            let until = first.at.plus(SAME_STEP);
            let together = |other: &&First| other.service == first.service && other.at <= until;
            let (step, later) = rest.split_at(rest.iter().take_while(together).count());
            self.resolve_step(step, edges);
            rest = later;
        }
    }

    /// Resolves first data that left the same step.
    fn resolve_step(&mut self, step: &[First], edges: &mut Vec<Edge>) {
        let mut prompts = Vec::with_capacity(step.len());
        let mut last = Timestamp(0);
        for &First {
            at,
            flight,
            service,
            ..
        } in step
        {
            let Some(known) = self.slots.get_mut(flight as usize).and_then(Option::as_mut) else {
                continue;
            };
            let Some(service) = self.services.get_mut(service as usize) else {
                continue;
            };
            let Request {
                start,
                streamed,
                chunks,
                input,
                end,
                ..
            } = known.request;
            service.forget(start, flight);
            service.kinds.count(streamed);
            if matches!(known.mode, Mode::Presumed(_)) {
                service.overdue_kinds.count(streamed);
            }
            if streamed && (chunks > 0 || end.is_none()) {
                last = last.max(at);
                prompts.push((flight, Prompt { start, input }));
                continue;
            }
            if known.mode != Mode::Presumed(true) {
                let worker = Worker {
                    flight,
                    service: known.service,
                };
                // Where streams have shown the speed, its prompt weighs as theirs do.
                let seconds = service
                    .speed
                    .learned(Prompt { start, input })
                    .unwrap_or(0.0);
                let read = start.plus(Duration::from_secs_f64(seconds)).min(at);
                worker.stretch(start, read, Kind::Prefill, RATE_ONE, edges);
                worker.begin(read, end.map(|end| end.at), Kind::Unstreamed, edges);
            }
            known.mode = Mode::Unstreamed;
        }
        let Some(service) = step
            .first()
            .and_then(|f| self.services.get_mut(f.service as usize))
        else {
            return;
        };
        if prompts.is_empty() {
            return;
        }
        let only: Vec<Prompt> = prompts.iter().map(|(_, prompt)| *prompt).collect();
        let window = service.speed.step(last, &only);
        let opened = Timestamp(last.0.saturating_sub((window.seconds * 1e9) as u64));
        for (flight, prompt) in prompts {
            let Some(known) = self.slots.get_mut(flight as usize).and_then(Option::as_mut) else {
                continue;
            };
            let worker = Worker {
                flight,
                service: known.service,
            };
            let first = known.request.first_data.unwrap_or(last);
            let from = opened.max(prompt.start);
            let rate = (window.part(&prompt) * RATE_ONE as f64) as u64;
            worker.stretch(from, first, Kind::Prefill, rate, edges);
            if known.mode == Mode::Presumed(true) && known.request.end.is_none() {
                edges.push(worker.edge(from, Kind::Unstreamed, Change::End(RATE_ONE)));
            }
            known.mode = Mode::Streaming;
            known.prefill = (window.seconds, window.uncertainty);
        }
    }

    /// Presumes of the given service's requests that started before `before` and have no first
    /// data what they are, because they are not waited for any longer.
    pub(super) fn presume(&mut self, service: u32, before: Timestamp, edges: &mut Vec<Edge>) {
        let Some(known) = self.services.get_mut(service as usize) else {
            return;
        };
        while let Some(&(start, flight)) = known.waiting.first() {
            if start >= before {
                break;
            }
            known.waiting.pop_first();
            let Some(waiting) = self.slots.get_mut(flight as usize).and_then(Option::as_mut) else {
                continue;
            };
            waiting.mode = Mode::Presumed(known.overdue_is_unstreamed());
            if waiting.mode == Mode::Presumed(false) {
                known.overdue.insert((start, flight));
            }
            if waiting.mode == Mode::Presumed(true) {
                let end = waiting.request.end.map(|end| end.at);
                Worker { flight, service }.begin(start, end, Kind::Unstreamed, edges);
            }
        }
    }

    /// The next request that ended by `until`; its slot stays taken until [`Self::remove`].
    pub(super) fn next_ended(&self, until: Timestamp) -> Option<u32> {
        self.ended
            .first()
            .filter(|(end, _)| *end <= until)
            .map(|(_, flight)| *flight)
    }

    /// Takes a request that ended out.
    pub(super) fn remove(&mut self, flight: u32) -> Option<Flight> {
        let known = self.slots.get_mut(flight as usize)?.take()?;
        if let Some(end) = known.request.end {
            self.ended.remove(&(end.at, flight));
        }
        self.index.remove(&known.request.id);
        self.free.push(flight);
        if let Some(service) = self.services.get_mut(known.service as usize) {
            service.open -= 1;
        }
        if self.booked_order.len() == REMEMBERED
            && let Some(oldest) = self.booked_order.pop_front()
        {
            self.booked.remove(&oldest);
        }
        self.booked.insert(known.request.id);
        self.booked_order.push_back(known.request.id);
        Some(known)
    }

    /// Ends every request that has not ended, as incomplete, at its last data, or now if it still
    /// waits for that.
    pub(super) fn end_all(&mut self, now: Timestamp, edges: &mut Vec<Edge>) {
        let in_flight: Vec<Request> = self
            .slots
            .iter()
            .flatten()
            .filter(|known| known.request.end.is_none())
            .map(|known| known.request)
            .collect();
        for request in in_flight {
            let at = request.last_data.unwrap_or(now).max(request.start);
            let end = Some(End {
                at,
                outcome: Outcome::Incomplete,
            });
            let at = now.max(at);
            self.observe(at, Request { end, ..request }, at, edges);
        }
    }
}

impl Flight {
    /// Turns the chunks that are new since the look at `looked` into work.
    fn follow_chunks(
        &mut self,
        looked: Timestamp,
        worker: Worker,
        service: &mut Service,
        edges: &mut Vec<Edge>,
    ) {
        let Request {
            streamed: true,
            first_data: Some(first),
            chunks,
            ..
        } = self.request
        else {
            return;
        };
        let last = self.request.last_data.unwrap_or(first).max(first);
        if chunks == 0 || chunks <= self.chunks {
            return;
        }
        if self.chunks == 0 {
            // What goes out at the instant of first data comes from the prefill step.
            self.chunks = if last == first { chunks } else { 1 };
            self.chunks_until = first;
        }
        let new = chunks.saturating_sub(self.chunks);
        if new > 0 {
            worker.chunks(self.chunks_until, looked, last, new, edges);
            service
                .speed
                .chunk_spacing(last.seconds_since(self.chunks_until) / new as f64);
            self.chunks = chunks;
            self.chunks_until = last;
        }
    }
}

/// The request with its moments in order, whatever its source says.
fn in_order(mut request: Request) -> Request {
    request.first_data = request.first_data.map(|first| first.max(request.start));
    let least = request.first_data.unwrap_or(request.start);
    request.last_data = request.last_data.map(|last| last.max(least));
    if let Some(end) = &mut request.end {
        end.at = end.at.max(request.last_data.unwrap_or(least));
    }
    request
}
