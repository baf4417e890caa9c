//! Where a service may show its metrics: its TCP listeners, those in its container too.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;

use crate::ledger::ServiceId;
use crate::services::{Listener, Service};
use crate::tokens::{Endpoint, Network};

/// From here on the kernel hands out ports that nobody chose, unless it says otherwise.
const EPHEMERAL: u16 = 32_768;

/// What is known of this machine's ports and of the user's choice.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// The agent's own network namespace.
    network: Option<u64>,
    ephemeral: u16,
    /// Ports named by hand.
    chosen: Vec<u16>,
}

impl Endpoints {
    pub(super) fn new(chosen: Vec<u16>) -> Self {
        Self {
            network: fs::metadata("/proc/self/ns/net")
                .ok()
                .map(|link| link.ino()),
            ephemeral: first_ephemeral_port(),
            chosen,
        }
    }

    /// Where a service may show its metrics; `http`: ports on which requests were seen. Ports that
    /// the kernel chose are mostly no servers for others (a rendezvous, a collective's channel)
    /// and are let alone, unless requests were seen there or there is no other port.
    pub(super) fn of(&self, service: &Service, http: &HashSet<(ServiceId, u16)>) -> Vec<Endpoint> {
        let mut listeners: Vec<&Listener> = service.listeners.iter().collect();
        listeners.retain(|listener| listener.address.is_some());
        listeners.sort_by_key(|listener| (listener.inner, listener.port, listener.inode));
        listeners.dedup_by_key(|listener| (listener.network, listener.address, listener.port));
        let ports: HashSet<u16> = listeners.iter().map(|listener| listener.port).collect();
        // IPv4 and IPv6 on one port are one server.
        let mut known: HashMap<(u64, u16), ()> = HashMap::new();
        let mut endpoints = Vec::new();
        for listener in listeners {
            let port = listener.port;
            let address = match listener.address {
                Some(IpAddr::V4(address)) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                // Where `::` takes only IPv6 this is right as well.
                Some(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                Some(address) => address,
                None => continue,
            };
            let is_asked = port < self.ephemeral
                || ports.len() == 1
                || self.chosen.contains(&port)
                || http.contains(&(service.id, port));
            let Some(network) = self.network_of(listener).filter(|_| is_asked) else {
                continue;
            };
            if known.insert((listener.network, port), ()).is_none() {
                endpoints.push(Endpoint {
                    address: SocketAddr::new(address, port),
                    listener: listener.inode,
                    network,
                });
            }
        }
        endpoints
    }

    /// `None` where no process is known through which the listener's namespace can be entered.
    fn network_of(&self, listener: &Listener) -> Option<Network> {
        let number = listener.network;
        if self.network.is_none_or(|own| own == number) {
            return Some(Network { number, of: None });
        }
        let of = Some(*listener.owners.first()?);
        Some(Network { number, of })
    }
}

fn first_ephemeral_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::services::Family;

    const SERVICE: ServiceId = ServiceId(0);

    fn listener(address: &str, port: u16, inner: bool) -> Listener {
        let address: IpAddr = address.parse().unwrap();
        Listener {
            family: Family::Inet,
            address: Some(address),
            port,
            loopback: address.is_loopback(),
            inode: u64::from(port),
            network: 1,
            owners: BTreeSet::from([7, 8]),
            inner,
        }
    }

    fn asked(http: &[u16], listeners: Vec<Listener>) -> Vec<(String, Option<u32>)> {
        let endpoints = Endpoints {
            network: Some(1),
            ephemeral: EPHEMERAL,
            chosen: vec![40_001],
        };
        let service = Service {
            id: SERVICE,
            name: "vllm".into(),
            group: None,
            pod: None,
            pids: BTreeSet::from([1]),
            listeners,
            gpus: Vec::new(),
        };
        let http = http.iter().map(|port| (SERVICE, *port)).collect();
        let endpoints = endpoints.of(&service, &http);
        endpoints
            .iter()
            .map(|endpoint| (endpoint.address.to_string(), endpoint.network.of))
            .collect()
    }

    #[test]
    fn ports_that_the_kernel_chose_are_asked_only_where_requests_were_seen() {
        let all = || {
            vec![
                listener("127.0.0.1", 45_000, false),
                listener("127.0.0.1", 8_002, true),
                listener("0.0.0.0", 8_000, false),
                listener("::", 8_000, false),
                listener("::", 9_000, false),
                listener("10.0.0.7", 40_001, false),
            ]
        };
        let here = |address: &str| (address.to_owned(), None);
        let usual = [
            "127.0.0.1:8000",
            "[::1]:9000",
            "10.0.0.7:40001",
            "127.0.0.1:8002",
        ];
        assert_eq!(asked(&[], all()), usual.map(here));
        assert!(asked(&[45_000], all()).contains(&here("127.0.0.1:45000")));
        let only = vec![listener("127.0.0.1", 50_000, false)];
        assert_eq!(asked(&[], only), [here("127.0.0.1:50000")]);
    }

    #[test]
    fn a_container_is_asked_in_its_own_network_through_a_process_of_its() {
        let mut inside = listener("0.0.0.0", 8_000, false);
        inside.network = 2;
        let here = listener("0.0.0.0", 8_000, false);
        let both = asked(&[], vec![here, inside.clone()]);
        let address = "127.0.0.1:8000".to_owned();
        assert_eq!(both, [(address.clone(), None), (address, Some(7))]);
        inside.owners.clear();
        assert!(asked(&[], vec![inside]).is_empty());
    }
}
