//! Continuous batching: which step comes next, who gets a token in it, and whose energy it is.
//!
//! Pure. In: sequences that come and go. Out: [`Step`]s. A prompt is read in a step of its own,
//! before anything is decoded, as long as there is room for one more sequence; otherwise every
//! running sequence gets one token. An engine that reads prompts in parts does both in one step.
//!
//! Reading a prompt costs its sequence; decoding is equal among those that got a token (the
//! microjoules that are left over go to the first ones), so that the shares always sum to the
//! step's energy. A step that does both is the sum of the two: what it takes longer, and draws,
//! for the prompt's part is that prompt's.

use std::collections::{BTreeMap, VecDeque};

use super::model::{EngineModel, MOST_SPECULATED, StepCost};
use crate::random::Random;

/// A sequence to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Its identity.
    pub id: u64,
    /// Tokens of its prompt that are still to be read.
    pub unread_tokens: u64,
    /// Tokens it will produce, at least 1.
    pub output_tokens: u64,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whose.
    pub id: u64,
    /// Its part of the step's energy above idle, microjoules on each GPU.
    pub energy_uj: u64,
    /// Tokens it gets at the step's end; none while its prompt is not read to the end.
    pub tokens: u64,
    /// Whether the last of them is its last.
    pub last: bool,
}

/// One step of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its length and energy.
    pub cost: StepCost,
    /// True if it reads a prompt, or a part of one.
    pub prefill: bool,
    /// Whose it is. The energies sum to the step's.
    pub shares: Vec<Share>,
}

/// What waits and what runs.
#[derive(Debug)]
pub struct Batch {
    model: EngineModel,
    waiting: VecDeque<Sequence>,
    /// Tokens still to come, by identity.
    running: BTreeMap<u64, u64>,
    /// How many drafted tokens hold.
    accepted: Random,
}

impl Batch {
    /// Nothing to do yet.
    pub fn new(model: EngineModel) -> Self {
        Self {
            model,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            accepted: Random::new(1),
        }
    }

    /// The engine's figures.
    pub fn model(&self) -> &EngineModel {
        &self.model
    }

    /// Queues a sequence.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Forgets a sequence, wherever it is; steps already taken are not undone.
    pub fn abort(&mut self, id: u64) {
        self.running.remove(&id);
        self.waiting.retain(|sequence| sequence.id != id);
    }

    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes the next step, if there is anything to do.
    pub fn next_step(&mut self) -> Option<Step> {
        let reads = self.running.len() < self.model.max_num_seqs && !self.waiting.is_empty();
        let decodes = !self.running.is_empty() && (!reads || self.model.prompt_parts.is_some());
        // Decoding first: who gets a first token in this step gets no second one.
        let decoded = decodes.then(|| self.decode());
        let read = if reads { self.prefill() } else { None };
        match (decoded, read) {
            (Some(decoded), Some(read)) => Some(Step {
                cost: decoded.cost + read.cost,
                prefill: true,
                shares: [decoded.shares, read.shares].concat(),
            }),
            (decoded, read) => decoded.or(read),
        }
    }

    /// Reads the oldest prompt, or a part of it.
    fn prefill(&mut self) -> Option<Step> {
        let sequence = self.waiting.front_mut()?;
        let part = self.model.prompt_parts.unwrap_or(u64::MAX);
        let tokens = sequence.unread_tokens.min(part);
        sequence.unread_tokens -= tokens;
        let Sequence {
            id,
            unread_tokens,
            output_tokens,
        } = *sequence;
        let is_read = unread_tokens == 0;
        let remaining = output_tokens.saturating_sub(1);
        if is_read {
            self.waiting.pop_front();
            if remaining > 0 {
                self.running.insert(id, remaining);
            }
        }
        let cost = self.model.prefill(tokens);
        Some(Step {
            cost,
            prefill: true,
            shares: vec![Share {
                id,
                energy_uj: cost.energy_uj,
                tokens: u64::from(is_read),
                last: is_read && remaining == 0,
            }],
        })
    }

    fn decode(&mut self) -> Step {
        let cost = self.model.decode(self.running.len());
        let sequences = self.running.len() as u64;
        let (each, left_over) = (cost.energy_uj / sequences, cost.energy_uj % sequences);
        let mut shares = Vec::with_capacity(self.running.len());
        let most = if self.model.speculates {
            MOST_SPECULATED
        } else {
            1
        };
        let accepted = &mut self.accepted;
        self.running.retain(|id, remaining| {
            let tokens = (1 + accepted.below(most) as u64).min(*remaining);
            *remaining -= tokens;
            let extra = u64::from((shares.len() as u64) < left_over);
            shares.push(Share {
                id: *id,
                energy_uj: each + extra,
                tokens,
                last: *remaining == 0,
            });
            *remaining > 0
        });
        Step {
            cost,
            prefill: false,
            shares,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(id: u64, unread_tokens: u64, output_tokens: u64) -> Sequence {
        Sequence {
            id,
            unread_tokens,
            output_tokens,
        }
    }

    fn batch() -> Batch {
        Batch::new(EngineModel::default())
    }

    #[test]
    fn a_prompt_is_read_before_others_go_on_and_pays_for_it_alone() {
        let mut batch = batch();
        batch.add(sequence(1, 1_400, 3));
        assert!(batch.next_step().unwrap().prefill);
        assert!(!batch.next_step().unwrap().prefill);
        batch.add(sequence(2, 140, 3));
        let step = batch.next_step().unwrap();
        let whole = step.cost.energy_uj;
        assert_eq!(
            step.shares,
            [Share {
                id: 2,
                energy_uj: whole,
                tokens: 1,
                last: false
            }]
        );
        let step = batch.next_step().unwrap();
        assert_eq!(step.shares.len(), 2);
        assert!(step.shares[0].last && !step.shares[1].last);
    }

    #[test]
    fn a_sequence_of_one_token_ends_with_its_prefill() {
        let mut batch = batch();
        batch.add(sequence(1, 100, 1));
        assert!(batch.next_step().unwrap().shares[0].last);
        assert_eq!(batch.next_step(), None);
    }

    #[test]
    fn a_full_engine_lets_new_prompts_wait() {
        let mut batch = Batch::new(EngineModel {
            max_num_seqs: 2,
            ..EngineModel::default()
        });
        for id in 0..3 {
            batch.add(sequence(id, 10, 3));
        }
        let kinds: Vec<bool> = std::iter::from_fn(|| batch.next_step())
            .map(|step| step.prefill)
            .collect();
        assert_eq!(kinds, [true, true, false, false, true, false, false]);
    }

    #[test]
    fn an_aborted_sequence_gets_nothing_more() {
        let mut batch = batch();
        batch.add(sequence(1, 10, 9));
        batch.add(sequence(2, 10, 9));
        batch.next_step();
        batch.abort(2);
        batch.abort(1);
        assert_eq!(batch.next_step(), None);
        assert!(batch.is_empty());
    }

    #[test]
    fn a_prompt_that_is_read_in_parts_lets_others_go_on_and_pays_for_its_parts_alone() {
        let model = EngineModel {
            prompt_parts: Some(512),
            ..EngineModel::default()
        };
        let mut batch = Batch::new(model.clone());
        batch.add(sequence(1, 100, 9));
        assert_eq!(batch.next_step().unwrap().cost, model.prefill(100), "alone");
        batch.add(sequence(2, 1_200, 9));
        for (part, tokens) in [(512, 0), (512, 0), (176, 1)] {
            let step = batch.next_step().unwrap();
            assert_eq!(step.cost, model.decode(1) + model.prefill(part));
            let shares: Vec<_> = step
                .shares
                .iter()
                .map(|share| (share.id, share.energy_uj, share.tokens))
                .collect();
            let read = model.prefill(part).energy_uj;
            assert_eq!(
                shares,
                [(1, model.decode(1).energy_uj, 1), (2, read, tokens)]
            );
        }
        assert_eq!(batch.next_step().unwrap().cost, model.decode(2));
    }

    #[test]
    fn a_speculating_engine_gives_one_to_four_tokens_and_takes_a_fifth_longer() {
        let model = EngineModel {
            speculates: true,
            ..EngineModel::default()
        };
        let mut batch = Batch::new(model.clone());
        batch.add(sequence(1, 100, 500));
        assert_eq!(batch.next_step().unwrap().shares[0].tokens, 1);
        let mut given = Vec::new();
        while let Some(step) = batch.next_step() {
            assert_eq!(step.cost.duration_ns, 13_872_000, "1.2 × 11.56 ms");
            given.push(step.shares[0].tokens);
        }
        assert_eq!(given.iter().sum::<u64>(), 499, "and not one too many");
        let mean = 499.0 / given.len() as f64;
        assert!((2.2..2.8).contains(&mean), "{mean}");
        assert_eq!(given.iter().max(), Some(&4));
    }

    proptest! {
        #[test]
        fn shares_sum_to_the_step_and_everybody_gets_their_tokens(
            sizes in prop::collection::vec((1_u64..3_000, 1_u64..60), 1..40),
            arrivals in prop::collection::vec(0_usize..4, 1..60),
            prompt_parts in prop::option::of(1_u64..900),
            speculates in any::<bool>(),
        ) {
            let mut batch = Batch::new(EngineModel {
                prompt_parts,
                speculates,
                ..EngineModel::default()
            });
            let mut tokens = vec![0; sizes.len()];
            let mut coming = sizes.iter().enumerate();
            let mut arrivals = arrivals.into_iter().chain(std::iter::repeat(1));
            loop {
                for (id, (prompt, output)) in coming.by_ref().take(arrivals.next().unwrap()) {
                    batch.add(sequence(id as u64, *prompt, *output));
                }
                let Some(step) = batch.next_step() else {
                    if coming.len() == 0 { break }
                    continue;
                };
                let sum: u64 = step.shares.iter().map(|share| share.energy_uj).sum();
                prop_assert_eq!(sum, step.cost.energy_uj);
                let decoding = step.shares.len() - usize::from(step.prefill);
                let energies = step.shares[..decoding].iter().map(|share| share.energy_uj);
                let (least, most) = (energies.clone().min(), energies.max());
                prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1);
                for share in &step.shares {
                    tokens[share.id as usize] += share.tokens;
                    prop_assert_eq!(
                        share.last,
                        tokens[share.id as usize] == sizes[share.id as usize].1
                    );
                }
            }
            prop_assert!(tokens.iter().zip(&sizes).all(|(got, (_, wanted))| got == wanted));
        }
    }
}
