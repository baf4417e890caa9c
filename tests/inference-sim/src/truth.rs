//! What each request truly cost, written as JSON lines.
//!
//! In: what the engine does. Out: one [`TruthRecord`] a request that reached the engine, at its
//! end, or at the engine's end for those still in flight. Energy is above idle, in whole
//! microjoules for each GPU; the records of an engine sum to all the energy above idle it has
//! ever published.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::wire::Submission;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All its tokens were produced.
    Done,
    /// The client left before.
    Aborted,
    /// The engine was shut down before.
    Shutdown,
}

/// One line of the truth file. Times are `CLOCK_BOOTTIME` nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruthRecord {
    /// The front's name for it, also in the response's body.
    pub id: String,
    /// The client's name for it, from its `x-request-id` header.
    pub x_request_id: Option<String>,
    /// Path of the route.
    pub route: String,
    /// Whether the response streams.
    pub stream: bool,
    /// When the front had read the request's head.
    pub start_ns: u64,
    /// When the step ended that gave it its first token.
    pub first_token_ns: Option<u64>,
    /// When the step ended that gave it its last token, or when it was aborted.
    pub end_ns: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Those of them that were cached and not read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    /// Tokens produced while it lasted.
    pub output_tokens: u64,
    /// Index of each GPU the engine uses.
    pub devices: Vec<usize>,
    /// Energy above idle on each of `devices`, microjoules.
    pub energy_uj: Vec<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The accounts of the requests in flight.
#[derive(Debug)]
pub struct TruthBook {
    devices: Vec<usize>,
    open: HashMap<u64, Account>,
    charged_uj: u64,
}

#[derive(Debug)]
struct Account {
    submission: Submission,
    cached_tokens: u64,
    first_token_ns: Option<u64>,
    output_tokens: u64,
    energy_uj: u64,
}

impl TruthBook {
    /// A book for an engine on `devices`, each of which runs every step.
    pub fn new(devices: Vec<usize>) -> Self {
        Self {
            devices,
            open: HashMap::new(),
            charged_uj: 0,
        }
    }

    /// Opens an account for a request of whose prompt so much is cached.
    pub fn open(&mut self, submission: Submission, cached_tokens: u64) {
        let account = Account {
            cached_tokens,
            first_token_ns: None,
            output_tokens: 0,
            energy_uj: 0,
            submission,
        };
        self.open.insert(account.submission.id, account);
    }

    /// Charges `energy_uj` on each GPU.
    pub fn charge(&mut self, id: u64, energy_uj: u64) {
        if let Some(account) = self.open.get_mut(&id) {
            account.energy_uj += energy_uj;
            self.charged_uj += energy_uj;
        }
    }

    /// Notes tokens that were produced at `at_ns`.
    pub fn tokens(&mut self, id: u64, at_ns: u64, count: u64) {
        if let Some(account) = self.open.get_mut(&id) {
            account.first_token_ns.get_or_insert(at_ns);
            account.output_tokens += count;
        }
    }

    /// Closes an account; `None` if it is closed already.
    pub fn close(&mut self, id: u64, at_ns: u64, outcome: Outcome) -> Option<TruthRecord> {
        let account = self.open.remove(&id)?;
        let Submission {
            request_id,
            x_request_id,
            route,
            stream,
            start_ns,
            prompt_tokens,
            ..
        } = account.submission;
        Some(TruthRecord {
            id: request_id,
            x_request_id,
            route,
            stream,
            start_ns,
            first_token_ns: account.first_token_ns,
            end_ns: at_ns,
            prompt_tokens,
            cached_tokens: account.cached_tokens,
            output_tokens: account.output_tokens,
            energy_uj: vec![account.energy_uj; self.devices.len()],
            devices: self.devices.clone(),
            outcome,
        })
    }

    /// Closes every account that is still open.
    pub fn close_all(&mut self, at_ns: u64) -> Vec<TruthRecord> {
        let mut ids: Vec<u64> = self.open.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter()
            .filter_map(|id| self.close(id, at_ns, Outcome::Shutdown))
            .collect()
    }

    /// Everything ever charged on one GPU, microjoules.
    pub fn charged_uj(&self) -> u64 {
        self.charged_uj
    }
}
