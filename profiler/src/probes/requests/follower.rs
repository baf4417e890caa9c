//! Tells each request's story once: alive while its slot says so, ended exactly once.
//!
//! Slots are read before the ring is drained. The kernel makes a slot idle before it publishes
//! the record, so a request whose end is in the ring is never told alive afterwards; and one
//! that has left its slot without a record in the drain that follows has lost it.

use profiler_ebpf::request::{Facts, Phase, UPGRADED};

use super::observed::{Observed, end_of, latest, observe};
use super::usage::Found;
use crate::clock::Timestamp;
use crate::ids::{IdSet, Ids};
use crate::ledger::{End, Outcome, Route, ServiceId};

/// Nanoseconds without data after which a response is given up.
pub(super) const RESPONSE_IDLE: u64 = 60_000_000_000;
/// Nanoseconds after which a request without a response is given up: a queue, or a long answer
/// that is not streamed.
pub(super) const WAITING_IDLE: u64 = 900_000_000_000;

/// What is known of the requests in flight.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The request last seen alive in each slot; 0 for none.
    alive: Vec<u64>,
    /// Requests told alive, not ended.
    open: Ids<u64, (Facts, ServiceId)>,
    /// Left their slot since the last drain.
    gone: Vec<u64>,
    /// Given up, while the kernel still follows them.
    given_up: IdSet<u64>,
    /// Ended without a record.
    recovered: u64,
    /// Belonged to a service that is no longer known.
    unowned: u64,
    /// Began a session of another protocol.
    sessions: u64,
}

impl Follower {
    /// Slot `index` has changed.
    pub(super) fn slot(
        &mut self,
        index: usize,
        facts: &Facts,
        service: Option<ServiceId>,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) {
        if self.alive.len() <= index {
            self.alive.resize(index + 1, 0);
        }
        let Some(alive) = self.alive.get_mut(index) else {
            return;
        };
        let now_alive = if facts.phase == Phase::IDLE {
            0
        } else {
            facts.id
        };
        if *alive != 0 && *alive != now_alive {
            self.gone.push(*alive);
        }
        *alive = now_alive;
        if now_alive == 0 || self.given_up.contains(&now_alive) {
            return;
        }
        let Some(service) = service else { return };
        let facts = match self.open.get(&now_alive) {
            Some((first, _)) => same_client(first, facts),
            None => *facts,
        };
        self.open.insert(now_alive, (facts, service));
        out.push(observe(&facts, service, None, None, route));
    }

    /// The ring holds a finished request; `found` in the end of its response.
    pub(super) fn ended(
        &mut self,
        facts: &Facts,
        found: Option<Found>,
        service: Option<ServiceId>,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) {
        let open = self.open.remove(&facts.id);
        let told;
        let facts = match &open {
            Some((first, _)) => {
                told = same_client(first, facts);
                &told
            }
            None => facts,
        };
        if facts.flags & UPGRADED != 0 {
            self.sessions += 1;
        }
        if self.given_up.remove(&facts.id) {
            return;
        }
        let Some(service) = open.map(|(_, service)| service).or(service) else {
            self.unowned += 1;
            return;
        };
        out.push(observe(facts, service, Some(end_of(facts)), found, route));
    }

    /// The ring is drained: what has left its slot and is still open has lost its record.
    pub(super) fn drained(&mut self, route: impl Fn(&[u8]) -> Route, out: &mut Vec<Observed>) {
        for id in std::mem::take(&mut self.gone) {
            self.given_up.remove(&id);
            if let Some((facts, service)) = self.open.remove(&id) {
                self.recovered += 1;
                out.push(incomplete(&facts, service, &route));
            }
        }
    }

    /// Gives up what has been idle for too long at `now`.
    pub(super) fn give_up_idle(
        &mut self,
        now: Timestamp,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) {
        let given_up = &mut self.given_up;
        self.open.retain(|id, (facts, service)| {
            let limit = match facts.phase {
                Phase::WAITING => WAITING_IDLE,
                _ => RESPONSE_IDLE,
            };
            let keep = now.since(latest(facts)) <= limit;
            if !keep {
                given_up.insert(*id);
                out.push(incomplete(facts, *service, &route));
            }
            keep
        });
    }

    /// Whether any request that is open has begun to be answered.
    pub(super) fn has_streams(&self) -> bool {
        self.open.values().any(|(facts, _)| facts.first_data != 0)
    }

    /// Ends whatever is still open: nobody looks any more.
    pub(super) fn finish(&mut self, route: impl Fn(&[u8]) -> Route, out: &mut Vec<Observed>) {
        for (_, (facts, service)) in self.open.drain() {
            out.push(incomplete(&facts, service, &route));
        }
    }

    /// Requests whose end had to be inferred, since the ring was full.
    pub(super) const fn recovered(&self) -> u64 {
        self.recovered
    }

    /// Connections that another protocol has taken over.
    pub(super) const fn sessions(&self) -> u64 {
        self.sessions
    }

    /// Finished requests of services that were forgotten meanwhile.
    pub(super) const fn unowned(&self) -> u64 {
        self.unowned
    }
}

/// A request that was told as one client's stays that client's.
fn same_client(told: &Facts, facts: &Facts) -> Facts {
    Facts {
        peer: told.peer,
        peer_tgid: told.peer_tgid,
        ..*facts
    }
}

fn incomplete(facts: &Facts, service: ServiceId, route: impl Fn(&[u8]) -> Route) -> Observed {
    let end = End {
        at: latest(facts),
        outcome: Outcome::Incomplete,
    };
    observe(facts, service, Some(end), None, route)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::requests::fixtures::facts;
    use profiler_ebpf::request;

    const SERVICE: Option<ServiceId> = Some(ServiceId(7));

    fn route(_: &[u8]) -> Route {
        Route::Other
    }

    fn ended(id: u64) -> Facts {
        Facts {
            id,
            phase: Phase::IDLE,
            outcome: request::Outcome::DONE,
            end: 100,
            ..facts(b"GET / ")
        }
    }

    fn alive(id: u64) -> Facts {
        Facts {
            id,
            phase: Phase::WAITING,
            ..facts(b"GET / ")
        }
    }

    fn told(out: &[Observed]) -> Vec<(u64, Option<Outcome>)> {
        let one = |seen: &Observed| (seen.request.id.0, seen.request.end.map(|end| end.outcome));
        out.iter().map(one).collect()
    }

    #[test]
    fn a_request_is_told_alive_and_then_ended_once() {
        let mut follower = Follower::default();
        let mut out = Vec::new();
        follower.slot(3, &alive(1), SERVICE, route, &mut out);
        follower.drained(route, &mut out);
        follower.slot(3, &ended(1), SERVICE, route, &mut out);
        follower.ended(&ended(1), None, SERVICE, route, &mut out);
        follower.drained(route, &mut out);
        follower.finish(route, &mut out);
        assert_eq!(told(&out), [(1, None), (1, Some(Outcome::Done))]);
    }

    #[test]
    fn a_request_shorter_than_a_poll_is_told_once() {
        let mut follower = Follower::default();
        let mut out = Vec::new();
        follower.slot(0, &ended(2), SERVICE, route, &mut out);
        follower.ended(&ended(1), None, SERVICE, route, &mut out);
        follower.ended(&ended(2), None, SERVICE, route, &mut out);
        follower.drained(route, &mut out);
        assert_eq!(
            told(&out),
            [(1, Some(Outcome::Done)), (2, Some(Outcome::Done))]
        );
    }

    #[test]
    fn a_lost_record_leaves_no_request_alive_for_ever() {
        let mut follower = Follower::default();
        let mut out = Vec::new();
        follower.slot(0, &alive(1), SERVICE, route, &mut out);
        follower.drained(route, &mut out);
        follower.slot(0, &alive(2), SERVICE, route, &mut out);
        follower.drained(route, &mut out);
        assert_eq!(
            told(&out),
            [(1, None), (2, None), (1, Some(Outcome::Incomplete))]
        );
        assert_eq!(follower.recovered(), 1);
    }

    #[test]
    fn a_response_that_stalls_is_given_up_at_its_last_data_and_not_told_again() {
        let mut follower = Follower::default();
        let mut out = Vec::new();
        let stalled = Facts {
            phase: Phase::DATA,
            head: 20,
            first_data: 30,
            last_data: 50,
            ..alive(1)
        };
        follower.slot(0, &stalled, SERVICE, route, &mut out);
        follower.give_up_idle(Timestamp(50 + RESPONSE_IDLE), route, &mut out);
        assert_eq!(told(&out), [(1, None)]);
        follower.give_up_idle(Timestamp(51 + RESPONSE_IDLE), route, &mut out);
        assert_eq!(told(&out), [(1, None), (1, Some(Outcome::Incomplete))]);
        assert_eq!(out.last().map(|seen| seen.at), Some(Timestamp(50)));
        follower.slot(0, &stalled, SERVICE, route, &mut out);
        follower.slot(0, &ended(1), SERVICE, route, &mut out);
        follower.ended(&ended(1), None, SERVICE, route, &mut out);
        follower.drained(route, &mut out);
        assert_eq!(out.len(), 2);
        assert!(follower.given_up.is_empty());
    }

    #[test]
    fn a_request_that_waits_for_its_response_is_not_given_up_with_the_stalled() {
        let mut follower = Follower::default();
        let mut out = Vec::new();
        follower.slot(0, &alive(1), SERVICE, route, &mut out);
        follower.give_up_idle(Timestamp(10 + 2 * RESPONSE_IDLE), route, &mut out);
        assert_eq!(told(&out), [(1, None)]);
    }
}
