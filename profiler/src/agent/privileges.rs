//! The least that the agent needs while it runs: which capability each feature uses for what, and how
//! the rest is given up after attach. The same table is behind `doctor`.
//!
//! Capabilities belong to threads, and what a thread has its children inherit: so the rest is given up
//! when everything is attached and no other thread is there yet. Threads that answer HTTP keep nothing
//! and may make few system calls ([`serving`]). Not given up: the user. A root agent reads files of root
//! without a capability, and stays root.

pub mod serving;

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::config::Config;
use crate::finding::{Finding, Status};
use crate::probes::requirements;
use crate::tokens::broker;

/// What the agent does while it runs that takes a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    /// Requests, time on CPUs and what else the kernel side tells.
    Probes,
    /// Who serves what.
    Services,
    /// Probes in processes' libraries: TLS, CUDA.
    Libraries,
    /// The CPUs' own counters.
    Counters,
    /// Names of sampled code.
    Stacks,
    /// Engines' metrics in containers.
    Engines,
    /// A command that it ends.
    Command,
    /// Files in a folder that is another user's.
    Outputs,
}

/// One capability, for one feature.
struct Need {
    feature: Feature,
    capability: CapabilitySet,
    /// What it is used for while the agent runs.
    why: &'static str,
    /// What is missing without it.
    without: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        feature: Feature::Probes,
        capability: CapabilitySet::BPF,
        why: "looks into the kernel side's tables, puts hooks on and takes them off",
        without: "requests and CPU time are not seen",
    },
    Need {
        feature: Feature::Probes,
        capability: CapabilitySet::PERFMON,
        why: "loads programs when a service first uses an io_uring, puts kprobes back on",
        without: "requests and CPU time are not seen",
    },
    Need {
        feature: Feature::Services,
        capability: CapabilitySet::SYS_PTRACE,
        why: "reads whose socket it is, program and namespaces of other users' processes",
        without: "services of other users are not found",
    },
    Need {
        feature: Feature::Services,
        capability: CapabilitySet::DAC_READ_SEARCH,
        why: "lists other users' descriptors, opens RAPL's counters again after an error",
        without: "sockets of other users' services are not found; RAPL needs root",
    },
    Need {
        feature: Feature::Libraries,
        // perf_uprobe_event_init in kernel/events/core.c asks for it, where kprobes need CAP_PERFMON.
        capability: CapabilitySet::SYS_ADMIN,
        why: "puts probes on libraries of services that come later",
        without: "TLS is not read, CUDA is not counted",
    },
    Need {
        feature: Feature::Counters,
        capability: CapabilitySet::PERFMON,
        why: "opens counters for processes that come later",
        without: "cycles, instructions and cache misses are not counted",
    },
    Need {
        feature: Feature::Stacks,
        capability: CapabilitySet::CHECKPOINT_RESTORE,
        why: "reads the mapped files of containers for functions' names",
        without: "names are found by path, not for files that were replaced",
    },
    Need {
        feature: Feature::Stacks,
        capability: CapabilitySet::SYSLOG,
        why: "reads the addresses of the kernel's functions",
        without: "the kernel's functions have no names",
    },
    Need {
        feature: Feature::Engines,
        capability: broker::CAPABILITIES.difference(CapabilitySet::SYS_PTRACE),
        why: "enters containers' network namespaces, in a process of its own (perjoule-netns)",
        without: "engines in containers are not asked for token counts",
    },
    Need {
        feature: Feature::Command,
        capability: CapabilitySet::KILL,
        why: "ends a command that became another user",
        without: "a command that became another user is not ended",
    },
    Need {
        feature: Feature::Outputs,
        capability: CapabilitySet::DAC_OVERRIDE,
        why: "writes the state or the recording into another user's folder",
        without: "the folder's owner alone can write there",
    },
];

const NAMES: &[(CapabilitySet, &str)] = &[
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
    (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
    (CapabilitySet::CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE"),
    (CapabilitySet::SYSLOG, "CAP_SYSLOG"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::KILL, "CAP_KILL"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
];

/// What serves in a capability's place where it is not held: what granted the same before it was split.
const SUBSTITUTES: &[(CapabilitySet, CapabilitySet)] = &[
    (CapabilitySet::BPF, CapabilitySet::SYS_ADMIN),
    (CapabilitySet::PERFMON, CapabilitySet::SYS_ADMIN),
    (CapabilitySet::CHECKPOINT_RESTORE, CapabilitySet::SYS_ADMIN),
    (CapabilitySet::SYSLOG, CapabilitySet::SYS_ADMIN),
    (CapabilitySet::DAC_READ_SEARCH, CapabilitySet::DAC_OVERRIDE),
];

/// So long other threads of the start are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// The thread that starts `stat`'s command with the rights of its user.
pub const COMMAND_THREAD: &str = "command";

/// What is switched on. `probes`: the kernel side runs.
pub(super) fn features(config: &Config, probes: bool, command: bool) -> Vec<Feature> {
    let stacks = config.wanted_stacks().any();
    [
        (Feature::Probes, probes),
        (Feature::Services, true),
        (Feature::Libraries, probes && (config.tls || config.cuda)),
        (Feature::Counters, probes && config.pmc),
        (Feature::Stacks, probes && stacks),
        (Feature::Engines, config.engine_metrics),
        (Feature::Command, command),
    ]
    .into_iter()
    .filter_map(|(feature, on)| on.then_some(feature))
    .collect()
}

/// What these features need, in the agent's own process.
fn needed(features: &[Feature]) -> CapabilitySet {
    let needs = NEEDS.iter().filter(|need| need.feature != Feature::Engines);
    needs
        .filter(|need| features.contains(&need.feature))
        .fold(CapabilitySet::empty(), |all, need| all | need.capability)
}

/// Of what is needed what is held, or what is held in its place.
fn kept(needed: CapabilitySet, held: CapabilitySet) -> CapabilitySet {
    let in_place = SUBSTITUTES
        .iter()
        .filter(|(capability, _)| needed.contains(*capability) && !held.contains(*capability))
        .fold(CapabilitySet::empty(), |all, (_, other)| all | *other);
    (needed | in_place) & held
}

/// Gives up, in this thread and all that it will start, what `features` do not need. `outputs`: files
/// that will be written.
///
/// # Errors
/// The kernel refuses: nothing may then run as if it had not.
pub(super) fn give_up(features: &[Feature], outputs: &[&Path]) -> io::Result<()> {
    for name in threads_left() {
        log::warn!("the thread {name} was started before the rest of its rights could be given up");
    }
    let held = capabilities(None)?.permitted;
    let mut keep = kept(needed(features), held);
    empty_bounding_set()?;
    clear_ambient_capability_set()?;
    let set = |effective, permitted| {
        let sets = CapabilitySets {
            effective,
            permitted,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)
    };
    // Whether a folder can be written without it is tried without it.
    set(keep, held)?;
    if outputs.iter().any(|file| !can_write_beside(file)) {
        keep |= kept(needed(&[Feature::Outputs]), held);
    }
    set(keep, keep)?;
    set_no_new_privs(true)?;
    // No core file with bytes of requests, and nobody of the same user looks into this memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    log::info!("privileges: {} kept", names(keep));
    let admin = CapabilitySet::SYS_ADMIN;
    if keep.contains(admin) && !needed(features).contains(admin) {
        log::warn!(
            "CAP_SYS_ADMIN is kept in place of what was not granted; grant CAP_BPF and CAP_PERFMON \
             instead"
        );
    }
    Ok(())
}

/// Nothing that this process might run gains a capability by being run. Without `CAP_SETPCAP` the set
/// stays; `no_new_privs` has the same effect.
fn empty_bounding_set() -> io::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more of them; or it is not ours to change.
            Err(Errno::INVAL | Errno::PERM) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn can_write_beside(file: &Path) -> bool {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, folder, wanted, AtFlags::EACCESS).is_ok()
}

/// Names of other threads that do not end within [`PATIENCE`]: of a driver that hangs, say.
fn threads_left() -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = other_threads();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn other_threads() -> Vec<String> {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let Ok(entries) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let others = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|tid| *tid != own);
    others
        .filter_map(|tid| fs::read_to_string(format!("/proc/self/task/{tid}/comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .filter(|name| name != COMMAND_THREAD)
        .collect()
}

fn names(set: CapabilitySet) -> String {
    let names: Vec<&str> = NAMES
        .iter()
        .filter(|(capability, _)| set.contains(*capability))
        .map(|(_, name)| *name)
        .collect();
    if names.is_empty() {
        return "no capability".to_owned();
    }
    names.join(" ")
}

/// Each capability that the settings use: whether it is held, for what, and what is missing without.
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    match capabilities(None) {
        Ok(sets) => examine_held(&features(config, true, false), sets.effective),
        Err(error) => vec![Finding::of(
            "capabilities",
            Status::Warn,
            error.to_string(),
            "allow capget(2)",
        )],
    }
}

fn examine_held(features: &[Feature], held: CapabilitySet) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (capability, name) in NAMES {
        let mut needs = NEEDS
            .iter()
            .filter(|need| need.capability == *capability && features.contains(&need.feature))
            .peekable();
        let Some(without) = needs.peek().map(|need| need.without) else {
            continue;
        };
        let why: Vec<&str> = needs.map(|need| need.why).collect();
        let why = why.join("; ");
        let id = name.replace("CAP_", "capability.").to_lowercase();
        let served = kept(*capability, held);
        findings.push(if served.contains(*capability) {
            Finding::pass(id, format!("held: {why}"))
        } else if !served.is_empty() {
            Finding::pass(id, format!("{} in its place: {why}", names(served)))
        } else if *capability == CapabilitySet::SYS_ADMIN && !features.contains(&Feature::Libraries)
        {
            // So much is not asked for by default.
            Finding::pass(
                id,
                format!("not held, and needed for one thing alone: {without}"),
            )
        } else {
            let found = format!("not held: {without}");
            Finding::of(id, Status::Warn, found, requirements::grant(name))
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: CapabilitySet = CapabilitySet::from_bits_retain((1 << 41) - 1);

    fn kept_of(config: &Config, held: CapabilitySet) -> String {
        names(kept(needed(&features(config, true, false)), held))
    }

    #[test]
    fn by_default_four_capabilities_are_kept_and_the_old_one_for_everything_never() {
        let default = Config::default();
        let usual = "CAP_BPF CAP_PERFMON CAP_SYS_PTRACE CAP_DAC_READ_SEARCH";
        assert_eq!(kept_of(&default, ALL), usual);
        let blind = names(needed(&features(&default, false, false)));
        assert_eq!(blind, "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH");
        assert_eq!(kept_of(&default, CapabilitySet::empty()), "no capability");
    }

    #[test]
    fn what_is_switched_on_keeps_what_it_needs() {
        let usual = "CAP_BPF CAP_PERFMON CAP_SYS_PTRACE CAP_DAC_READ_SEARCH";
        let stacks = Config {
            stacks: Some(49),
            ..Config::default()
        };
        let expected = format!("{usual} CAP_CHECKPOINT_RESTORE CAP_SYSLOG");
        assert_eq!(kept_of(&stacks, ALL), expected);
        let tls = Config {
            tls: true,
            ..Config::default()
        };
        assert_eq!(kept_of(&tls, ALL), format!("{usual} CAP_SYS_ADMIN"));
        let command = features(&Config::default(), true, true);
        assert_eq!(names(needed(&command)), format!("{usual} CAP_KILL"));
    }

    #[test]
    fn what_was_not_granted_is_replaced_by_what_includes_it() {
        let old = CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::CHOWN;
        assert_eq!(
            kept_of(&Config::default(), old),
            "CAP_SYS_ADMIN CAP_DAC_OVERRIDE"
        );
    }

    #[test]
    fn a_missing_capability_is_named_with_what_is_lost_and_how_to_grant_it() {
        let features = features(&Config::default(), true, false);
        let held = CapabilitySet::BPF | CapabilitySet::PERFMON;
        let found = examine_held(&features, held);
        let of = |id: &str| found.iter().find(|finding| finding.id == id).unwrap();
        assert_eq!(of("capability.bpf").status, Status::Pass);
        let missing = of("capability.sys_ptrace");
        assert_eq!(missing.status, Status::Warn);
        assert!(missing.found.contains("other users"), "{missing:?}");
        assert!(missing.fix.as_ref().unwrap().contains("CAP_SYS_PTRACE"));
        assert!(
            found
                .iter()
                .all(|finding| finding.id != "capability.syslog")
        );
        let old = examine_held(&features, CapabilitySet::SYS_ADMIN);
        let bpf = old.iter().find(|finding| finding.id == "capability.bpf");
        assert_eq!(bpf.unwrap().status, Status::Pass);
    }

    #[test]
    fn the_folder_of_a_file_is_what_must_be_writable() {
        let folder = tempfile::tempdir().unwrap();
        assert!(can_write_beside(&folder.path().join("state.json")));
        assert!(!can_write_beside(Path::new("/nonexistent/state.json")));
    }
}
