//! Continuous batching: which step comes next, who gets a token in it, and whose energy it is.
//!
//! Pure. In: sequences that come and go. Out: [`Step`]s. A prompt is read in a step of its own,
//! before anything is decoded, as long as there is room for one more sequence; otherwise every
//! running sequence gets one token. A prefill step's energy is its sequence's; a decode step's is
//! equal among those that got a token (the microjoules that are left over go to the first ones),
//! so that the shares always sum to the step's energy.

use std::collections::{BTreeMap, VecDeque};

use super::model::{EngineModel, StepCost};

/// A sequence to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Its identity.
    pub id: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
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
    /// Whether the token it gets in this step is its last.
    pub last: bool,
}

/// One step of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its length and energy.
    pub cost: StepCost,
    /// True if it reads a prompt.
    pub prefill: bool,
    /// Who gets a token at its end. The energies sum to the step's.
    pub shares: Vec<Share>,
}

/// What waits and what runs.
#[derive(Debug)]
pub struct Batch {
    model: EngineModel,
    waiting: VecDeque<Sequence>,
    /// Tokens still to come, by identity.
    running: BTreeMap<u64, u64>,
}

impl Batch {
    /// Nothing to do yet.
    pub fn new(model: EngineModel) -> Self {
        Self {
            model,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
        }
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
        if self.running.len() < self.model.max_num_seqs
            && let Some(sequence) = self.waiting.pop_front()
        {
            return Some(self.prefill(sequence));
        }
        (!self.running.is_empty()).then(|| self.decode())
    }

    fn prefill(&mut self, sequence: Sequence) -> Step {
        let cost = self.model.prefill(sequence.prompt_tokens);
        let remaining = sequence.output_tokens.saturating_sub(1);
        if remaining > 0 {
            self.running.insert(sequence.id, remaining);
        }
        let share = Share {
            id: sequence.id,
            energy_uj: cost.energy_uj,
            last: remaining == 0,
        };
        Step {
            cost,
            prefill: true,
            shares: vec![share],
        }
    }

    fn decode(&mut self) -> Step {
        let cost = self.model.decode(self.running.len());
        let sequences = self.running.len() as u64;
        let (each, left_over) = (cost.energy_uj / sequences, cost.energy_uj % sequences);
        let mut shares = Vec::with_capacity(self.running.len());
        self.running.retain(|id, remaining| {
            *remaining -= 1;
            let extra = u64::from((shares.len() as u64) < left_over);
            shares.push(Share {
                id: *id,
                energy_uj: each + extra,
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

    fn sequence(id: u64, prompt_tokens: u64, output_tokens: u64) -> Sequence {
        Sequence {
            id,
            prompt_tokens,
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

    proptest! {
        #[test]
        fn shares_sum_to_the_step_and_everybody_gets_their_tokens(
            sizes in prop::collection::vec((1_u64..3_000, 1_u64..60), 1..40),
            arrivals in prop::collection::vec(0_usize..4, 1..60),
        ) {
            let mut batch = batch();
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
                let least = step.shares.iter().map(|share| share.energy_uj).min();
                let most = step.shares.iter().map(|share| share.energy_uj).max();
                prop_assert!(most.unwrap() - least.unwrap() <= 1);
                for share in &step.shares {
                    tokens[share.id as usize] += 1;
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
