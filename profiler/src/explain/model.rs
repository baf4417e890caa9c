//! The typed explanation: the keys of JSON schema 1. Keys may be added, never renamed; an unknown
//! value is `None` (null), never 0.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ledger::{Class, TokenSource};

/// Requests, taken apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Version of this schema: 1.
    pub schema: u32,
    /// True if a simulated GPU was read.
    pub simulated: bool,
    /// In the order in which they were asked for.
    pub requests: Vec<Explained>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// As `script` prints it.
    pub id: String,
    /// Its W3C trace id, where those are recorded.
    pub trace: Option<String>,
    /// Who served it.
    pub service: String,
    /// Which route.
    pub route: &'static str,
    /// Its status code's class.
    pub code: Option<&'static str>,
    /// How it ended.
    pub outcome: Option<&'static str>,
    /// When things happened.
    pub moments: Moments,
    /// Its tokens.
    pub tokens: TokensOf,
    /// Its parts; they sum to `total`.
    pub energy_uj: EnergyParts,
    /// Half-widths of 95 % intervals ÷ value; null where nobody knows.
    pub bound: Option<Bound>,
    /// How its figure was made.
    pub class: Class,
    /// Why it is no better.
    pub class_because: Vec<String>,
    /// What else its service had in flight; null where it took no time.
    pub company: Option<Company>,
    /// Where it stands among its service's requests.
    pub position: Position,
    /// Idle energy of what it ran on, which is in no request's.
    pub base: Option<Base>,
    /// Of all threads of its service while it was in flight, not its alone; null where nothing of
    /// that was recorded.
    pub service_threads: Option<ServiceWaits>,
}

/// Seconds of the recording's clock, and lengths.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct Moments {
    pub start_s: f64,
    pub duration_s: Option<f64>,
    /// Of a streamed response.
    pub ttft_s: Option<f64>,
}

/// Tokens and how they were counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct TokensOf {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub source: Option<TokenSource>,
    /// False where a chunk was taken for a token.
    pub calibrated: Option<bool>,
    pub chunks: Option<u64>,
}

/// Active energy, microjoules. Phases are null in recordings of earlier versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct EnergyParts {
    pub gpu_prefill: Option<u64>,
    pub gpu_decode: Option<u64>,
    /// In flight, and neither seen.
    pub gpu_wait: Option<u64>,
    /// Of a response that does not stream.
    pub gpu_not_streamed: Option<u64>,
    /// The four together.
    pub gpu: Option<u64>,
    pub cpu: Option<u64>,
    pub dram: Option<u64>,
    /// gpu, cpu and dram.
    pub total: Option<u64>,
}

/// How far its energy may be off.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct Bound {
    /// By what may be another request's of its service instead.
    pub own: f64,
    /// By what hits all of its service's requests alike.
    pub common: f64,
    pub both: f64,
}

/// Requests of its service that were in flight with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Company {
    /// How many it met.
    pub met: u64,
    /// In flight at one time, itself included: the fewest.
    pub least: u64,
    /// In the mean of its time.
    pub mean: f64,
    /// The most.
    pub most: u64,
}

/// Where it stands: the share of its service's other requests that have less.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct Position {
    /// The service's requests, itself included.
    pub requests: u64,
    pub energy: Option<f64>,
    pub duration: Option<f64>,
    pub tokens_out: Option<f64>,
}

/// Idle energy of the GPUs that its service held in its time, joules.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct Base {
    pub gpus: u64,
    pub idle_j: f64,
    /// What open contexts added.
    pub context_j: f64,
    /// Both, in equal parts for what was in flight.
    pub equal_part_j: Option<f64>,
}

/// What threads did, seconds summed over them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ServiceWaits {
    /// What it is from.
    pub source: WaitsSource,
    /// On a CPU.
    pub on_cpu_s: Option<f64>,
    /// Runnable, and not on one.
    pub run_queue_s: Option<f64>,
    /// Blocked, by reason.
    pub off_cpu_s: Option<BTreeMap<String, f64>>,
    /// Shorter waits are not in it.
    pub least_s: Option<f64>,
}

/// What threads' times are from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsSource {
    /// The rows of each second, in proportion to what of them lies in the request's time.
    #[default]
    Seconds,
    /// Samples of stacks and single waits: recordings of earlier versions have no rows of seconds.
    Stacks,
}
