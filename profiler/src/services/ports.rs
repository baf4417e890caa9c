//! Who is behind a port that a user names.
//!
//! In: the port. Out: the processes that serve it, not the ones that only hold the socket open
//! for them (a service manager) or pass connections on (a container engine's proxy).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::processes::{Process, Processes};
use super::sockets::{self, Family, Socket};
use super::tree;

/// Programs that pass a published port on to a container, by the kernel's name for them.
const PROXIES: [&str; 2] = ["docker-proxy", "rootlessport"];

/// The TCP listeners on `port` in the agent's own network namespace.
pub(super) fn sockets_here(proc: &Path, port: u16) -> BTreeSet<Socket> {
    on_port(&proc.join("self"), port)
}

/// The processes that serve `port`: in the agent's network namespace, else in any, else behind a
/// container engine's proxy.
pub(super) fn owners(proc: &Path, processes: &Processes, port: u16) -> BTreeSet<u32> {
    let here = sockets_here(proc, port);
    if here.is_empty() {
        return owners_anywhere(proc, processes, port);
    }
    let all = processes.iter().map(|process| process.pid).collect();
    let owners: Vec<&Process> = sockets::owners(proc, &all, &here)
        .into_values()
        .flatten()
        .filter_map(|pid| processes.get(pid))
        .filter(|process| process.pid > 1 && !tree::manages(&process.comm))
        .collect();
    let (proxies, servers): (Vec<&Process>, Vec<&Process>) = owners
        .into_iter()
        .partition(|owner| PROXIES.contains(&owner.comm.as_str()));
    if !servers.is_empty() {
        return servers.into_iter().map(|process| process.pid).collect();
    }
    proxies
        .into_iter()
        .filter_map(|proxy| container_port(&processes.arguments(proxy.pid)))
        .flat_map(|port| owners_anywhere(proc, processes, port))
        .collect()
}

fn on_port(directory: &Path, port: u16) -> BTreeSet<Socket> {
    let mut sockets = sockets::listening(directory);
    sockets.retain(|socket| socket.family != Family::Unix && socket.port == port);
    sockets
}

fn owners_anywhere(proc: &Path, processes: &Processes, port: u16) -> BTreeSet<u32> {
    let mut networks: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for process in processes.iter() {
        if let Some(network) = processes.network(process.pid) {
            networks.entry(network).or_default().insert(process.pid);
        }
    }
    let mut found = BTreeSet::new();
    for pids in networks.values() {
        let Some(first) = pids.first() else { continue };
        let sockets = on_port(&processes.directory(*first), port);
        if !sockets.is_empty() {
            found.extend(
                sockets::owners(proc, pids, &sockets)
                    .into_values()
                    .flatten(),
            );
        }
    }
    found
}

/// The port inside the container, from `docker-proxy … -container-port 80 …`.
fn container_port(arguments: &[String]) -> Option<u16> {
    let mut rest = arguments.iter();
    rest.find(|argument| *argument == "-container-port")?;
    rest.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_names_the_port_inside_the_container() {
        let arguments = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 \
                    -container-ip 172.17.0.2 -container-port 80";
        assert_eq!(container_port(&arguments(line)), Some(80));
        assert_eq!(
            container_port(&arguments("/usr/bin/docker-proxy -proto tcp")),
            None
        );
    }
}
