//! The fleet's part of the report: the key `fleet` of JSON schema 1. Keys may be added, never renamed;
//! what is not known is null.

use serde::{Deserialize, Serialize};

use crate::report::planner::model::Amount;

/// What a fleet's recorded series say beside its plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are documented in docs/report.md")]
pub struct Fleet {
    pub from: String,
    pub to: String,
    /// Nodes that recorded anything in the period.
    pub nodes: u64,
    /// Of the period × nodes.
    pub coverage_ratio: f64,
    /// Those that drew most first, as in all of these lists.
    pub clusters: Vec<Group>,
    pub models: Vec<Group>,
    pub gpu_types: Vec<Group>,
    pub by_node: Vec<Group>,
    /// Series that are recorded nowhere in the period.
    pub missing: Vec<String>,
    /// What the server said beside its answers.
    pub warnings: Vec<String>,
}

/// A part of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are documented in docs/report.md")]
pub struct Group {
    pub name: String,
    /// Of a cluster.
    pub nodes: Option<u64>,
    /// On average.
    pub gpus: Option<f64>,
    /// At the meters; of a model what its services used.
    pub energy_j: Option<f64>,
    /// Times PUE.
    pub total: Amount,
    /// Of the whole fleet's.
    pub energy_ratio: Option<f64>,
    /// What its requests caused.
    pub active_j: Option<f64>,
    pub requests: Option<u64>,
    /// `active_j` ÷ `requests`.
    pub j_per_request: Option<f64>,
    pub output_tokens: Option<u64>,
    pub j_per_output_token: Option<f64>,
    pub j_per_token: Option<f64>,
    pub gpu_idle_ratio: Option<f64>,
    pub gpu_parked_ratio: Option<f64>,
    /// Of the period × nodes.
    pub coverage_ratio: Option<f64>,
}
