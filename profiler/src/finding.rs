//! One thing that was looked at on this machine: what was found, how much it matters, what to do.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It works, or the machine does not have it and needs nothing.
    Pass,
    /// It works with a limit.
    Warn,
    /// It should work and does not.
    Fail,
}

impl Status {
    /// What a program that looked for problems ends with, if this is the worst.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Warn => 1,
            Self::Fail => 2,
        }
    }

    /// For people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable name: `kernel`, `btf`, `nvml`, `probe.sched_switch`.
    pub id: String,
    /// How much it matters.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do; `None` if nothing is to be done.
    pub fix: Option<String>,
}

impl Finding {
    /// Something that works or is not needed.
    pub fn pass(id: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            status: Status::Pass,
            found: found.into(),
            fix: None,
        }
    }

    /// Something with a fix.
    pub fn of(
        id: impl Into<String>,
        status: Status,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            status,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}
