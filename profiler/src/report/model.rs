//! The typed report: the keys of JSON schema 1. Keys may be added, never renamed; an unknown
//! value is `None` (null), never 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::activity::{CudaReport, PmcReport};
use super::fleet::model::Fleet;
use super::full::IdlePolicy;
use super::host::HostReport;
use super::planner::model::Plan;
use crate::ledger::{Class, Component, Source};
use crate::units::Microjoules;

/// What one run of the ledger shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this schema: 1.
    pub schema: u32,
    /// True if a simulated GPU was read.
    pub simulated: bool,
    /// Length of the window that was measured.
    pub duration_s: Option<f64>,
    /// Who pays for idle energy in `energy_full_j`.
    #[serde(default)]
    pub idle_policy: IdlePolicy,
    /// By what `energy_full_j` is multiplied: the site's power usage effectiveness.
    #[serde(default = "one")]
    pub pue: f64,
    /// Services by name.
    pub services: Vec<ServiceReport>,
    /// Meters by component and device.
    pub meters: Vec<MeterReport>,
    /// Whether the ledger adds up.
    pub ledger: LedgerCheck,
    /// What was lost on the way.
    pub losses: Losses,
    /// What whoever plans capacity asks; of a recording with intervals alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planner: Option<Plan>,
    /// Of a fleet instead of a recording.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Fleet>,
}

const fn one() -> f64 {
    1.0
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct ServiceReport {
    pub service: String,
    pub model: Option<String>,
    pub requests: RequestCounts,
    /// SSE events or NDJSON lines, without `[DONE]`; 0 where nothing streamed.
    pub chunks: u64,
    pub tokens: Tokens,
    /// Time to first token, streamed responses only.
    pub ttft_s: Seconds,
    /// Of requests whose end was seen; health paths are left out.
    pub duration_s: Seconds,
    /// Active energy.
    pub energy_j: EnergyJoules,
    /// Active energy, overhead and context, and idle energy by `idle_policy`, times `pue`.
    pub energy_full_j: Option<f64>,
    pub j_per_request: JoulesPerRequest,
    /// Over the requests whose output tokens are counted.
    pub j_per_output_token: Option<f64>,
    /// Over input and output, of the requests whose input is known.
    pub j_per_token: Option<f64>,
    pub class: Option<Class>,
    /// Half-width of a 95 % interval ÷ value of `energy_j`.
    pub error_ratio: Option<f64>,
    pub cpu_s: Option<f64>,
    /// Time that threads were runnable and did not run.
    pub run_queue_s: Option<f64>,
    /// Of one such wait, from counts by powers of two.
    #[serde(default = "Seconds::unknown")]
    pub run_queue_wait_s: Seconds,
    /// Time threads were off CPU by reason, waits that have ended; `preempted` is a part of
    /// `run_queue_s`.
    #[serde(default)]
    pub off_cpu_s: Option<BTreeMap<String, f64>>,
    #[serde(default)]
    pub switches: Option<Switches>,
    /// Times threads ran on another CPU than before.
    #[serde(default)]
    pub migrations: Option<u64>,
    /// Time its GPUs starved by reason; null where it is not known what feeds them.
    #[serde(default)]
    pub gpu_starved_s: Option<BTreeMap<String, f64>>,
    /// What the host did for it; no key where that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
    /// Null where it was not asked for.
    #[serde(default)]
    pub cuda: Option<CudaReport>,
    /// Null where it was not asked for.
    #[serde(default)]
    pub pmc: Option<PmcReport>,
    /// Where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<Vec<ThreadReport>>,
}

/// Switches away from threads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switches {
    /// That blocked.
    pub voluntary: u64,
    /// That stayed runnable.
    pub involuntary: u64,
}

/// One thread, as it was seen last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct ThreadReport {
    pub pid: u32,
    pub tid: u32,
    pub name: String,
    pub cpu_s: f64,
    pub run_queue_s: f64,
    pub off_cpu_s: BTreeMap<String, f64>,
    pub switches: Switches,
    pub migrations: u64,
}

/// Requests that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct RequestCounts {
    pub total: u64,
    pub aborted: u64,
    pub incomplete: u64,
    /// Health and metrics paths: in `total`, and without energy.
    pub health: u64,
    /// By the status code's class, for requests with a status line.
    pub by_code: BTreeMap<String, u64>,
}

/// Tokens and how they were counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct Tokens {
    /// Null unless it is known of every request that is counted.
    pub input: Option<u64>,
    pub output: Option<u64>,
    /// `server_metrics`, `usage` or `chunks`: the least trusted that had a part in it.
    pub source: Option<String>,
    /// False where a chunk was taken for a token; null without chunks.
    #[serde(default)]
    pub calibrated: Option<bool>,
    /// Each source's part; no token is in two.
    #[serde(default)]
    pub by_source: BTreeMap<String, SourceTokens>,
}

/// Requests whose tokens were counted in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct SourceTokens {
    pub requests: u64,
    pub input: Option<u64>,
    pub output: Option<u64>,
}

/// Quantiles of a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct Seconds {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

impl Seconds {
    const fn unknown() -> Self {
        Self {
            p50: None,
            p99: None,
        }
    }
}

/// Energy by component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct EnergyJoules {
    pub gpu: Option<f64>,
    pub cpu: Option<f64>,
    pub dram: Option<f64>,
    /// Sum of the known components; null only when none is known.
    pub total: Option<f64>,
}

/// Active energy of one request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct JoulesPerRequest {
    pub mean: Option<f64>,
    pub p50: Option<f64>,
    pub p95: Option<f64>,
}

/// One meter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct MeterReport {
    pub component: Component,
    pub device: String,
    pub source: Source,
    pub energy_j: Option<f64>,
    /// All but the account idle; null while nobody knows what is idle.
    #[serde(default)]
    pub above_idle_j: Option<f64>,
    /// The idle floor at the end; null while it is not known, or was not kept.
    #[serde(default)]
    pub idle_w: Option<f64>,
    /// Where it comes from: `user`, `learned`, `table` or `none`; null where it was not kept.
    #[serde(default)]
    pub idle_source: Option<String>,
    pub accounts_j: AccountJoules,
}

/// Where a meter's energy went; null before the first interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the accounts' names")]
pub struct AccountJoules {
    pub idle: Option<f64>,
    pub context: Option<f64>,
    pub requests: Option<f64>,
    pub overhead: Option<f64>,
    pub other: Option<f64>,
    pub agent: Option<f64>,
    pub unattributed: Option<f64>,
    pub gap: Option<f64>,
}

impl AccountJoules {
    /// Of the accounts in the ledger's order.
    pub(super) fn of(accounts: [Microjoules; 8]) -> Self {
        let [
            idle,
            context,
            requests,
            overhead,
            other,
            agent,
            unattributed,
            gap,
        ] = accounts.map(|energy| Some(energy.joules().0));
        Self {
            idle,
            context,
            requests,
            overhead,
            other,
            agent,
            unattributed,
            gap,
        }
    }

    /// Names and values, in the ledger's order.
    pub fn rows(&self) -> [(&'static str, Option<f64>); 8] {
        [
            ("idle", self.idle),
            ("context", self.context),
            ("requests", self.requests),
            ("overhead", self.overhead),
            ("other", self.other),
            ("agent", self.agent),
            ("unattributed", self.unattributed),
            ("gap", self.gap),
        ]
    }
}

/// Whether the ledger adds up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LedgerCheck {
    /// Σ over meters of |energy − Σ accounts|: 0. Null of a fleet, whose rates are extrapolated.
    pub residual_microjoules: Option<u64>,
}

/// What was lost on the way; null where nobody counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct Losses {
    pub events: Option<u64>,
    pub requests: Option<u64>,
}

impl Report {
    /// One compact line.
    ///
    /// # Errors
    /// None in practice: every key is a string and every figure finite.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}
