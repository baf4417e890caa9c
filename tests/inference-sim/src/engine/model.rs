//! What a step takes and draws: the whole of the simulated GPU and language model.
//!
//! Pure. In: the size of a step. Out: its duration and its energy above idle. The default figures
//! are those of an A100 with a model of about 8 billion parameters.

use std::ops::Add;

use crate::random::Random;

/// The part of a prompt that is still to be read when its prefix is cached.
const UNCACHED: f64 = 0.2;
/// Most tokens that one step gives a sequence with speculative decoding.
pub(super) const MOST_SPECULATED: usize = 4;
/// What drafting and checking them makes a decode step take longer.
const SPECULATING: f64 = 1.2;

/// The engine's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineModel {
    /// Prompt tokens a prefill step works off, a second.
    pub prefill_tokens_per_second: f64,
    /// Power in a prefill step, idle included, watts.
    pub prefill_watts: f64,
    /// A decode step's time without any sequence, milliseconds.
    pub decode_ms: f64,
    /// What each sequence adds to a decode step's time, milliseconds.
    pub decode_ms_per_sequence: f64,
    /// Power in a decode step without any sequence, idle included, watts.
    pub decode_watts: f64,
    /// What each sequence adds to a decode step's power, watts.
    pub decode_watts_per_sequence: f64,
    /// Power when nothing runs, watts; the scenario of nvml-sim must say the same.
    pub idle_watts: f64,
    /// Sequences that decode together at most; others wait.
    pub max_num_seqs: usize,
    /// A prompt is read in parts of so many tokens, each beside a decode step; whole and before any
    /// decode step if absent.
    pub prompt_parts: Option<u64>,
    /// The part of prompts whose prefix is cached.
    pub cached: f64,
    /// A decode step gives a sequence one to four tokens.
    pub speculates: bool,
}

/// What one step takes on each of the engine's GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepCost {
    /// Its length, nanoseconds, at least 1.
    pub duration_ns: u64,
    /// Its energy above idle, microjoules.
    pub energy_uj: u64,
}

impl Default for EngineModel {
    fn default() -> Self {
        Self {
            prefill_tokens_per_second: 14_000.0,
            prefill_watts: 480.0,
            decode_ms: 11.5,
            decode_ms_per_sequence: 0.06,
            decode_watts: 285.0,
            decode_watts_per_sequence: 0.6,
            idle_watts: 83.0,
            max_num_seqs: 256,
            prompt_parts: None,
            cached: 0.0,
            speculates: false,
        }
    }
}

impl Add for StepCost {
    type Output = Self;

    /// One step that does what both do, one after the other.
    fn add(self, other: Self) -> Self {
        Self {
            duration_ns: self.duration_ns + other.duration_ns,
            energy_uj: self.energy_uj + other.energy_uj,
        }
    }
}

impl EngineModel {
    /// A step that reads a prompt of `tokens`.
    pub fn prefill(&self, tokens: u64) -> StepCost {
        self.cost(
            tokens as f64 / self.prefill_tokens_per_second,
            self.prefill_watts,
        )
    }

    /// Tokens of sequence `id`'s prompt that need not be read: a function of the two.
    pub fn cached_tokens(&self, id: u64, prompt_tokens: u64) -> u64 {
        let is_cached = self.cached > 0.0 && Random::new(id).uniform() < self.cached;
        let unread = if is_cached { UNCACHED } else { 1.0 };
        prompt_tokens - (prompt_tokens as f64 * unread).ceil() as u64
    }

    /// A step that gives tokens to each of `sequences`.
    pub fn decode(&self, sequences: usize) -> StepCost {
        let sequences = sequences as f64;
        let longer = if self.speculates { SPECULATING } else { 1.0 };
        self.cost(
            longer * (self.decode_ms + self.decode_ms_per_sequence * sequences) * 1e-3,
            self.decode_watts + self.decode_watts_per_sequence * sequences,
        )
    }

    fn cost(&self, seconds: f64, watts: f64) -> StepCost {
        let duration_ns = (seconds * 1e9).round().max(1.0);
        let energy_uj = ((watts - self.idle_watts).max(0.0) * duration_ns * 1e-3).round();
        StepCost {
            duration_ns: duration_ns as u64,
            energy_uj: energy_uj as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_a100_reads_14000_tokens_in_a_second_at_397_watts_above_idle() {
        let cost = EngineModel::default().prefill(14_000);
        assert_eq!(
            cost,
            StepCost {
                duration_ns: 1_000_000_000,
                energy_uj: 397_000_000
            }
        );
    }

    #[test]
    fn as_many_prompts_are_cached_as_told_and_a_fifth_of_each_is_still_to_be_read() {
        let model = EngineModel {
            cached: 0.3,
            ..EngineModel::default()
        };
        let cached: Vec<u64> = (1..=1_000).map(|id| model.cached_tokens(id, 999)).collect();
        assert!(cached.iter().all(|tokens| [0, 799].contains(tokens)));
        let count = cached.iter().filter(|tokens| **tokens > 0).count();
        assert!((250..350).contains(&count), "{count}");
        assert_eq!(model.cached_tokens(7, 1), 0, "something is always read");
        assert_eq!(EngineModel::default().cached_tokens(7, 999), 0);
    }

    #[test]
    fn a_decode_step_costs_little_more_for_ten_than_for_one() {
        let model = EngineModel::default();
        // 11.56 ms at 202.6 W, and 12.1 ms at 208 W.
        assert_eq!(
            model.decode(1),
            StepCost {
                duration_ns: 11_560_000,
                energy_uj: 2_342_056
            }
        );
        assert_eq!(
            model.decode(10),
            StepCost {
                duration_ns: 12_100_000,
                energy_uj: 2_516_800
            }
        );
    }
}
