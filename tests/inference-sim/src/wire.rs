//! What front and engine say to each other over their Unix socket: one JSON object a line.

use serde::{Deserialize, Serialize};

/// A request on its way to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Its number between front and engine.
    pub id: u64,
    /// The front's name for it.
    pub request_id: String,
    /// The client's name for it.
    pub x_request_id: Option<String>,
    /// Path of the route.
    pub route: String,
    /// Whether the response streams.
    pub stream: bool,
    /// When the front had read the request's head, boottime nanoseconds.
    pub start_ns: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens to produce, at least 1.
    pub output_tokens: u64,
}

/// What the front tells the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToEngine {
    /// Serve this.
    Add(Submission),
    /// The client has left.
    Abort {
        /// Which.
        id: u64,
    },
}

/// What the engine tells the front: a step has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepEnded {
    /// When it ended, boottime nanoseconds.
    pub at_ns: u64,
    /// Whether it read a prompt, or a part of one.
    pub prefill: bool,
    /// Who got tokens, and how many.
    pub tokens: Vec<(u64, u64)>,
    /// Whose token was the last.
    pub finished: Vec<u64>,
}
