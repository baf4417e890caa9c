//! Tokens as an engine counts them itself, and what it says of itself beside.

use serde::Deserialize;

use super::ServiceId;
use crate::clock::Timestamp;

/// The name of counts from the engine's own counters, as a label and in reports.
pub const SERVER_METRICS: &str = "server_metrics";

/// When an engine's token counters move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counts {
    /// With each step of the engine.
    Step,
    /// When a request has finished: they lag its energy by up to its duration.
    Finish,
}

/// Tokens that an engine counted between two reads. `None`: it has no such counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenDelta {
    /// Whose.
    pub service: ServiceId,
    /// The read before; equal to `to` for the first read of a server, which counts nothing.
    pub from: Timestamp,
    /// The read that shows them.
    pub to: Timestamp,
    /// Prompt tokens.
    pub input: Option<u64>,
    /// Generated tokens.
    pub output: Option<u64>,
}

/// What serves, as its metrics say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Whose.
    pub service: ServiceId,
    /// Its name, of the fixed list.
    pub engine: &'static str,
    /// When its token counters move.
    pub counts: Counts,
    /// Its version, if its metrics say so.
    pub version: Option<String>,
    /// The model's name, unless there are several.
    pub model: Option<String>,
}

/// Requests in an engine, at its latest read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLoad {
    /// Whose.
    pub service: ServiceId,
    /// In the batch.
    pub running: Option<u64>,
    /// In the queue.
    pub waiting: Option<u64>,
}

impl EngineLoad {
    /// Nothing is known any more.
    pub const fn unknown(service: ServiceId) -> Self {
        Self {
            service,
            running: None,
            waiting: None,
        }
    }
}
