//! The engine process: plays steps in real time and says what the GPU does.
//!
//! In: [`ToEngine`] messages from the front, over a Unix socket. Out: a [`StepEnded`] message at
//! the end of each step, the step's power to the shared GPU state, and each request's truth.
//!
//! The next step is chosen a little before the current one ends, as engines with asynchronous
//! scheduling do. So every step is in the shared state before it begins, nothing a reader has
//! seen ever changes, and steps follow each other without a gap. A host too slow to choose in
//! time leaves the GPU idle for that moment, as a real one would.

pub mod batch;
pub mod model;
mod process;

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

use gpu_state::{GpuState, PublishError, Writer, publish_together};

use self::batch::{Batch, Sequence, Step};
use self::model::{EngineModel, StepCost};
use crate::truth::{Outcome, TruthBook, TruthRecord};
use crate::wire::{StepEnded, ToEngine};

pub use process::{EngineConfig, run};

/// How long before the end of a step the next one is chosen.
const LEAD_NS: u64 = 2_000_000;

/// From the choice of a step on an idle GPU to its begin.
const LAUNCH_NS: u64 = 200_000;

/// Where truth goes and what it is made of.
struct Truth {
    book: TruthBook,
    file: Box<dyn Write>,
}

/// A step that is published: it will take place.
#[derive(Debug)]
struct Committed {
    step: Step,
    end_ns: u64,
}

/// The engine, all but its process: told what time it is, it says what to do and when to be woken.
struct Engine {
    batch: Batch,
    truth: Truth,
    writers: Vec<Writer>,
    current: Option<Committed>,
    next: Option<Committed>,
    /// Aborted while their last step was on its way: nobody wants to hear of them.
    aborted: HashSet<u64>,
    pace: Pace,
}

/// How well the engine keeps to its own time.
#[derive(Debug, Default)]
struct Pace {
    steps: u64,
    /// Sum and maximum of how late steps' ends were told, nanoseconds.
    lateness_ns: u64,
    latest_ns: u64,
    /// Time the GPU idled between two steps because the next was chosen too late, nanoseconds.
    bubbles_ns: u64,
}

impl Engine {
    fn new(
        model: EngineModel,
        state: &Arc<GpuState>,
        devices: Vec<usize>,
        shares: bool,
        file: Box<dyn Write>,
    ) -> Result<Self, PublishError> {
        let writers = devices
            .iter()
            .map(|device| match shares {
                true => state.shared_writer(*device),
                false => state.writer(*device),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            batch: Batch::new(model),
            truth: Truth {
                book: TruthBook::new(devices),
                file,
            },
            writers,
            current: None,
            next: None,
            aborted: HashSet::new(),
            pace: Pace::default(),
        })
    }

    fn take(&mut self, message: ToEngine, now_ns: u64) -> io::Result<()> {
        match message {
            ToEngine::Add(submission) => {
                let (id, prompt_tokens) = (submission.id, submission.prompt_tokens);
                let cached_tokens = self.batch.model().cached_tokens(id, prompt_tokens);
                self.batch.add(Sequence {
                    id,
                    unread_tokens: prompt_tokens - cached_tokens,
                    output_tokens: submission.output_tokens,
                });
                self.truth.book.open(submission, cached_tokens);
            }
            ToEngine::Abort { id } => {
                self.batch.abort(id);
                let on_its_way = [&self.current, &self.next].into_iter().flatten();
                if on_its_way
                    .flat_map(|c| &c.step.shares)
                    .any(|share| share.id == id)
                {
                    self.aborted.insert(id);
                }
                self.truth.close(id, now_ns, Outcome::Aborted)?;
            }
        }
        Ok(())
    }

    /// Does what is due: tells the end of a step, chooses the next.
    fn advance(&mut self, now_ns: u64) -> Result<Option<StepEnded>, EngineFailure> {
        let mut told = None;
        let mut follows = None;
        if let Some(ended) = self.current.take_if(|current| current.end_ns <= now_ns) {
            self.pace.told(now_ns - ended.end_ns);
            follows = Some(ended.end_ns);
            told = Some(self.end(ended)?);
            self.current = self.next.take();
        }
        match &self.current {
            None => self.current = self.commit(now_ns, follows)?,
            Some(current) if self.next.is_none() && now_ns + LEAD_NS >= current.end_ns => {
                let follows = Some(current.end_ns);
                self.next = self.commit(now_ns, follows)?;
            }
            Some(_) => {}
        }
        Ok(told)
    }

    /// When [`Self::advance`] must be called next; `None` if only a message can bring work.
    fn due_ns(&self) -> Option<u64> {
        let current = self.current.as_ref()?;
        if self.next.is_none() && !self.batch.is_empty() {
            return Some(current.end_ns.saturating_sub(LEAD_NS));
        }
        Some(current.end_ns)
    }

    /// Chooses a step and publishes it, to begin when the one before it ends.
    fn commit(
        &mut self,
        now_ns: u64,
        follows_ns: Option<u64>,
    ) -> Result<Option<Committed>, EngineFailure> {
        let Some(step) = self.batch.next_step() else {
            return Ok(None);
        };
        let earliest = now_ns + LAUNCH_NS;
        let start_ns = match follows_ns {
            // In time if there is still half a launch left: publishing takes microseconds.
            Some(follows) if now_ns + LAUNCH_NS / 2 <= follows => follows,
            Some(follows) => {
                self.pace.bubbles_ns += earliest.saturating_sub(follows);
                earliest.max(follows)
            }
            None => earliest,
        };
        let StepCost {
            duration_ns,
            energy_uj,
        } = step.cost;
        // Of engines that share a GPU each waits here for the steps that the others have chosen:
        // where all are busy they take turns.
        let start_ns = publish_together(&mut self.writers, start_ns, duration_ns, energy_uj)?;
        let end_ns = start_ns + duration_ns;
        for share in &step.shares {
            self.truth.book.charge(share.id, share.energy_uj);
        }
        Ok(Some(Committed { step, end_ns }))
    }

    fn end(&mut self, ended: Committed) -> io::Result<StepEnded> {
        let at_ns = ended.end_ns;
        let mut told = StepEnded {
            at_ns,
            prefill: ended.step.prefill,
            tokens: Vec::with_capacity(ended.step.shares.len()),
            finished: Vec::new(),
        };
        for share in ended.step.shares {
            let again = self
                .next
                .iter()
                .flat_map(|c| &c.step.shares)
                .any(|s| s.id == share.id);
            if self.aborted.contains(&share.id) {
                if !again {
                    self.aborted.remove(&share.id);
                }
                continue;
            }
            if share.tokens == 0 {
                continue;
            }
            self.truth.book.tokens(share.id, at_ns, share.tokens);
            told.tokens.push((share.id, share.tokens));
            if share.last {
                told.finished.push(share.id);
                self.truth.close(share.id, at_ns, Outcome::Done)?;
            }
        }
        Ok(told)
    }

    /// Writes the truth of what is still in flight.
    fn finish(&mut self, now_ns: u64) -> io::Result<()> {
        for record in self.truth.book.close_all(now_ns) {
            self.truth.write(&record)?;
        }
        self.truth.file.flush()
    }

    fn report(&self) -> String {
        let Pace {
            steps,
            lateness_ns,
            latest_ns,
            bubbles_ns,
        } = self.pace;
        format!(
            "{steps} steps, {:.3} J above idle on each GPU, told {:.3} ms late in the mean and \
             {:.3} ms at most, {:.3} ms idle between steps",
            self.truth.book.charged_uj() as f64 * 1e-6,
            lateness_ns as f64 * 1e-6 / steps.max(1) as f64,
            latest_ns as f64 * 1e-6,
            bubbles_ns as f64 * 1e-6,
        )
    }
}

impl Truth {
    fn close(&mut self, id: u64, at_ns: u64, outcome: Outcome) -> io::Result<()> {
        match self.book.close(id, at_ns, outcome) {
            Some(record) => self.write(&record),
            None => Ok(()),
        }
    }

    /// One line, one write: a reader never sees half a record.
    fn write(&mut self, record: &TruthRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

impl Pace {
    fn told(&mut self, late_ns: u64) {
        self.steps += 1;
        self.lateness_ns += late_ns;
        self.latest_ns = self.latest_ns.max(late_ns);
    }
}

/// Why an engine stops before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum EngineFailure {
    /// Socket or truth file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The shared state refused a step.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

#[cfg(test)]
mod tests;
