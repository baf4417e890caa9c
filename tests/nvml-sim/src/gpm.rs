//! What a GPU's parts did between two moments, as its performance monitors (GPM) show it.
//!
//! In: the engines' segments. Out: percentages. How busy the multiprocessors were is the time in
//! which a segment ran. What ran is told by how much it drew: between decoding and reading prompts as
//! inference-sim's engine does by default. That is a made-up relation: from it no coefficient of a
//! real GPU can be learned.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::abi::{INVALID_ARGUMENT, UNKNOWN};
use crate::library::{Failure, Machine};

/// Samples that are closer than this say nothing.
const LEAST_NS: u64 = 100_000_000;
/// Power above idle of a step that decodes, and of one that reads a prompt, watts.
const DECODE_WATTS: f64 = 203.0;
const PREFILL_WATTS: f64 = 397.0;

/// One sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Devices of the state file that it is of.
    pub(crate) engines: Vec<usize>,
    pub(crate) at_ns: u64,
}

/// All samples, by handle; none until it is taken.
#[derive(Default)]
pub(crate) struct Samples(Mutex<Made>);

#[derive(Default)]
struct Made {
    count: usize,
    open: HashMap<usize, Option<Sample>>,
}

impl Samples {
    fn made(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn create(&self) -> usize {
        let mut made = self.made();
        made.count += 1;
        let handle = made.count;
        made.open.insert(handle, None);
        handle
    }

    pub(crate) fn free(&self, handle: usize) -> Result<(), Failure> {
        let freed = self.made().open.remove(&handle);
        freed.map(drop).ok_or(Failure(INVALID_ARGUMENT))
    }

    pub(crate) fn fill(&self, handle: usize, sample: Sample) -> Result<(), Failure> {
        let mut made = self.made();
        let slot = made.open.get_mut(&handle);
        *slot.ok_or(Failure(INVALID_ARGUMENT))? = Some(sample);
        Ok(())
    }

    fn get(&self, handle: usize) -> Result<Sample, Failure> {
        let sample = self.made().open.get(&handle).cloned().flatten();
        sample.ok_or(Failure(INVALID_ARGUMENT))
    }
}

/// What ran between two samples, as parts of the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Activity {
    busy: f64,
    /// Part of the busy time that read prompts.
    prompts: f64,
    /// What draws less than decoding uses less of tensor cores and memory.
    strength: f64,
}

impl Activity {
    pub(crate) fn between(machine: &Machine, first: usize, second: usize) -> Result<Self, Failure> {
        let (from, to) = (machine.samples.get(first)?, machine.samples.get(second)?);
        if from.engines != to.engines || to.at_ns < from.at_ns + LEAST_NS {
            return Err(Failure(INVALID_ARGUMENT));
        }
        let (mut busy_ns, mut energy_uj) = (0, 0);
        for &engine in &to.engines {
            let ran = machine.state.ran_between(engine, from.at_ns, to.at_ns);
            let (ns, uj) = ran.ok_or(Failure(UNKNOWN))?;
            busy_ns += ns;
            energy_uj += uj;
        }
        let seconds = busy_ns as f64 * 1e-9;
        let watts = if busy_ns > 0 {
            energy_uj as f64 * 1e-6 / seconds
        } else {
            0.0
        };
        let prompts = (watts - DECODE_WATTS) / (PREFILL_WATTS - DECODE_WATTS);
        Ok(Self {
            busy: (busy_ns as f64 / (to.at_ns - from.at_ns) as f64).min(1.0),
            prompts: prompts.clamp(0.0, 1.0),
            strength: (watts / DECODE_WATTS).clamp(0.0, 1.0),
        })
    }

    /// One metric, percent; `None` if it has no such.
    pub(crate) fn metric(&self, id: u32) -> Option<f64> {
        let Self {
            busy,
            prompts,
            strength,
        } = *self;
        let mix = |decode: f64, prompt: f64| {
            let at_full = decode * (1.0 - prompts) + prompt * prompts;
            at_full * strength
        };
        let part = match id {
            // Graphics engine and multiprocessors.
            1 | 2 => busy,
            // Occupancy.
            3 => busy * mix(0.2, 0.5),
            // Tensor cores.
            5 => busy * mix(0.1, 0.7),
            // Bandwidth of the memory.
            10 => busy * mix(0.8, 0.4),
            _ => return None,
        };
        Some(part * 100.0)
    }
}
