//! A service's tokens, each counted in one way, and the active energy of the requests they belong
//! to.
//!
//! The engine's counters where they were read from before the first request until after the last
//! one's end; else each request by itself, as its server said or by its chunks; else what the
//! engine counted of them, which belongs to no known energy.

use std::collections::BTreeMap;

use super::model::{SourceTokens, Tokens};
use crate::clock::Timestamp;
use crate::ledger::{BookedRequest, Request, ServiceId, TokenDelta, TokenSource};
use crate::units::Microjoules;

/// One in so many requests may lie partly outside the time that was counted.
const ONE_IN: u64 = 100;

/// One service's tokens.
#[derive(Debug, Default)]
pub(super) struct ServiceTokens {
    /// By id: services of one name are counted each for itself.
    server: BTreeMap<ServiceId, ServerTokens>,
    /// Of requests that were counted one by one.
    counted: BTreeMap<TokenSource, Counted>,
    /// Some chunks were taken for tokens.
    uncalibrated: bool,
    served: u64,
}

/// Requests that were counted in one way.
#[derive(Debug, Default)]
struct Counted {
    requests: u64,
    input: Option<u64>,
    output: Option<u64>,
    /// How many of them have a known input.
    with_input: u64,
    output_energy: Option<Microjoules>,
    /// Input and output of those with a known input, and their energy.
    both: u64,
    both_energy: Option<Microjoules>,
}

/// Tokens as a report shows them, and what they cost.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) tokens: Tokens,
    /// Energy ÷ output tokens, of requests whose output is known.
    pub(super) output: (Option<Microjoules>, u64),
    /// Energy ÷ all tokens, of requests whose input is known.
    pub(super) both: (Option<Microjoules>, u64),
}

fn add<T: Default + std::ops::AddAssign>(sum: &mut Option<T>, new: Option<T>) {
    if let Some(new) = new {
        *sum.get_or_insert_default() += new;
    }
}

impl ServiceTokens {
    /// What is known of its engines' counters before the next of them is told.
    pub(super) fn emptied(&self) -> Self {
        let server = self.server.iter();
        Self {
            server: server.map(|(id, server)| (*id, server.emptied())).collect(),
            ..Self::default()
        }
    }

    /// Takes what an engine counted.
    pub(super) fn add(&mut self, delta: &TokenDelta) {
        self.server.entry(delta.service).or_default().add(delta);
    }

    /// Takes a request that was booked and costs energy.
    pub(super) fn serve(&mut self, booked: &BookedRequest) {
        let request = &booked.request;
        self.served += 1;
        self.server
            .entry(request.service)
            .or_default()
            .serve(request);
        let Some(count) = booked.token_count() else {
            return;
        };
        self.uncalibrated |= !count.calibrated;
        let active = booked.active();
        let counted = self.counted.entry(count.source).or_default();
        counted.requests += 1;
        add(&mut counted.input, count.input);
        add(&mut counted.output, count.output);
        if count.output.is_some() {
            add(&mut counted.output_energy, active);
        }
        if let Some(input) = count.input {
            counted.with_input += 1;
            counted.both += input + count.output.unwrap_or(0);
            add(&mut counted.both_energy, active);
        }
    }

    /// The figures; `active`: the energy of all requests.
    pub(super) fn figures(&self, active: Option<Microjoules>) -> Figures {
        self.by_server(active).unwrap_or_else(|| self.one_by_one())
    }

    fn by_server(&self, active: Option<Microjoules>) -> Option<Figures> {
        let counted = self.server.values().filter(|server| server.reads());
        let whole = self.server.values().all(ServerTokens::covers);
        let sum = |kind: fn(&ServerTokens) -> Option<u64>| {
            let known = counted.clone().filter_map(kind);
            known.reduce(|sum, tokens| sum + tokens)
        };
        let output = sum(|server| server.output)?;
        if !whole && !self.counted.is_empty() {
            return None;
        }
        let input = sum(|server| server.input);
        let energy = active.filter(|_| whole && self.served > 0);
        let source = TokenSource::ServerMetrics.name().to_owned();
        let by_source = SourceTokens {
            requests: self.served,
            input,
            output: Some(output),
        };
        Some(Figures {
            tokens: Tokens {
                input,
                output: Some(output),
                source: Some(source.clone()),
                calibrated: None,
                by_source: BTreeMap::from([(source, by_source)]),
            },
            output: (energy, output),
            both: (
                energy.filter(|_| input.is_some()),
                input.unwrap_or(0) + output,
            ),
        })
    }

    fn one_by_one(&self) -> Figures {
        let sum = |kind: fn(&Counted) -> Option<u64>| {
            let known = self.counted.values().filter_map(kind);
            known.reduce(|sum, tokens| sum + tokens)
        };
        let energy = |kind: fn(&Counted) -> Option<Microjoules>| {
            let known = self.counted.values().filter_map(kind);
            known.reduce(|sum, energy| sum + energy)
        };
        let output = sum(|counted| counted.output);
        let whole = self
            .counted
            .values()
            .all(|counted| counted.with_input == counted.requests);
        // The least trusted, as a sum takes the worst class.
        let source = self.counted.keys().max();
        let by_source = self.counted.iter().map(|(source, counted)| {
            let tokens = SourceTokens {
                requests: counted.requests,
                input: counted.input,
                output: counted.output,
            };
            (source.name().to_owned(), tokens)
        });
        Figures {
            tokens: Tokens {
                input: sum(|counted| counted.input).filter(|_| whole),
                output,
                source: source.map(|source| source.name().to_owned()),
                calibrated: self
                    .counted
                    .contains_key(&TokenSource::Chunks)
                    .then_some(!self.uncalibrated),
                by_source: by_source.collect(),
            },
            output: (energy(|counted| counted.output_energy), output.unwrap_or(0)),
            both: (
                energy(|counted| counted.both_energy),
                self.counted.values().map(|counted| counted.both).sum(),
            ),
        }
    }
}

/// One service's engine in one window.
#[derive(Debug, Default)]
struct ServerTokens {
    input: Option<u64>,
    output: Option<u64>,
    /// The time that was counted without a break.
    counted: Option<(Timestamp, Timestamp)>,
    /// There was a break: the server was restarted.
    broken: bool,
    requests: u64,
    /// Requests that began before the first read.
    early: u64,
    /// Ends of requests after the latest read.
    late: Vec<Timestamp>,
}

impl ServerTokens {
    fn emptied(&self) -> Self {
        Self {
            input: self.input.map(|_| 0),
            output: self.output.map(|_| 0),
            counted: self.counted,
            ..Self::default()
        }
    }

    fn add(&mut self, delta: &TokenDelta) {
        add(&mut self.input, delta.input);
        add(&mut self.output, delta.output);
        self.counted = match self.counted {
            None => Some((delta.from, delta.to)),
            Some((from, to)) => {
                self.broken |= delta.from != to;
                Some((from, delta.to))
            }
        };
        self.late.retain(|end| *end > delta.to);
    }

    /// A request that was booked.
    fn serve(&mut self, request: &Request) {
        let end = request.end.map_or(request.start, |end| end.at);
        self.requests += 1;
        match self.counted {
            Some((from, _)) if request.start < from => self.early += 1,
            Some((_, to)) if end > to => self.late.push(end),
            Some(_) => {}
            None => self.early += 1,
        }
    }

    /// True if its counters were read at all.
    const fn reads(&self) -> bool {
        self.counted.is_some()
    }

    /// True if the tokens of all but a hundredth of the requests are counted whole.
    fn covers(&self) -> bool {
        let outside = self.early + self.late.len() as u64;
        !self.broken && outside * ONE_IN <= self.requests
    }
}
