//! The connections there are: so many and no more, without keeping anybody out.
//!
//! A new client is always let in. Where all places are taken, the oldest connection of the address
//! that holds most of them is closed for it: a client that opens many, and reads or sends nothing,
//! crowds out itself.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;

use tokio::task::{AbortHandle, JoinSet};

/// Connections at one time.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// Where a client is: an IPv4 address, an IPv6 network of 64 bits (one machine may have all of its
/// addresses), or this machine, at a loopback address or behind a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::export) struct Peer(Option<IpAddr>);

impl Peer {
    /// A client of a Unix socket.
    pub(in crate::export) const LOCAL: Self = Self(None);

    pub(in crate::export) fn of(address: IpAddr) -> Self {
        Self(Some(match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                IpAddr::from((address.to_bits() >> 64 << 64).to_be_bytes())
            }
            address => address,
        }))
    }

    /// True if no other machine can be it: loopback addresses do not come in from outside.
    pub(super) fn is_this_machine(self) -> bool {
        self.0.is_none_or(|address| address.is_loopback())
    }
}

/// One that is open.
struct Open {
    peer: Peer,
    task: AbortHandle,
}

/// All that are open.
#[derive(Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    /// In the order they came.
    open: Vec<Open>,
}

impl Connections {
    /// Serves one more, and ends another if they are too many.
    pub(super) fn add(&mut self, peer: Peer, served: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|open| !open.task.is_finished());
        if self.open.len() >= MAX_CONNECTIONS {
            self.end_one();
        }
        let task = self.tasks.spawn(served);
        self.open.push(Open { peer, task });
    }

    fn end_one(&mut self) {
        let mut held = HashMap::new();
        for open in &self.open {
            *held.entry(open.peer).or_insert(0) += 1;
        }
        let most = held.values().copied().max();
        let most_held = |open: &Open| held.get(&open.peer).copied() == most;
        if let Some(oldest) = self.open.iter().position(most_held) {
            let ended = self.open.remove(oldest);
            log::debug!(
                "too many connections to the metrics port: {:?} loses one",
                ended.peer
            );
            ended.task.abort();
        }
    }

    /// Returns when all have ended.
    pub(super) async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::Ipv6Addr;

    use super::*;

    fn peer(last: u8) -> Peer {
        Peer::of([10, 0, 0, last].into())
    }

    fn peers(connections: &Connections) -> Vec<Peer> {
        connections.open.iter().map(|open| open.peer).collect()
    }

    #[tokio::test]
    async fn the_address_with_most_connections_loses_its_oldest_to_a_new_client() {
        let mut connections = Connections::default();
        connections.add(peer(1), pending());
        for _ in 1..MAX_CONNECTIONS {
            connections.add(peer(2), pending());
        }
        let oldest = connections.open[1].task.clone();
        connections.add(peer(3), pending());
        tokio::task::yield_now().await;
        assert!(oldest.is_finished());
        assert_eq!(peers(&connections).len(), MAX_CONNECTIONS);
        assert_eq!(peers(&connections)[0], peer(1));
        assert_eq!(peers(&connections).last(), Some(&peer(3)));
        for _ in 0..1000 {
            connections.add(peer(2), pending());
        }
        let left = peers(&connections);
        assert!(left.contains(&peer(1)) && left.contains(&peer(3)));
        assert_eq!(left.len(), MAX_CONNECTIONS);
    }

    #[tokio::test]
    async fn one_that_has_ended_leaves_its_place_to_the_next() {
        let mut connections = Connections::default();
        connections.add(peer(1), pending());
        for _ in 0..3 * MAX_CONNECTIONS {
            connections.add(peer(2), async {});
            tokio::task::yield_now().await;
        }
        assert_eq!(peers(&connections)[0], peer(1));
        assert_eq!(peers(&connections).len(), 2);
    }

    #[test]
    fn one_machine_is_one_peer() {
        let v6 = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:2"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:10.0.0.1"), peer(1));
        assert_ne!(Peer::LOCAL, Peer::of(Ipv6Addr::LOCALHOST.into()));
        let local = [
            Peer::LOCAL,
            v6("::1"),
            v6("::ffff:127.0.0.1"),
            v6("127.0.0.9"),
        ];
        assert!(local.into_iter().all(Peer::is_this_machine));
        let others = [
            v6("::2"),
            v6("::"),
            v6("::ffff:10.0.0.1"),
            v6("fe80::1"),
            peer(1),
        ];
        assert!(!others.into_iter().any(Peer::is_this_machine));
    }
}
