//! Tokens as an engine counts them itself, and what it says of itself beside.

use serde::{Deserialize, Serialize};

use super::{BookedRequest, ServiceId, Usage};
use crate::clock::Timestamp;

/// How tokens were counted, the most trusted first. Each token is counted in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// By the engine's own counters.
    ServerMetrics,
    /// By the server, at each response's end.
    Usage,
    /// By the chunks of streams, times the tokens a chunk.
    Chunks,
}

impl TokenSource {
    /// All of them, the most trusted first.
    pub const ALL: [Self; 3] = [Self::ServerMetrics, Self::Usage, Self::Chunks];

    /// `server_metrics`, `usage` or `chunks`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServerMetrics => "server_metrics",
            Self::Usage => "usage",
            Self::Chunks => "chunks",
        }
    }
}

/// One request's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCount {
    /// How they were counted: never by the engine's counters, which do not tell requests apart.
    pub source: TokenSource,
    /// Prompt tokens; `None` if not known.
    pub input: Option<u64>,
    /// Generated tokens; `None` if not known.
    pub output: Option<u64>,
    /// False where a chunk is taken for a token because nothing better has been learned.
    pub calibrated: bool,
}

impl From<Usage> for TokenCount {
    fn from(Usage { input, output }: Usage) -> Self {
        Self {
            source: TokenSource::Usage,
            input,
            output,
            calibrated: true,
        }
    }
}

impl BookedRequest {
    /// Its tokens: as its server said, else as far as the socket shows them, a streamed
    /// response's chunks, which are at most its tokens. `None` where neither is known.
    pub fn token_count(&self) -> Option<TokenCount> {
        let chunks = || TokenCount {
            source: TokenSource::Chunks,
            input: None,
            output: Some(self.request.chunks),
            calibrated: false,
        };
        self.tokens.or_else(|| self.request.streamed.then(chunks))
    }
}

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
    /// When it was asked.
    pub asked: Timestamp,
    /// When it had answered.
    pub answered: Timestamp,
    /// In the batch.
    pub running: Option<u64>,
    /// In the queue.
    pub waiting: Option<u64>,
}

impl EngineLoad {
    /// Nothing is known any more.
    pub const fn unknown(service: ServiceId, at: Timestamp) -> Self {
        Self {
            service,
            asked: at,
            answered: at,
            running: None,
            waiting: None,
        }
    }
}
