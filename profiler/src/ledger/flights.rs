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

use std::collections::VecDeque;
use std::time::Duration;

use super::flight::{Flight, Mode, in_order};
use super::prefill::{Prompt, SAME_STEP, Silence};
use super::service::Service;
use super::work::{Change, Edge, Kind, RATE_ONE, Worker};
use super::{End, EngineLoad, Outcome, Request, RequestId, Route, ServiceId};
use crate::clock::Timestamp;
use crate::ids::{IdSet, Ids};

/// Identities of booked requests that are remembered, so that a late word about one of them does
/// not bring it back.
const REMEMBERED: usize = 4_096;

/// First data that is not resolved yet.
#[derive(Debug, Clone, Copy)]
struct First {
    at: Timestamp,
    id: RequestId,
    flight: u32,
    service: u32,
    /// Among those of its service that wait.
    listed: bool,
}

/// All requests that are not booked yet.
#[derive(Debug, Default)]
pub(super) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
    index: Ids<RequestId, u32>,
    booked: IdSet<RequestId>,
    booked_order: VecDeque<RequestId>,
    firsts: Vec<First>,
    /// When those that have ended did, in no order.
    ended: Vec<(Timestamp, u32)>,
    pub(super) services: Vec<Service>,
    service_index: Ids<ServiceId, u32>,
    /// Places of services that have ended, until all that was told of them is booked.
    leaving: IdSet<u32>,
    free_places: Vec<u32>,
    /// What engines said of their queues, for moments up to which requests are not told yet.
    loads: VecDeque<EngineLoad>,
    ignored: u64,
    /// Up to when first data has been resolved.
    resolved: Timestamp,
    /// Tokens a second, if it is not to be learned.
    held_speed: Option<f64>,
}

impl Flights {
    /// No requests; prefill speed is learned unless it is held.
    pub(super) fn new(held_speed: Option<f64>) -> Self {
        Self {
            held_speed,
            ..Self::default()
        }
    }

    /// A service's place.
    pub(super) fn service(&mut self, id: ServiceId) -> u32 {
        let (services, free) = (&mut self.services, &mut self.free_places);
        *self.service_index.entry(id).or_insert_with(|| {
            let place = free.pop().unwrap_or(services.len() as u32);
            let service = Service::new(id, self.held_speed);
            match services.get_mut(place as usize) {
                Some(known) => *known = service,
                None => services.push(service),
            }
            place
        })
    }

    /// The service has ended.
    pub(super) fn leave(&mut self, id: ServiceId) {
        self.leaving.extend(self.service_index.get(&id));
    }

    /// True if a service waits to be let go.
    pub(super) fn any_leaves(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Lets those go that have ended and have nothing in flight; their places are another's.
    /// `is_needed`: whether a place is still spoken of elsewhere.
    pub(super) fn let_go(&mut self, is_needed: impl Fn(u32) -> bool) -> Vec<u32> {
        let services = &self.services;
        let is_done = |place: &u32| {
            let service = services.get(*place as usize);
            service.is_none_or(|service| service.open == 0) && !is_needed(*place)
        };
        let gone: Vec<u32> = self.leaving.extract_if(is_done).collect();
        for place in &gone {
            if let Some(service) = self.services.get(*place as usize) {
                self.service_index.remove(&service.id);
            }
        }
        self.free_places.extend(&gone);
        gone
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
        let mut is_new = false;
        let flight = match self.index.get(&request.id) {
            Some(&flight) => flight,
            None if self.booked.contains(&request.id) || (request.end.is_none() && at < told) => {
                self.ignored += 1;
                return;
            }
            None => {
                is_new = true;
                self.start(at, request, edges)
            }
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
                self.ended.push((end.at, flight));
            }
            return;
        }
        if let (None, Some(first)) = (had_first_data, request.first_data) {
            self.firsts.push(First {
                at: first,
                id: request.id,
                flight,
                service: known.service,
                listed: !is_new,
            });
        }
        if let Some(last) = request.last_data.max(request.first_data) {
            service.put_out(last);
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
            self.ended.push((end.at, flight));
        }
    }

    fn start(&mut self, at: Timestamp, request: Request, edges: &mut Vec<Edge>) -> u32 {
        let service = self.service(request.service);
        let flight = self.free.pop().unwrap_or(self.slots.len() as u32);
        let free = request.route == Route::Health || request.begins_session();
        let known_first = request.first_data;
        let known = Flight::new(at, request, service, free);
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
            // With first data already there it rarely waits for longer than this poll: see
            // `list_waiting`.
            if !free && known_first.is_none() {
                service.waiting.insert((request.start, flight));
            }
        }
        if !free {
            let worker = Worker { flight, service };
            edges.push(worker.edge(request.start, Kind::Residency, Change::Begin(RATE_ONE)));
        }
        flight
    }

    /// Takes what an engine said of its queue.
    pub(super) fn load(&mut self, load: EngineLoad) {
        if self.loads.len() == REMEMBERED {
            self.loads.pop_front();
        }
        self.loads.push_back(load);
    }

    /// Says of the requests in an engine's queue that they are there: of those without first data
    /// the youngest. An engine takes requests in the order in which they come. It counts them
    /// between two steps, and some count one as waiting until its first token, so that it was
    /// certainly there only at the end of a step before it was asked: nothing goes out while a
    /// prompt is read.
    pub(super) fn queue(&mut self, told: Timestamp) {
        if self.loads.is_empty() {
            return;
        }
        self.list_waiting();
        while let Some(&EngineLoad {
            service,
            asked: at,
            answered,
            waiting,
            ..
        }) = self.loads.front()
            && answered <= told
        {
            self.loads.pop_front();
            let waiting = waiting.unwrap_or(0) as usize;
            let Some(place) = self.service_index.get(&service) else {
                continue;
            };
            let Some(service) = self.services.get_mut(*place as usize) else {
                continue;
            };
            let Some(waited_until) = service.step_before(at) else {
                continue;
            };
            let silent = |start: Timestamp, flight: u32| {
                let known = self.slots.get(flight as usize).and_then(Option::as_ref);
                let first = known.and_then(|known| known.request.first_data);
                start <= answered && first.is_none_or(|first| first > answered)
            };
            for flight in service.youngest(waiting, silent) {
                if let Some(known) = self.get_mut(flight) {
                    known.queued_until = known.queued_until.max(waited_until);
                }
            }
        }
    }

    /// Lists the requests whose first data is known and not resolved yet among those that wait.
    /// Most are resolved before anybody asks, so this is put off until then.
    pub(super) fn list_waiting(&mut self) {
        for first in self.firsts.iter_mut().filter(|first| !first.listed) {
            first.listed = true;
            let known = self.slots.get(first.flight as usize);
            if let Some(known) = known.and_then(Option::as_ref)
                && known.request.id == first.id
                && let Some(service) = self.services.get_mut(first.service as usize)
            {
                service.waiting.insert((known.request.start, first.flight));
            }
        }
    }

    /// Resolves first data up to `told`, in order of time.
    pub(super) fn resolve(&mut self, told: Timestamp, edges: &mut Vec<Edge>) {
        let looked = self.resolved;
        self.resolved = looked.max(told);
        let ready = |first: &First| first.at <= told;
        let mut firsts: Vec<First> = self.firsts.extract_if(.., |first| ready(first)).collect();
        firsts.sort_unstable_by_key(|first| (first.service, first.at, first.id));
        let mut rest = firsts.as_slice();
        while let Some((first, _)) = rest.split_first() {
            let until = first.at.plus(SAME_STEP);
            let together = |other: &&First| other.service == first.service && other.at <= until;
            let (step, later) = rest.split_at(rest.iter().take_while(together).count());
            self.resolve_step(step, looked, edges);
            rest = later;
        }
    }

    /// Resolves first data that left the same step. Of what came before `looked` all is known.
    fn resolve_step(&mut self, step: &[First], looked: Timestamp, edges: &mut Vec<Edge>) {
        let mut prompts = Vec::new();
        let mut last = Timestamp(0);
        for &First {
            at,
            flight,
            service,
            listed,
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
            if listed {
                service.forget(start, flight);
            }
            let start = known.queued_until.min(at);
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
                // Its prompt weighs as those of streams do, which alone show the speed.
                let seconds = service.speed.likely(Prompt { start, input });
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
        let began = step.first().map_or(last, |first| first.at);
        let silence = service
            .output_before(Timestamp(
                began.0.saturating_sub(SAME_STEP.as_nanos() as u64),
            ))
            .map(|from| Silence {
                from,
                unseen: began.seconds_since(from.max(looked)),
            });
        let window = service.speed.step(last, &only, silence);
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
            known.is_mixed = window.is_mixed;
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
                let from = waiting.queued_until.max(start);
                Worker { flight, service }.begin(from, end, Kind::Unstreamed, edges);
            }
        }
    }

    /// The requests that ended by `until`, in that order; each is to be taken out.
    pub(super) fn ended_by(&mut self, until: Timestamp) -> Vec<(Timestamp, u32)> {
        let ready = |ended: &mut (Timestamp, u32)| ended.0 <= until;
        let mut ready: Vec<(Timestamp, u32)> = self.ended.extract_if(.., ready).collect();
        ready.sort_unstable();
        ready
    }

    /// Takes out a request.
    pub(super) fn take(&mut self, flight: u32) -> Option<Flight> {
        let known = self.slots.get_mut(flight as usize)?.take()?;
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
