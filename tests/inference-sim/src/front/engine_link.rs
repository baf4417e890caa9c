//! The front's side of the Unix socket: requests out, tokens in, to whom they belong.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::metrics::Metrics;
use crate::wire::{StepEnded, Submission, ToEngine};

/// The way to the engine and back.
#[derive(Debug)]
pub(crate) struct EngineLink {
    outbox: UnboundedSender<ToEngine>,
    flights: Mutex<Flights>,
    pub(crate) metrics: Metrics,
}

#[derive(Debug, Default)]
struct Flights {
    last_id: u64,
    open: HashMap<u64, Flight>,
}

/// A request on its way.
#[derive(Debug)]
struct Flight {
    tokens: UnboundedSender<Tokens>,
    start_ns: u64,
    last_token_ns: Option<u64>,
    prompt_tokens: u64,
    output_tokens: u64,
    finish_reason: &'static str,
}

/// Tokens of one step have come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens {
    /// How many, at least one.
    pub(crate) count: u64,
    /// They were the last.
    pub(crate) last: bool,
}

/// One request's end of the link. Dropping it before the last token has come tells the engine
/// that the client has left.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) id: u64,
    pub(crate) tokens: UnboundedReceiver<Tokens>,
    link: Arc<EngineLink>,
}

impl EngineLink {
    /// A link, and the messages it wants [`Self::carry`] to carry.
    pub(crate) fn new(metrics: Metrics) -> (Arc<Self>, UnboundedReceiver<ToEngine>) {
        let (outbox, messages) = unbounded_channel();
        (
            Arc::new(Self {
                outbox,
                flights: Mutex::default(),
                metrics,
            }),
            messages,
        )
    }

    /// Sends a request to the engine; `submission` makes it from its number.
    pub(crate) fn submit(
        self: &Arc<Self>,
        finish_reason: &'static str,
        submission: impl FnOnce(u64) -> Submission,
    ) -> Ticket {
        let (sender, tokens) = unbounded_channel();
        let mut flights = self.flights();
        flights.last_id += 1;
        let id = flights.last_id;
        let submission = submission(id);
        let flight = Flight {
            tokens: sender,
            start_ns: submission.start_ns,
            last_token_ns: None,
            prompt_tokens: submission.prompt_tokens,
            output_tokens: 0,
            finish_reason,
        };
        flights.open.insert(id, flight);
        // If the engine has gone, so has the receiver of `tokens`: the ticket says so.
        let _ = self.outbox.send(ToEngine::Add(submission));
        Ticket {
            id,
            tokens,
            link: Arc::clone(self),
        }
    }

    /// Requests that run and that wait.
    pub(crate) fn running_and_waiting(&self) -> (usize, usize) {
        let flights = self.flights();
        let running = flights
            .open
            .values()
            .filter(|flight| flight.output_tokens > 0)
            .count();
        (running, flights.open.len() - running)
    }

    /// Carries messages both ways until the engine leaves.
    pub(crate) async fn carry(
        &self,
        engine: UnixStream,
        mut messages: UnboundedReceiver<ToEngine>,
    ) -> io::Result<()> {
        let (reader, mut writer) = engine.into_split();
        let mut reader = BufReader::with_capacity(65_536, reader);
        let mut line = Vec::new();
        let outward = async {
            while let Some(message) = messages.recv().await {
                let mut bytes = serde_json::to_vec(&message)?;
                bytes.push(b'\n');
                writer.write_all(&bytes).await?;
            }
            Ok::<(), io::Error>(())
        };
        let inward = async {
            loop {
                line.clear();
                if reader.read_until(b'\n', &mut line).await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                self.deliver(&serde_json::from_slice(&line)?);
            }
        };
        let ended = tokio::select! { ended = outward => ended, ended = inward => ended };
        // Nobody will be told of another token.
        self.flights().open.clear();
        ended
    }

    fn deliver(&self, step: &StepEnded) {
        let mut flights = self.flights();
        for (id, count) in &step.tokens {
            let Some(flight) = flights.open.get_mut(id) else {
                continue;
            };
            let last = step.finished.contains(id);
            let since = flight.last_token_ns.unwrap_or(flight.start_ns);
            let seconds = step.at_ns.saturating_sub(since) as f64 * 1e-9;
            if flight.last_token_ns.replace(step.at_ns).is_none() {
                self.metrics.first_token(seconds, flight.prompt_tokens);
            } else {
                self.metrics.next_tokens(seconds, *count);
            }
            flight.output_tokens += count;
            // The client may have left this very moment; its ticket takes care of that.
            let _ = flight.tokens.send(Tokens {
                count: *count,
                last,
            });
            if last && let Some(flight) = flights.open.remove(id) {
                self.metrics.finished(
                    flight.finish_reason,
                    step.at_ns.saturating_sub(flight.start_ns) as f64 * 1e-9,
                    flight.prompt_tokens,
                    flight.output_tokens,
                );
            }
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.link.flights().open.remove(&self.id).is_some() {
            self.link.metrics.aborted();
            let _ = self.link.outbox.send(ToEngine::Abort { id: self.id });
        }
    }
}
