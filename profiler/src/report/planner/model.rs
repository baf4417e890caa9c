//! The planner's part of the report: the key `planner` of JSON schema 1. Keys may be added, never
//! renamed; what is not known is null.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ledger::{Class, Component};
use crate::report::model::{AccountJoules, JoulesPerRequest};

/// What a recording says to whoever plans capacity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are documented in docs/report.md")]
pub struct Plan {
    pub inputs: Vec<Input>,
    pub totals: Totals,
    pub requests: RequestFigures,
    pub shares: Shares,
    pub carbon: Carbon,
    pub trend: Trend,
    pub services: Vec<ServicePlan>,
    /// Of services of which several versions served; in order, service by service.
    #[serde(default)]
    pub versions: Vec<VersionPlan>,
    pub power: Power,
    pub load_curve: Vec<LoadPoint>,
    /// Seconds that threads waited by reason, of all services; empty where that was not recorded.
    pub host_waits_s: BTreeMap<String, f64>,
    /// Seconds for which a GPU's clocks were held down, by device and reason; empty where that was not recorded.
    #[serde(default)]
    pub throttled_s: BTreeMap<String, BTreeMap<String, f64>>,
    pub coverage: Vec<Coverage>,
    /// The biggest first, at most three.
    pub savings: Vec<Saving>,
    /// What the file says of itself.
    pub environment: BTreeMap<String, String>,
}

/// A figure that nobody measured: somebody gave it, it is a default, or it is not known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    pub name: String,
    pub value: Option<f64>,
    pub unit: String,
    pub source: String,
    /// A day or a year.
    pub date: Option<String>,
}

/// Energy, and what follows from it where a price and a factor are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Amount {
    pub energy_kwh: Option<f64>,
    pub cost: Option<f64>,
    /// Operational, location-based.
    pub carbon_g: Option<f64>,
}

/// An amount of everything that was measured, and of what requests caused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Both {
    pub all: Amount,
    pub active: Amount,
}

/// The period as a whole; every amount is times PUE, `measured_j` and its parts are not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Σ over the meters: the ledger's energy.
    pub measured_j: Option<f64>,
    pub gpu_j: Option<f64>,
    pub cpu_j: Option<f64>,
    pub dram_j: Option<f64>,
    /// What the requests caused.
    pub active_j: Option<f64>,
    /// What the sensors' gain may be off by, of `measured_j`.
    pub gain_error_ratio: Option<f64>,
    pub currency: Option<String>,
    pub total: Amount,
    pub per_1000_requests: Both,
    pub per_million_output_tokens: Both,
    pub requests_per_kwh: Option<f64>,
}

/// Requests of all services that cost energy; health checks are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestFigures {
    pub count: u64,
    /// Null unless the tokens of all but a hundredth of them are known.
    pub output_tokens: Option<u64>,
    pub j_per_request: JoulesPerRequest,
    pub class: Option<Class>,
    pub error_ratio: Option<f64>,
    pub j_per_output_token: Option<f64>,
    pub j_per_token: Option<f64>,
    /// Of the requests of which they are known.
    pub mean_input_tokens: Option<f64>,
    pub mean_output_tokens: Option<f64>,
    /// How many were in flight, on average over the time in which any was.
    pub mean_in_flight: Option<f64>,
}

/// Parts of the measured energy, 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Of the GPUs whose idle floor is known.
    pub gpu_idle: Option<f64>,
    pub gpu_parked: Option<f64>,
    pub gpu: Option<f64>,
    /// CPU packages and memory.
    pub host: Option<f64>,
    pub requests: Option<f64>,
}

/// After SCI (ISO/IEC 21031): (E × I + M) per R, each for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Carbon {
    pub energy_kwh: Option<f64>,
    /// Location-based.
    pub intensity_g_per_kwh: Option<f64>,
    /// E × I.
    pub operational_g: Option<f64>,
    /// Embodied, the part of the lifetime that the period is.
    pub embodied_g: Option<f64>,
    pub requests: u64,
    pub operational_g_per_request: Option<f64>,
    /// Null unless E, I and M are known.
    pub sci_g_per_request: Option<f64>,
    pub sci_g_per_million_output_tokens: Option<f64>,
    /// A contract's factor, beside and never in the SCI.
    pub market_g_per_kwh: Option<f64>,
    pub market_g: Option<f64>,
}

/// The period cut in equal parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    pub parts: Vec<Part>,
    pub change: Option<Change>,
}

/// One part of the period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Since the period's start.
    pub from_s: f64,
    pub to_s: f64,
    /// Of the meters.
    pub energy_j: f64,
    pub accounts_j: AccountJoules,
    /// That ended in it.
    pub requests: u64,
    /// `energy_j` ÷ `requests`.
    pub j_per_request: Option<f64>,
    /// The part of the meters' time that was booked.
    pub booked_ratio: f64,
}

/// From the first half of the period to the second: 0.1 is 10 % more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub energy: f64,
    pub requests: f64,
    pub j_per_request: f64,
    /// A request costs less, and the total is higher.
    pub rebound: bool,
}

/// What the report of a service does not have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServicePlan {
    pub service: String,
    /// As its metrics say, with versions; several where they changed.
    pub engines: Vec<String>,
    /// What its requests caused, times PUE.
    pub active: Amount,
    /// Of what all services' requests caused.
    pub active_ratio: Option<f64>,
    pub mean_input_tokens: Option<f64>,
    pub mean_output_tokens: Option<f64>,
    /// Over the whole period.
    pub mean_in_flight: Option<f64>,
    pub aborted_j: Option<f64>,
    /// Of its GPUs' energy, where phases were seen.
    pub prefill_j: Option<f64>,
    pub decode_j: Option<f64>,
    pub wait_j: Option<f64>,
}

/// The requests that one version of a service served; changes are against the version before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionPlan {
    pub service: String,
    pub model: Option<String>,
    /// With its version.
    pub engine: String,
    /// When its first request began, since the period's start.
    pub from_s: f64,
    pub requests: u64,
    pub active_j: Option<f64>,
    /// Of `active_j`, and so of `j_per_request`.
    pub error_ratio: Option<f64>,
    pub j_per_request: Option<f64>,
    /// Null unless the output tokens of all but a hundredth of the requests are known.
    pub j_per_output_token: Option<f64>,
    /// Of the requests of which they are known.
    pub mean_input_tokens: Option<f64>,
    pub mean_output_tokens: Option<f64>,
    /// 0.1 is 10 % more.
    pub j_per_request_change: Option<f64>,
    pub j_per_output_token_change: Option<f64>,
}

/// Power against limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Power {
    pub gpus: Vec<PowerOf>,
    /// All GPUs together.
    pub all: Option<PowerOf>,
    pub busiest_minute: Option<BusiestMinute>,
}

/// Power of one GPU, or of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PowerOf {
    pub device: String,
    pub limit_w: Option<f64>,
    pub mean_w: Option<f64>,
    /// 99th percentile of means over 1 s; null where intervals are longer.
    pub p99_1s_w: Option<f64>,
    pub p99_1min_w: Option<f64>,
    /// Limit less `p99_1s_w`.
    pub stranded_w: Option<f64>,
}

/// The minute in which most requests ended while the power was below the limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BusiestMinute {
    pub from_s: f64,
    pub requests_per_s: f64,
    pub gpu_w: f64,
    pub mean_requests_per_s: f64,
    /// How many times the mean load was carried, less 1.
    pub more_requests_ratio: f64,
}

/// The time in which so many requests were in flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadPoint {
    /// In flight: more than `above`, at most `up_to`.
    pub above: f64,
    pub up_to: f64,
    pub mean_in_flight: f64,
    pub time_s: f64,
    /// All GPUs.
    pub gpu_w: f64,
    pub requests_per_s: f64,
    pub output_tokens_per_s: Option<f64>,
    /// All GPUs' energy, idle included.
    pub j_per_output_token: Option<f64>,
}

/// How much of the period a meter saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    pub component: Component,
    pub device: String,
    pub booked_s: f64,
    pub booked_ratio: f64,
    pub intervals: u64,
    pub holes: u64,
    pub holes_s: f64,
    pub gain_error_ratio: f64,
}

/// Energy that need not be drawn, from what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saving {
    pub name: String,
    pub title: String,
    /// Times PUE.
    pub amount: Amount,
    /// Of everything that was measured.
    pub ratio: f64,
    /// What it is and what to do, for people who write no code.
    pub advice: String,
    /// How it was computed.
    pub method: String,
}
