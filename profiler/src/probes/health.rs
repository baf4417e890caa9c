//! How each BPF program fares: its verdict, and what it costs. For `doctor`, metrics and the log.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What became of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Loaded and attached.
    Ok,
    /// This kernel lacks what it needs: a hook, a helper, a struct member.
    Unsupported,
    /// It should work here and does not.
    Broken,
    /// Not asked for.
    Off,
    /// Taken off while it ran: it cost more than it may.
    Detached,
}

/// The kind of hook a program runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// A raw tracepoint with typed arguments.
    TpBtf,
    /// The exit of a kernel function, with typed arguments.
    Fexit,
    /// The entry and the return of a kernel function, by breakpoint or patched jump.
    Kprobe,
    /// A raw tracepoint.
    RawTp,
    /// A probe at an instruction of a process's own code.
    Uprobe,
    /// One of the kernel's own events on each CPU: its timer, its account of faults.
    PerfEvent,
}

impl Verdict {
    /// Its name in text and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unsupported => "unsupported",
            Self::Broken => "broken",
            Self::Off => "off",
            Self::Detached => "detached",
        }
    }
}

impl Tier {
    /// The tiers of the request probe, in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::TpBtf, Self::Fexit, Self::Kprobe, Self::RawTp];

    /// Its name in text, settings and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::RawTp => "raw_tp",
            Self::Uprobe => "uprobe",
            Self::PerfEvent => "perf_event",
        }
    }
}

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(name: &str) -> Result<Self, UnknownTier> {
        let tier = Self::ALL.into_iter().find(|tier| tier.name() == name);
        tier.ok_or(UnknownTier)
    }
}

/// No tier has that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no such tier; one of tp_btf, fexit, kprobe, raw_tp")]
pub struct UnknownTier;

/// One program's health at some moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProgramHealth {
    /// The program.
    pub program: &'static str,
    /// Its hook's kind.
    pub tier: Tier,
    /// What became of it.
    pub verdict: Verdict,
    /// Why, if it is not running.
    pub text: String,
    /// Times it ran since it was attached.
    pub runs: u64,
    /// Estimated seconds of all its runs, from one timed run in 1,024; `None` before one was
    /// timed. A timed run holds one reading of the clock (some 25 ns) that others do not, and
    /// leaves out the kernel's own steps around the program, which are about as long.
    pub seconds: Option<f64>,
}
