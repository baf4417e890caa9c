//! Tokens per streamed chunk, learned where both are known, and applied where chunks alone are.
//!
//! Servers put several tokens into one chunk (speculative decoding, coalesced writes), so chunks
//! are at most the tokens. In: requests as they are seen; what the engine counted, or what servers
//! said of single responses. Out: a service's Σ tokens ÷ Σ chunks over a long window, and counts of
//! other streams in whole tokens, whose sum is never a token away from chunks times this ratio. Tokens of a response that does not stream have no chunks:
//! the time in which one is served is left out, whole.

use std::collections::VecDeque;

use crate::clock::Timestamp;
use crate::ids::Ids;
use crate::ledger::{Request, RequestId, ServiceId, TokenCount, TokenDelta, TokenSource, Usage};

/// Fewer chunks than this say nothing.
const ENOUGH_CHUNKS: f64 = 100.0;
/// The window: at so many chunks the past counts half.
const WINDOW_CHUNKS: f64 = 1_000_000.0;
/// Spans that wait for the requests in them to show what they are; an hour's.
const MOST_SPANS: usize = 3_600;
/// Requests followed at once; above it the ends of some must have been lost.
const MOST_REQUESTS: usize = 65_536;

/// What is learned of each service.
#[derive(Debug, Default)]
pub struct Calibration {
    services: Ids<ServiceId, Learned>,
}

#[derive(Debug, Default)]
struct Learned {
    tokens: f64,
    chunks: f64,
    /// Between two reads, not yet known to be free of responses that do not stream.
    spans: VecDeque<Span>,
    /// Chunks since the latest read.
    since: u64,
    in_flight: Ids<RequestId, Flight>,
    /// What was counted up to here cannot be used.
    spoilt: Timestamp,
    /// The engine's own counters are read.
    reads_server: bool,
    /// Less than a token, of chunks counted so far.
    rest: f64,
}

#[derive(Debug)]
struct Span {
    from: Timestamp,
    to: Timestamp,
    tokens: u64,
    chunks: u64,
}

#[derive(Debug)]
struct Flight {
    start: Timestamp,
    chunks: u64,
    streams: bool,
}

impl Calibration {
    /// Takes a request as it stands at `at`; only of services whose counters are read.
    pub fn follow(&mut self, at: Timestamp, request: &Request) {
        let learned = self.services.get_mut(&request.service);
        if let Some(learned) = learned.filter(|learned| learned.reads_server) {
            learned.follow(at, request);
        }
    }

    /// Takes what the engine counted.
    pub fn take(&mut self, delta: &TokenDelta) {
        if let Some(tokens) = delta.output {
            let learned = self.services.entry(delta.service).or_default();
            learned.reads_server = true;
            learned.take(delta.from, delta.to, tokens);
        }
    }

    /// The engine's counters are read no more.
    pub fn lose(&mut self, service: ServiceId) {
        if let Some(learned) = self.services.get_mut(&service) {
            learned.reads_server = false;
            learned.spans.clear();
            learned.in_flight.clear();
            learned.since = 0;
        }
    }

    /// The service has ended: what was learned of it is forgotten.
    pub fn forget(&mut self, service: ServiceId) {
        self.services.remove(&service);
    }

    /// Takes a whole response and what its server said of it. Where the engine's counters are
    /// read they have said it already.
    pub fn learn(&mut self, request: &Request, usage: Usage) {
        if let Some(output) = usage.output
            && request.streamed
            && request.chunks > 0
        {
            let learned = self.services.entry(request.service).or_default();
            if !learned.reads_server {
                learned.add(output, request.chunks);
            }
        }
    }

    /// Tokens per chunk of a service; `None` until enough is known.
    pub fn tokens_per_chunk(&self, service: ServiceId) -> Option<f64> {
        self.services.get(&service)?.ratio()
    }

    /// A stream's tokens by its chunks; `None` if it does not stream. A chunk is a token until
    /// enough is known.
    pub fn count(&mut self, request: &Request) -> Option<TokenCount> {
        if !request.streamed {
            return None;
        }
        let learned = self.services.get_mut(&request.service);
        let learned = learned.and_then(|learned| Some((learned.ratio()?, &mut learned.rest)));
        let (output, calibrated) = match learned {
            Some((ratio, rest)) => {
                let exact = request.chunks as f64 * ratio + *rest;
                *rest = exact.fract();
                (exact as u64, true)
            }
            None => (request.chunks, false),
        };
        Some(TokenCount {
            source: TokenSource::Chunks,
            input: None,
            output: Some(output),
            calibrated,
        })
    }
}

impl Learned {
    fn follow(&mut self, at: Timestamp, request: &Request) {
        if self.in_flight.len() >= MOST_REQUESTS {
            self.in_flight.clear();
            self.spoil(Timestamp(0), at);
        }
        let flight = self.in_flight.entry(request.id).or_insert(Flight {
            start: request.start,
            chunks: 0,
            streams: false,
        });
        self.since += request.chunks.saturating_sub(flight.chunks);
        flight.chunks = flight.chunks.max(request.chunks);
        flight.streams |= request.streamed && request.chunks > 0;
        let streams = flight.streams;
        let unstreamed = !request.streamed && request.first_data.is_some();
        if request.end.is_some() {
            self.in_flight.remove(&request.id);
        }
        // Also one that left before its first data: it may have been given tokens.
        if unstreamed || (request.end.is_some() && !streams) {
            self.spoil(request.start, at);
        }
    }

    /// Leaves out all that was counted in this time.
    fn spoil(&mut self, from: Timestamp, to: Timestamp) {
        self.spans.retain(|span| span.to <= from);
        self.spoilt = self.spoilt.max(to);
    }

    fn take(&mut self, from: Timestamp, to: Timestamp, tokens: u64) {
        let chunks = std::mem::take(&mut self.since);
        if from >= self.spoilt && to > from {
            self.spans.push_back(Span {
                from,
                to,
                tokens,
                chunks,
            });
        }
        if self.spans.len() > MOST_SPANS {
            self.spans.pop_front();
        }
        // What is older than every request that has not shown yet whether it streams is safe.
        let open = self.in_flight.values().filter(|flight| !flight.streams);
        let safe = open.map(|flight| flight.start).min();
        while let Some(span) = self.spans.front() {
            debug_assert!(span.from < span.to);
            if safe.is_some_and(|safe| span.to > safe) {
                break;
            }
            let (tokens, chunks) = (span.tokens, span.chunks);
            self.spans.pop_front();
            self.add(tokens, chunks);
        }
    }

    fn add(&mut self, tokens: u64, chunks: u64) {
        self.tokens += tokens as f64;
        self.chunks += chunks as f64;
        if self.chunks > WINDOW_CHUNKS {
            self.tokens /= 2.0;
            self.chunks /= 2.0;
        }
    }

    fn ratio(&self) -> Option<f64> {
        let enough = self.chunks >= ENOUGH_CHUNKS && self.tokens > 0.0;
        enough.then_some(self.tokens / self.chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{End, Input, Outcome, Route};

    const SERVICE: ServiceId = ServiceId(3);

    fn request(id: u64, start: u64, chunks: u64, end: Option<u64>) -> Request {
        Request {
            id: RequestId(id),
            service: SERVICE,
            route: Route::ChatCompletions,
            start: Timestamp(start),
            first_data: (chunks > 0 || end.is_some()).then_some(Timestamp(start + 1)),
            last_data: None,
            input: Input::Bytes(10),
            chunks,
            streamed: chunks > 0,
            status: 200,
            end: end.map(|at| End {
                at: Timestamp(at),
                outcome: Outcome::Done,
            }),
        }
    }

    fn delta(from: u64, to: u64, output: u64) -> TokenDelta {
        TokenDelta {
            service: SERVICE,
            from: Timestamp(from),
            to: Timestamp(to),
            input: None,
            output: Some(output),
        }
    }

    #[test]
    fn two_tokens_a_chunk_are_learned_from_streams() {
        let mut calibration = Calibration::default();
        calibration.take(&delta(0, 0, 0));
        assert_eq!(calibration.tokens_per_chunk(SERVICE), None);
        for n in 0..10 {
            let start = n * 10;
            calibration.follow(Timestamp(start + 4), &request(n, start + 1, 30, None));
            calibration.follow(
                Timestamp(start + 9),
                &request(n, start + 1, 50, Some(start + 9)),
            );
            calibration.take(&delta(start, start + 10, 100));
        }
        assert_eq!(calibration.tokens_per_chunk(SERVICE), Some(2.0));
        assert_eq!(calibration.tokens_per_chunk(ServiceId(9)), None);
    }

    #[test]
    fn the_time_of_a_response_that_does_not_stream_is_left_out_whole() {
        let mut calibration = Calibration::default();
        calibration.take(&delta(0, 0, 0));
        // A plain request from 15 to 35, seen for what it is at its end.
        let mut plain = request(99, 15, 0, None);
        for n in 0..6 {
            let start = n * 10;
            calibration.follow(
                Timestamp(start + 9),
                &request(n, start + 1, 50, Some(start + 9)),
            );
            if start == 10 {
                calibration.follow(Timestamp(16), &plain);
            }
            if start == 30 {
                plain = request(99, 15, 0, Some(35));
                calibration.follow(Timestamp(35), &plain);
            }
            let extra = if (10..40).contains(&start) { 700 } else { 0 };
            calibration.take(&delta(start, start + 10, 50 + extra));
        }
        assert_eq!(calibration.tokens_per_chunk(SERVICE), Some(1.0));
        let learned = &calibration.services[&SERVICE];
        assert_eq!(learned.chunks, 150.0, "three clean spans of six");
        assert!(learned.in_flight.is_empty() && learned.spans.is_empty());
    }
    #[test]
    fn what_servers_say_of_single_responses_is_applied_to_the_others_without_drift() {
        let mut calibration = Calibration::default();
        let unlearned = calibration.count(&request(1, 1, 7, Some(9))).unwrap();
        assert_eq!((unlearned.output, unlearned.calibrated), (Some(7), false));
        let usage = Usage {
            input: None,
            output: Some(150),
        };
        calibration.learn(&request(1, 1, 99, Some(9)), usage);
        assert_eq!(calibration.tokens_per_chunk(SERVICE), None, "too few");
        let usage = Usage {
            input: None,
            output: Some(151),
        };
        calibration.learn(&request(2, 1, 101, Some(9)), usage);
        let ratio = calibration.tokens_per_chunk(SERVICE).unwrap();
        assert_eq!(ratio, 301.0 / 200.0);
        let (mut sum, mut chunks) = (0, 0);
        for n in 0..1_000 {
            let stream = request(n, 1, n % 7, Some(9));
            let stream = Request {
                streamed: true,
                ..stream
            };
            let count = calibration.count(&stream).unwrap();
            assert!(count.calibrated);
            sum += count.output.unwrap();
            chunks += stream.chunks;
            assert!((sum as f64 - chunks as f64 * ratio).abs() < 1.001);
        }
        assert_eq!(calibration.count(&request(1, 1, 0, Some(9))), None);
    }

    #[test]
    fn a_response_is_learned_from_once() {
        let mut calibration = Calibration::default();
        calibration.take(&delta(0, 0, 0));
        let usage = Usage {
            input: None,
            output: Some(5_000),
        };
        calibration.learn(&request(1, 1, 1_000, Some(9)), usage);
        assert_eq!(calibration.tokens_per_chunk(SERVICE), None);
        calibration.lose(SERVICE);
        calibration.learn(&request(1, 1, 1_000, Some(9)), usage);
        assert_eq!(calibration.tokens_per_chunk(SERVICE), Some(5.0));
    }
}
