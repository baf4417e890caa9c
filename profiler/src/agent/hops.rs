//! Hops inside a service: a request that one of its processes sends to another while it serves
//! one itself (a proxy in front, a child behind) is the same request a second time.
//!
//! In: requests as the probe saw them, with who sent them. Out: whether each is a hop. Where the
//! kernel says who a client is, a hop is a request whose client is a process of the service that
//! has itself read a request of late. So these are none: what a client outside sends to an inner
//! listener; what a benchmark sends to the server that it started; and what comes from a front
//! whose own requests cannot be read (TLS), which are counted where they first can be. Where the
//! kernel does not say it, the listeners decide.

use crate::clock::Timestamp;
use crate::ids::{IdSet, Ids};
use crate::ledger::{RequestId, Route};
use crate::probes::requests::{Client, Observed};
use crate::services::{self, Service};

/// So long after it read a request a process may still pass it on: it may wait in a queue.
const PASSED_ON_WITHIN: u64 = 60_000_000_000;

/// Which processes serve requests.
#[derive(Debug, Default)]
pub(super) struct Hops {
    /// The start of the latest request that each process read.
    read: Ids<u32, Timestamp>,
    /// Requests that are open and were told: they stay told. A front whose own requests could not
    /// be read at first may have sent one.
    told: IdSet<RequestId>,
}

impl Hops {
    /// Takes who read what; all requests of a poll before the first [`Self::is_hop`].
    pub(super) fn watch(&mut self, seen: &Observed) {
        if seen.request.route != Route::Health {
            let latest = self.read.entry(seen.tgid).or_default();
            *latest = seen.request.start.max(*latest);
        }
    }

    /// Forgets processes that have read nothing for long.
    pub(super) fn forget(&mut self, now: Timestamp) {
        self.read
            .retain(|_, latest| now.since(*latest) <= PASSED_ON_WITHIN);
    }

    /// Whether the request is a hop inside its service.
    pub(super) fn is_hop(&mut self, services: &[Service], seen: &Observed) -> bool {
        let (id, is_open) = (seen.request.id, seen.request.end.is_none());
        let was_told = if is_open {
            self.told.contains(&id)
        } else {
            self.told.remove(&id)
        };
        let is_hop = !was_told && self.comes_from_a_front(services, seen);
        if is_open && !is_hop {
            self.told.insert(id);
        }
        is_hop
    }

    fn comes_from_a_front(&self, services: &[Service], seen: &Observed) -> bool {
        match seen.client {
            Client::Outside => false,
            // A server that asks itself asks for something new.
            Client::Own(pid) if pid == seen.tgid => false,
            Client::Own(pid) => self
                .read
                .get(&pid)
                .is_some_and(|latest| seen.request.start.since(*latest) <= PASSED_ON_WITHIN),
            Client::Unknown => is_on_inner_listener(services, seen),
        }
    }
}

fn is_on_inner_listener(services: &[Service], seen: &Observed) -> bool {
    let service = services::find(services, seen.request.service);
    let listeners = service.map_or(&[][..], |service| &service.listeners);
    let is_here = |network: u64| seen.network == 0 || network == u64::from(seen.network);
    let mut here = listeners
        .iter()
        .filter(|listener| listener.port == seen.port && is_here(listener.network))
        .peekable();
    // A listener that is not known yet is younger than the last look.
    here.peek().is_some() && here.all(|listener| listener.inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ledger::{End, Input, Outcome, Request, ServiceId};
    use crate::services::{Family, Listener};

    const SECOND: u64 = 1_000_000_000;

    fn seen(tgid: u32, client: Client, start: u64) -> Observed {
        Observed {
            at: Timestamp(start),
            request: Request {
                id: RequestId(start),
                service: ServiceId(0),
                route: Route::Completions,
                start: Timestamp(start),
                first_data: None,
                last_data: None,
                input: Input::Bytes(0),
                chunks: 0,
                streamed: false,
                status: 0,
                end: None,
            },
            port: 8_001,
            peer_port: 40_000,
            network: 7,
            client,
            family: 2,
            tgid,
            response_bytes: 0,
            first_chunks: 0,
            truncated: false,
            usage: None,
            trace: None,
        }
    }

    fn ended(mut seen: Observed) -> Observed {
        let (at, outcome) = (seen.at, Outcome::Done);
        seen.request.end = Some(End { at, outcome });
        seen
    }

    #[test]
    fn a_request_that_was_told_is_told_to_its_end() {
        let mut hops = Hops::default();
        let request = seen(2, Client::Own(1), 5 * SECOND);
        assert!(!hops.is_hop(&[], &request));
        hops.watch(&seen(1, Client::Outside, 6 * SECOND));
        assert!(!hops.is_hop(&[], &request));
        assert!(!hops.is_hop(&[], &ended(request)));
        assert!(hops.told.is_empty());
        assert!(hops.is_hop(&[], &seen(2, Client::Own(1), 7 * SECOND)));
    }

    #[test]
    fn what_a_process_sends_that_serves_a_request_is_a_hop() {
        let mut hops = Hops::default();
        let hop = ended(seen(2, Client::Own(1), 5 * SECOND));
        assert!(!hops.is_hop(&[], &hop), "a client that serves nothing");
        let mut health = seen(1, Client::Outside, 4 * SECOND);
        health.request.route = Route::Health;
        hops.watch(&health);
        assert!(!hops.is_hop(&[], &hop));
        hops.watch(&seen(1, Client::Outside, 4 * SECOND));
        assert!(hops.is_hop(&[], &hop));
        assert!(!hops.is_hop(&[], &ended(seen(2, Client::Outside, 5 * SECOND))));
        assert!(!hops.is_hop(&[], &ended(seen(1, Client::Own(1), 5 * SECOND))));
        assert!(!hops.is_hop(&[], &ended(seen(2, Client::Own(1), 70 * SECOND))));
        hops.forget(Timestamp(70 * SECOND));
        assert!(!hops.is_hop(&[], &hop));
    }

    #[test]
    fn without_the_clients_name_the_listener_in_its_namespace_decides() {
        let listener = |network, inner| Listener {
            family: Family::Inet,
            address: None,
            port: 8_001,
            loopback: true,
            inode: network,
            network,
            owners: BTreeSet::new(),
            inner,
        };
        let service = |listeners| Service {
            id: ServiceId(0),
            name: "a".to_owned(),
            group: None,
            pod: None,
            pids: BTreeSet::from([1, 2]),
            listeners,
            gpus: Vec::new(),
        };
        let mut hops = Hops::default();
        let request = ended(seen(2, Client::Unknown, SECOND));
        let mut is_hop = |listeners| hops.is_hop(&[service(listeners)], &request);
        assert!(!is_hop(vec![]));
        assert!(is_hop(vec![listener(7, true)]));
        assert!(!is_hop(vec![listener(7, true), listener(7, false)]));
        assert!(is_hop(vec![listener(7, true), listener(8, false)]));
        assert!(!is_hop(vec![listener(8, true)]));
    }
}
