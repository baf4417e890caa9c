//! What the machine must offer for kernel probes to run: each requirement as one small check with
//! what was found and what to do about it.
//!
//! In: files below a root folder (`/` on a real machine). Out: [`Finding`] values for `doctor`, and
//! the first failure for [`super::loader`].

use std::fs;
use std::path::Path;

use crate::finding::{Finding, Status};

/// The oldest kernel the probes are written for.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The inode of the first process namespace (`PROC_PID_INIT_INO` in the kernel).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Every check, in the order in which they matter.
pub fn check(root: &Path) -> Vec<Finding> {
    vec![
        kernel(root),
        privileges(root),
        types(root),
        lockdown(root),
        pid_namespace(root),
        unprivileged(root),
        perf_events(root),
        Finding::pass("tracefs", "not needed: probes attach without it"),
    ]
}

fn read(root: &Path, path: &str) -> Option<String> {
    Some(fs::read_to_string(root.join(path)).ok()?.trim().to_owned())
}

fn kernel(root: &Path) -> Finding {
    const ID: &str = "kernel";
    const FIX: &str = "run a kernel of 5.15 or later";
    let Some(release) = read(root, "proc/sys/kernel/osrelease") else {
        return Finding::of(
            ID,
            Status::Warn,
            "the kernel's release is not readable",
            "mount /proc",
        );
    };
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST_KERNEL => {
            Finding::pass(ID, format!("Linux {release}"))
        }
        _ => Finding::of(ID, Status::Fail, format!("Linux {release}"), FIX),
    }
}

/// How a capability is granted.
pub fn grant(capability: &str) -> String {
    let short = capability.strip_prefix("CAP_").unwrap_or(capability);
    format!(
        "run as root, or grant it: AmbientCapabilities={capability} in a unit, \
         capabilities.add: [{short}] in a pod"
    )
}

fn has(status: &str, capability: u32) -> bool {
    field(status, "CapEff:")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .is_some_and(|capabilities| capabilities >> capability & 1 == 1)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
}

fn privileges(root: &Path) -> Finding {
    const ID: &str = "privileges";
    let Some(status) = read(root, "proc/thread-self/status") else {
        return Finding::of(
            ID,
            Status::Warn,
            "the process's capabilities are not readable",
            "mount /proc",
        );
    };
    let uid = field(&status, "Uid:").unwrap_or("unknown");
    let has = |capability: u32| has(&status, capability);
    let missing: Vec<&str> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(capability, _)| !has(*capability) && !has(CAP_SYS_ADMIN))
        .map(|(_, name)| name)
        .collect();
    if !missing.is_empty() {
        return Finding::of(
            ID,
            Status::Fail,
            format!("user {uid} lacks {}", missing.join(" and ")),
            "run as root, or grant both: AmbientCapabilities=CAP_BPF CAP_PERFMON in a unit, \
             capabilities.add: [BPF, PERFMON] in a pod, \
             or: setcap cap_bpf,cap_perfmon+ep perjoule",
        );
    }
    // Capabilities of a user namespace do not count for bpf(2).
    let whole = read(root, "proc/self/uid_map")
        .is_none_or(|map| map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"]);
    if !whole {
        return Finding::of(
            ID,
            Status::Fail,
            format!("user {uid} of a user namespace: its capabilities do not reach the kernel"),
            "run outside the user namespace (no rootless container, no userns-remap)",
        );
    }
    let by = if has(CAP_BPF) && has(CAP_PERFMON) {
        "CAP_BPF and CAP_PERFMON"
    } else {
        "CAP_SYS_ADMIN"
    };
    Finding::pass(ID, format!("user {uid} with {by}"))
}

fn types(root: &Path) -> Finding {
    const ID: &str = "btf";
    const FIX: &str = "run a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current \
                       distribution's is); in a container, leave /sys/kernel/btf visible";
    let path = root.join(super::btf::VMLINUX.trim_start_matches('/'));
    match fs::File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) => Finding::pass(
            ID,
            format!("{}, {} bytes", super::btf::VMLINUX, metadata.len()),
        ),
        Err(error) => Finding::of(
            ID,
            Status::Fail,
            format!("{}: {error}", super::btf::VMLINUX),
            FIX,
        ),
    }
}

fn lockdown(root: &Path) -> Finding {
    const ID: &str = "lockdown";
    let Some(modes) = read(root, "sys/kernel/security/lockdown") else {
        return Finding::pass(ID, "not there");
    };
    let mode = modes
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(modes.as_str(), |(mode, _)| mode);
    if mode == "confidentiality" {
        return Finding::of(
            ID,
            Status::Fail,
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity or none (kernel command line)",
        );
    }
    Finding::pass(ID, mode)
}

fn pid_namespace(root: &Path) -> Finding {
    const ID: &str = "pid_namespace";
    match fs::read_link(root.join("proc/self/ns/pid")) {
        Ok(namespace) if namespace.as_os_str() == FIRST_PID_NAMESPACE => {
            Finding::pass(ID, "the machine's own")
        }
        Ok(namespace) => Finding::of(
            ID,
            Status::Fail,
            format!(
                "{}: process ids here are not the kernel's, probes would find no service",
                namespace.display()
            ),
            "share the host's process ids: hostPID: true in a pod, --pid=host in a container",
        ),
        Err(error) => Finding::of(
            ID,
            Status::Warn,
            format!("/proc/self/ns/pid: {error}"),
            "mount /proc",
        ),
    }
}

fn unprivileged(root: &Path) -> Finding {
    const ID: &str = "unprivileged_bpf";
    let found = match read(root, "proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => "allowed; not used: probes need CAP_BPF and CAP_PERFMON all the same",
        Some(_) => "disabled: CAP_BPF is used as long as the agent runs",
        None => "not known; not needed",
    };
    Finding::pass(ID, found)
}

/// What the kernel lets everybody measure, which matters to those without `CAP_PERFMON`.
fn perf_events(root: &Path) -> Finding {
    const ID: &str = "perf_event_paranoid";
    let Some(level) = read(root, "proc/sys/kernel/perf_event_paranoid") else {
        return Finding::pass(ID, "not known; not needed with CAP_PERFMON");
    };
    let status = read(root, "proc/thread-self/status").unwrap_or_default();
    if has(&status, CAP_PERFMON) || has(&status, CAP_SYS_ADMIN) {
        return Finding::pass(ID, format!("{level}; not needed with CAP_PERFMON"));
    }
    match level.parse::<i32>() {
        Ok(level) if level <= 0 => Finding::pass(ID, format!("{level}: counters may be opened")),
        _ => Finding::of(
            ID,
            Status::Warn,
            format!("{level}: RAPL's events and hardware counters may not be opened"),
            "grant CAP_PERFMON (or, for every user, sysctl kernel.perf_event_paranoid=0)",
        ),
    }
}

#[cfg(test)]
mod tests;
