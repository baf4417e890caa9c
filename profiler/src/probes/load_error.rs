//! Why the BPF object or one of its programs does not run, and what to do about it.

use std::io;

use crate::finding::Finding;
use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::programs::kprobe::KProbeError;
use thiserror::Error;

use super::btf::BtfError;
use super::health::Verdict;

/// Why no program can run.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The machine or the process lacks something.
    #[error("{}: {}", .0.id, .0.found)]
    Requirement(Finding),
    /// The kernel's types cannot be read.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel refuses bpf(2) although the capabilities are there.
    #[error("the kernel refuses bpf(2): {0}")]
    Refused(io::Error),
    /// The kernel has no memory for the maps.
    #[error("the kernel has no memory for the maps: {0}")]
    Memory(io::Error),
    /// The object does not fit this kernel or this agent.
    #[error("the BPF object does not load: {}", chain(.0))]
    Object(#[source] EbpfError),
    /// The object lacks a map the agent needs.
    #[error("the BPF object has no map {0}")]
    Incomplete(&'static str),
    /// A map that every probe needs cannot be used.
    #[error(transparent)]
    Map(#[from] ProbeError),
}

impl LoadError {
    pub(super) fn from_load(error: EbpfError) -> Self {
        let errno = system_error(&error).and_then(io::Error::raw_os_error);
        match errno {
            Some(code @ (libc::EPERM | libc::EACCES)) => {
                Self::Refused(io::Error::from_raw_os_error(code))
            }
            Some(code @ libc::ENOMEM) => Self::Memory(io::Error::from_raw_os_error(code)),
            _ => Self::Object(error),
        }
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Requirement(check) => check.fix.clone().unwrap_or_default(),
            Self::Btf(_) => "run a kernel built with CONFIG_DEBUG_INFO_BTF=y; in a container, \
                             leave /sys/kernel/btf visible"
                .to_owned(),
            Self::Refused(_) => "allow bpf(2): a seccomp profile (containers), a security module, \
                                 or kernel lockdown forbids it"
                .to_owned(),
            Self::Memory(_) => "raise the memory limit of the agent's cgroup by 32 MiB: kernel \
                                memory of maps counts there"
                .to_owned(),
            Self::Object(_) | Self::Incomplete(_) | Self::Map(_) => {
                "use the object built with this agent (unset PROFILER_EBPF_OBJECT at build \
                 time); if it is, report this message with the output of `uname -r`"
                    .to_owned()
            }
        }
    }
}

/// Why one program or map does not work; the others go on.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// A kernel field it needs was not found.
    #[error("{program}: needs {structure}.{member}: {reason}")]
    MissingField {
        /// The program.
        program: &'static str,
        /// The kernel's struct.
        structure: &'static str,
        /// Its member.
        member: &'static str,
        /// Why its offset is not known.
        reason: String,
    },
    /// The kernel has no such tracepoint or function.
    #[error("{program}: this kernel has no {tracepoint}")]
    NoHook {
        /// The program.
        program: &'static str,
        /// The tracepoint.
        tracepoint: String,
    },
    /// The kernel lacks something else the program uses.
    #[error("{program}: this kernel lacks what it uses: {reason}")]
    Unsupported {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// The kernel refuses the program.
    #[error("{program}: the kernel refuses it: {reason}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// The program is attached, and its event does not run it.
    #[error("{program}: attached, but it does not run when its event happens")]
    Silent {
        /// The program.
        program: &'static str,
    },
    /// No tier of a probe works here.
    #[error("{program}: no tier works: {reasons}")]
    NoTier {
        /// The program that was tried first.
        program: &'static str,
        /// Each tier, and why not.
        reasons: String,
        /// What all of them together mean.
        verdict: Verdict,
    },
    /// The object has no such program.
    #[error("{program}: not in the BPF object")]
    NoProgram {
        /// The program.
        program: &'static str,
    },
    /// The object has no such map, or it was taken before.
    #[error("map {map}: not in the BPF object, or taken before")]
    NoMap {
        /// The map.
        map: &'static str,
    },
    /// The map is not what the agent takes it for.
    #[error("map {map}: not an array of the expected entries")]
    MapShape {
        /// The map.
        map: &'static str,
    },
    /// A map cannot be used.
    #[error("map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something of the machine that a probe needs cannot be read.
    #[error("{what}: {source}")]
    Machine {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl ProbeError {
    /// The verdict on a program that failed so.
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::MissingField { .. } | Self::NoHook { .. } | Self::Unsupported { .. } => {
                Verdict::Unsupported
            }
            Self::NoTier { verdict, .. } => *verdict,
            Self::Refused { .. }
            | Self::Silent { .. }
            | Self::NoProgram { .. }
            | Self::NoMap { .. }
            | Self::MapShape { .. }
            | Self::Map { .. }
            | Self::Machine { .. } => Verdict::Broken,
        }
    }

    pub(super) fn from_load(program: &'static str, tracepoint: &str, error: ProgramError) -> Self {
        match error {
            ProgramError::Btf(_) => Self::NoHook {
                program,
                tracepoint: tracepoint.to_owned(),
            },
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let text = verifier_log.to_string();
                let reason = format!("{io_error}: {}", last_words(&text));
                // What the verifier says of a helper or a kernel function that is not there.
                if text.contains("unknown func")
                    || text.contains("invalid func")
                    || text.contains("cannot use helper")
                    || text.contains("program of this type cannot use")
                {
                    Self::Unsupported { program, reason }
                } else {
                    Self::Refused { program, reason }
                }
            }
            other => Self::Refused {
                program,
                reason: chain(&other),
            },
        }
    }

    pub(super) fn from_attach(
        program: &'static str,
        tracepoint: &str,
        error: ProgramError,
    ) -> Self {
        // The library finds kprobes through this file, which is there if the kernel has them.
        let missing = match &error {
            ProgramError::SyscallError(call) => call.io_error.raw_os_error() == Some(libc::ENOENT),
            ProgramError::KProbeError(KProbeError::FileError { io_error, .. }) => {
                io_error.kind() == io::ErrorKind::NotFound
            }
            _ => false,
        };
        if missing {
            return Self::NoHook {
                program,
                tracepoint: tracepoint.to_owned(),
            };
        }
        Self::Refused {
            program,
            reason: chain(&error),
        }
    }
}

/// The verifier's verdict stands just before its statistics, at the log's end.
fn last_words(log: &str) -> &str {
    log.lines()
        .rev()
        .map(str::trim)
        .find(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("verification time")
                && !line.starts_with("stack depth")
        })
        .unwrap_or("no verifier log")
}

fn system_error(error: &EbpfError) -> Option<&io::Error> {
    match error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => Some(io_error),
        EbpfError::MapError(MapError::SyscallError(call)) => Some(&call.io_error),
        EbpfError::BtfError(aya::BtfError::LoadError { io_error, .. }) => Some(io_error),
        _ => None,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some of the library's messages already hold their source's.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
