//! One service's requests, summed up in blocks of equal time: bounded memory, whatever the recording's
//! length.

use super::significance::{BLOCKS, Series};
use crate::clock::Timestamp;
use crate::ledger::{BookedRequest, Input, Outcome};

/// A service needs as many requests in each run for a verdict.
const LEAST_REQUESTS: u64 = 50;

/// How many blocks' time a request may take in the mean: of longer ones blocks hold only parts.
const LONGEST_IN_BLOCKS: f64 = 2.0;

/// Of two runs of one load, so much of requests and prompts must be in the same blocks.
const SAME_LOAD: f64 = 0.95;
/// Windows that differ by more are of different loads.
const SAME_LENGTH: f64 = 0.05;

/// From a service's first request's start to its last one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

impl Span {
    fn length(self) -> f64 {
        self.last.since(self.first) as f64
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }

    /// The length of this span's blocks beside another run's, nanoseconds: the same one if the runs are
    /// as long as each other, so that blocks of one load hold the same requests.
    pub(super) fn block_beside(self, other: Option<Self>) -> u64 {
        let own = self.length();
        let whole = match other.map(Self::length) {
            Some(other) if (own - other).abs() <= SAME_LENGTH * own.max(other) => own.max(other),
            _ => own,
        };
        (whole / BLOCKS as f64) as u64 + 1
    }
}

/// What began in one block.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    requests: u64,
    /// Of prompts: tokens, or bytes.
    prompt: u64,
    charged: u64,
    microjoules: u64,
    output_tokens: u64,
    output_microjoules: u64,
    tokens: u64,
    token_microjoules: u64,
    ended: u64,
    duration: u64,
    streamed: u64,
    first_token: u64,
}

/// All of a service's blocks.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    from: Timestamp,
    length: u64,
    blocks: [Block; BLOCKS],
    in_bytes: bool,
}

impl Blocks {
    /// Nothing yet; blocks of `length` nanoseconds.
    pub(super) fn new(from: Timestamp, length: u64) -> Self {
        Self {
            from,
            length: length.max(1),
            blocks: [Block::default(); BLOCKS],
            in_bytes: false,
        }
    }

    /// Adds a request that costs energy to the block in which it began.
    pub(super) fn add(&mut self, booked: &BookedRequest) {
        let request = &booked.request;
        let place = request.start.since(self.from) / self.length;
        let place = usize::try_from(place).unwrap_or(BLOCKS).min(BLOCKS - 1);
        let Some(block) = self.blocks.get_mut(place) else {
            return;
        };
        block.requests += 1;
        block.prompt += match request.input {
            Input::Tokens(tokens) => tokens,
            Input::Bytes(bytes) => {
                self.in_bytes = true;
                bytes
            }
        };
        if let Some(active) = booked.active() {
            block.charged += 1;
            block.microjoules += active.0;
            let tokens = booked.token_count();
            let output = tokens.and_then(|tokens| tokens.output);
            if let Some(output) = output {
                block.output_tokens += output;
                block.output_microjoules += active.0;
            }
            if let Some(input) = tokens.and_then(|tokens| tokens.input) {
                block.tokens += input + output.unwrap_or(0);
                block.token_microjoules += active.0;
            }
        }
        if let Some(end) = request.end
            && end.outcome != Outcome::Incomplete
        {
            block.ended += 1;
            block.duration += end.at.since(request.start);
        }
        if let Some(first) = request.first_data.filter(|_| request.streamed) {
            block.streamed += 1;
            block.first_token += first.since(request.start);
        }
    }

    /// Length of a block, seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.length as f64 * 1e-9
    }

    fn series(&self, of: impl Fn(&Block) -> (u64, u64)) -> Series {
        self.blocks.map(|block| {
            let (over, under) = of(&block);
            (over as f64, under as f64)
        })
    }

    pub(super) fn joules_per_request(&self) -> Series {
        self.series(|block| (block.microjoules, block.charged))
    }

    pub(super) fn joules_per_output_token(&self) -> Series {
        self.series(|block| (block.output_microjoules, block.output_tokens))
    }

    pub(super) fn joules_per_token(&self) -> Series {
        self.series(|block| (block.token_microjoules, block.tokens))
    }

    pub(super) fn duration(&self) -> Series {
        self.series(|block| (block.duration, block.ended))
    }

    pub(super) fn first_token(&self) -> Series {
        self.series(|block| (block.first_token, block.streamed))
    }

    /// Requests a nanosecond.
    pub(super) fn rate(&self) -> Series {
        self.series(|block| (block.requests, self.length))
    }

    pub(super) fn requests(&self) -> u64 {
        self.blocks.iter().map(|block| block.requests).sum()
    }

    /// Requests with energy.
    pub(super) fn charged(&self) -> u64 {
        self.blocks.iter().map(|block| block.charged).sum()
    }

    /// Why there is too little for any verdict, if so.
    pub(super) fn too_little(&self) -> Option<String> {
        let requests = self.requests();
        if requests < LEAST_REQUESTS {
            return Some(format!(
                "{requests} requests; {LEAST_REQUESTS} are needed in each run"
            ));
        }
        let mean = mean(&self.duration())? * 1e-9;
        (mean > LONGEST_IN_BLOCKS * self.seconds()).then(|| {
            let needed = mean / LONGEST_IN_BLOCKS * BLOCKS as f64;
            format!("requests take {mean:.1} s in the mean; record {needed:.0} s of them or more")
        })
    }

    /// True if another run's blocks hold the same requests: nearly as many in each, with prompts as long.
    pub(super) fn is_same_load(&self, other: &Self) -> bool {
        let agrees = |of: fn(&Block) -> u64| {
            let (mut apart, mut sum) = (0, 0);
            for (own, other) in self.blocks.iter().zip(&other.blocks) {
                apart += of(own).abs_diff(of(other));
                sum += of(own).max(of(other));
            }
            sum > 0 && apart as f64 <= (1.0 - SAME_LOAD) * sum as f64
        };
        self.length == other.length
            && self.in_bytes == other.in_bytes
            && agrees(|block| block.requests)
            && agrees(|block| block.prompt)
    }
}

/// Σ numerator ÷ Σ denominator.
pub(super) fn mean(series: &Series) -> Option<f64> {
    let (over, under) = series
        .iter()
        .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    (under > 0.0).then(|| over / under)
}
