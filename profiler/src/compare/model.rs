//! The typed comparison: the keys of JSON schema 1. Keys may be added, never renamed; an unknown
//! value is `None` (null), never 0.

use serde::Serialize;

use crate::ledger::Component;

/// Two runs side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Version of this schema: 1.
    pub schema: u32,
    /// How often chance alone may be called a change.
    pub alpha: f64,
    /// The base.
    pub a: RunFacts,
    /// What is held against it.
    pub b: RunFacts,
    /// Both were measured by the same meters: their gain error is in both, and cancels.
    pub same_meters: bool,
    /// Services by name.
    pub services: Vec<ServiceComparison>,
    /// Mean power of all meters of a component by account, watts.
    pub watts: Vec<AccountChange>,
    /// What `--fail-if` asked.
    pub conditions: Vec<ConditionResult>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct RunFacts {
    pub file: String,
    pub simulated: bool,
    pub duration_s: Option<f64>,
    /// The largest of its meters' gain errors; systematic, and in no interval here.
    pub gain_error_ratio: Option<f64>,
}

/// Where a service was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants are the runs")]
pub enum SeenIn {
    A,
    B,
    Both,
}

/// How the blocks of two runs stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// Block by block the same requests: compared in pairs.
    Same,
    /// Each run by itself.
    Different,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceComparison {
    /// Its name.
    pub service: String,
    /// In which run it is.
    pub seen_in: SeenIn,
    /// Null where it is in one only.
    pub load: Option<Load>,
    /// Why nothing is said of it, if so.
    pub not_enough_data: Option<String>,
    /// Its requests in each run, health checks left out.
    pub requests: Pair<u64>,
    /// Length of a block in each run.
    pub block_s: Pair<f64>,
    /// What is judged.
    pub figures: Vec<FigureChange>,
    /// What `j_per_request` is made of, joules a request; the rows sum to it.
    pub parts: Vec<PartChange>,
    /// Joules a request that are not in it: the service's overhead and its part of open contexts.
    pub overhead_and_context: Pair<f64>,
    /// Seconds a request that its threads waited by reason, of the waits that were recorded; null
    /// unless both runs have them.
    pub off_cpu: Option<Vec<PartChange>>,
    /// CPU joules a request by stack, the largest changes first; null unless both runs have stacks.
    pub stacks: Option<Vec<PartChange>>,
}

/// A value of each run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the runs")]
pub struct Pair<T> {
    pub a: Option<T>,
    pub b: Option<T>,
}

impl Pair<f64> {
    /// B − A.
    pub fn difference(self) -> Option<f64> {
        self.a.zip(self.b).map(|(a, b)| b - a)
    }

    /// B ÷ A − 1.
    pub fn change(self) -> Option<f64> {
        let (a, b) = self.a.zip(self.b)?;
        (a > 0.0).then(|| b / a - 1.0)
    }
}

/// A part of a figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct PartChange {
    pub part: String,
    #[serde(flatten)]
    pub values: Pair<f64>,
}

/// Mean power.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct AccountChange {
    pub component: Component,
    /// An account, or `all`.
    pub account: &'static str,
    #[serde(flatten)]
    pub values: Pair<f64>,
}

/// A figure that is compared. Names are those of `--fail-if`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Active energy ÷ requests.
    JPerRequest,
    /// Active energy ÷ output tokens.
    JPerOutputToken,
    /// Active energy ÷ input and output tokens.
    JPerToken,
    /// Mean duration.
    DurationS,
    /// Mean time to first token.
    TtftS,
    /// Requests a second, from the first one's start to the last one's.
    RequestsPerS,
}

impl Figure {
    /// All of them, the one that decides first.
    pub const ALL: [Self; 6] = [
        Self::JPerRequest,
        Self::JPerOutputToken,
        Self::JPerToken,
        Self::DurationS,
        Self::TtftS,
        Self::RequestsPerS,
    ];

    /// Its name in JSON and in `--fail-if`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JPerRequest => "j_per_request",
            Self::JPerOutputToken => "j_per_output_token",
            Self::JPerToken => "j_per_token",
            Self::DurationS => "duration_s",
            Self::TtftS => "ttft_s",
            Self::RequestsPerS => "requests_per_s",
        }
    }

    /// What people call it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::JPerRequest => "J/request",
            Self::JPerOutputToken => "J/output token",
            Self::JPerToken => "J/token",
            Self::DurationS => "mean duration, s",
            Self::TtftS => "mean TTFT, s",
            Self::RequestsPerS => "requests/s",
        }
    }
}

/// What is said of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// More in B than chance explains.
    Higher,
    /// Less in B than chance explains.
    Lower,
    /// Chance explains it.
    NotShown,
    /// Nothing can be said.
    NotEnoughData,
    /// One of the runs does not have the figure.
    NotSupported,
}

impl Verdict {
    /// In a word or two.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
            Self::NotShown => "no change shown",
            Self::NotEnoughData => "not enough data",
            Self::NotSupported => "",
        }
    }
}

/// A figure of both runs, and whether it changed. Changes are ratios: 0.05 is 5 % more in B.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FigureChange {
    /// Which.
    pub figure: Figure,
    /// As `report` has it.
    #[serde(flatten)]
    pub values: Pair<f64>,
    /// B ÷ A − 1.
    pub change: Option<f64>,
    /// The interval of confidence 1 − alpha around it: of sampling alone.
    pub low: Option<f64>,
    /// Its other end.
    pub high: Option<f64>,
    /// How likely so large a change is by chance, with all figures that are looked at together.
    pub p: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
}

/// A condition, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConditionResult {
    /// As it was given.
    pub condition: String,
    /// For which service.
    pub service: String,
    /// What happened.
    pub outcome: ConditionOutcome,
}

/// What became of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionOutcome {
    /// It holds.
    Met,
    /// It does not.
    NotMet,
    /// The data do not tell.
    Undecided,
}

impl ConditionOutcome {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::Undecided => "undecided: not enough data",
        }
    }
}
