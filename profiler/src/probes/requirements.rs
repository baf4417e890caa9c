//! What the machine must offer for kernel probes to run: each requirement as one small check with
//! what was found and what to do about it.
//!
//! In: files below a root folder (`/` on a real machine). Out: [`Check`] values for `doctor`, and
//! the first failure for [`super::loader`].

use std::fs;
use std::path::Path;

use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Fine, or absent and not needed.
    Pass,
    /// Works with a limit.
    Warn,
    /// Does not work.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name.
    pub id: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do; `None` if nothing is to be done.
    pub fix: Option<String>,
}

impl Check {
    fn pass(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            status: Status::Pass,
            found: found.into(),
            fix: None,
        }
    }

    fn of(id: &'static str, status: Status, found: impl Into<String>, fix: &str) -> Self {
        Self {
            id,
            status,
            found: found.into(),
            fix: Some(fix.to_owned()),
        }
    }
}

/// The oldest kernel the probes are written for.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The inode of the first process namespace (`PROC_PID_INIT_INO` in the kernel).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Every check, in the order in which they matter.
pub fn check(root: &Path) -> Vec<Check> {
    vec![
        kernel(root),
        privileges(root),
        types(root),
        lockdown(root),
        pid_namespace(root),
        unprivileged(root),
        Check::pass("tracefs", "not needed: probes attach without it"),
    ]
}

fn read(root: &Path, path: &str) -> Option<String> {
    Some(fs::read_to_string(root.join(path)).ok()?.trim().to_owned())
}

fn kernel(root: &Path) -> Check {
    const ID: &str = "kernel";
    const FIX: &str = "run a kernel of 5.15 or later";
    let Some(release) = read(root, "proc/sys/kernel/osrelease") else {
        return Check::of(
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
            Check::pass(ID, format!("Linux {release}"))
        }
        _ => Check::of(ID, Status::Fail, format!("Linux {release}"), FIX),
    }
}

fn privileges(root: &Path) -> Check {
    const ID: &str = "privileges";
    let Some(status) = read(root, "proc/thread-self/status") else {
        return Check::of(
            ID,
            Status::Warn,
            "the process's capabilities are not readable",
            "mount /proc",
        );
    };
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
    };
    let uid = field("Uid:").unwrap_or("unknown");
    let capabilities = field("CapEff:")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| capabilities >> capability & 1 == 1;
    let missing: Vec<&str> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(capability, _)| !has(*capability) && !has(CAP_SYS_ADMIN))
        .map(|(_, name)| name)
        .collect();
    if !missing.is_empty() {
        return Check::of(
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
        return Check::of(
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
    Check::pass(ID, format!("user {uid} with {by}"))
}

fn types(root: &Path) -> Check {
    const ID: &str = "btf";
    const FIX: &str = "run a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current \
                       distribution's is); in a container, leave /sys/kernel/btf visible";
    let path = root.join(super::btf::VMLINUX.trim_start_matches('/'));
    match fs::File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) => Check::pass(
            ID,
            format!("{}, {} bytes", super::btf::VMLINUX, metadata.len()),
        ),
        Err(error) => Check::of(
            ID,
            Status::Fail,
            format!("{}: {error}", super::btf::VMLINUX),
            FIX,
        ),
    }
}

fn lockdown(root: &Path) -> Check {
    const ID: &str = "lockdown";
    let Some(modes) = read(root, "sys/kernel/security/lockdown") else {
        return Check::pass(ID, "not there");
    };
    let mode = modes
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(modes.as_str(), |(mode, _)| mode);
    if mode == "confidentiality" {
        return Check::of(
            ID,
            Status::Fail,
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity or none (kernel command line)",
        );
    }
    Check::pass(ID, mode)
}

fn pid_namespace(root: &Path) -> Check {
    const ID: &str = "pid_namespace";
    match fs::read_link(root.join("proc/self/ns/pid")) {
        Ok(namespace) if namespace.as_os_str() == FIRST_PID_NAMESPACE => {
            Check::pass(ID, "the machine's own")
        }
        Ok(namespace) => Check::of(
            ID,
            Status::Fail,
            format!(
                "{}: process ids here are not the kernel's, probes would find no service",
                namespace.display()
            ),
            "share the host's process ids: hostPID: true in a pod, --pid=host in a container",
        ),
        Err(error) => Check::of(
            ID,
            Status::Warn,
            format!("/proc/self/ns/pid: {error}"),
            "mount /proc",
        ),
    }
}

fn unprivileged(root: &Path) -> Check {
    const ID: &str = "unprivileged_bpf";
    let found = match read(root, "proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => "allowed; not used",
        Some(_) => "disabled; not needed",
        None => "not known; not needed",
    };
    Check::pass(ID, found)
}

#[cfg(test)]
mod tests;
