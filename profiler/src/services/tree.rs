//! Where a process tree ends: which processes belong together when neither container nor unit
//! says so.
//!
//! The rule. From a process upwards, a parent still belongs to the same service unless it is
//! process 1 or below no parent at all, a manager or shell (by the list here), the agent or
//! something the agent runs under, or on the other side of a cgroup boundary. What lies below the
//! highest process that belongs, belongs; sessions and process groups do not matter, because
//! servers make their own.

use std::collections::BTreeSet;

use super::cgroups::Group;
use super::processes::{Key, Process, Processes};

/// Programs that start services without being part of them, by the kernel's name for them (at
/// most 15 bytes). One that ends in `-` stands for all that begin so.
const MANAGERS: [&str; 54] = [
    "init",
    "systemd",
    "systemd-",
    "(sd-pam)",
    "upstart",
    "runit",
    "runsv",
    "runsvdir",
    "s6-",
    "tini",
    "dumb-init",
    "catatonit",
    "docker-init",
    "supervisord",
    "supervisor",
    "monit",
    "pm2",
    "circusd",
    "containerd",
    "containerd-",
    "dockerd",
    "docker",
    "conmon",
    "podman",
    "crio",
    "kubelet",
    "k3s",
    "slurmd",
    "slurmstepd",
    "sshd",
    "sshd-",
    "login",
    "su",
    "sudo",
    "doas",
    "cron",
    "crond",
    "atd",
    "bash",
    "sh",
    "dash",
    "zsh",
    "fish",
    "ksh",
    "csh",
    "tcsh",
    "screen",
    "tmux: server",
    "tmux",
    "timeout",
    "make",
    "cargo",
    "watch",
    "script",
];

/// Whether `comm` is one of those that services are started by.
pub(super) fn manages(comm: &str) -> bool {
    let comm = comm.strip_prefix('-').unwrap_or(comm);
    MANAGERS
        .iter()
        .any(|manager| comm == *manager || (manager.ends_with('-') && comm.starts_with(manager)))
        || comm.eq_ignore_ascii_case("screen")
}

/// Processes that never belong to a service: the agent and all it runs under.
pub(super) fn agent_line(processes: &Processes, agent: u32) -> BTreeSet<u32> {
    let above = processes.ancestors(agent).map(|process| process.pid);
    above.chain([agent]).collect()
}

/// The highest process that belongs with `process`.
pub(super) fn root(processes: &Processes, process: &Process, agent_line: &BTreeSet<u32>) -> Key {
    let mut highest = process;
    for parent in processes.ancestors(process.pid) {
        let boundary = parent.pid <= 1
            || agent_line.contains(&parent.pid)
            || manages(&parent.comm)
            || parent.group != process.group;
        if boundary {
            break;
        }
        highest = parent;
    }
    highest.key()
}

/// Whether a child of a tree's process is still of that tree: not the agent, and not in a
/// container, job or unit of its own.
pub(super) fn enters(child: &Process, group: Option<&Group>, agent: u32) -> bool {
    child.pid != agent && (child.group.is_none() || child.group.as_ref() == group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_and_managers_start_services_but_are_none() {
        for comm in [
            "bash",
            "-bash",
            "systemd",
            "sshd-session",
            "containerd-shim",
            "SCREEN",
            "tini",
        ] {
            assert!(manages(comm), "{comm}");
        }
        for comm in [
            "python3",
            "VLLM::EngineCor",
            "ollama",
            "shard",
            "initd",
            "makesrv",
            "node",
        ] {
            assert!(!manages(comm), "{comm}");
        }
    }
}
