//! What came of a load.

use std::io::{self, Write};

use gpu_state::boottime_ns;
use serde::{Deserialize, Serialize};

use super::client::{Ended, Flown};
use super::plan::{LoadConfig, Planned};

/// The last line a load prints, as JSON. Latencies are seconds of the client's clock; null where
/// nothing was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests sent.
    pub sent: u64,
    /// Answers read to their end.
    pub completed: u64,
    /// Streams left early, as planned.
    pub aborted: u64,
    /// Refused, cut off or answered with nonsense.
    pub failed: u64,
    /// The first failure, in words.
    pub first_failure: Option<String>,
    /// Server-sent events of completed streams, without `[DONE]`.
    pub chunks: u64,
    /// Server-sent events of aborted streams, as far as they were read.
    pub chunks_aborted: u64,
    /// Prompt tokens of completed requests.
    pub tokens_in: u64,
    /// Output tokens of completed requests.
    pub tokens_out: u64,
    /// Time from sending to the first data, median of completed streams.
    pub ttft_p50_s: Option<f64>,
    /// The same, 99th percentile.
    pub ttft_p99_s: Option<f64>,
    /// Time from sending to the end, median of completed requests.
    pub duration_p50_s: Option<f64>,
    /// The same, 99th percentile.
    pub duration_p99_s: Option<f64>,
    /// Requests in flight at most.
    pub in_flight_max: u64,
    /// Requests in flight in the mean, from the first one's start to the last one's end.
    pub in_flight_mean: Option<f64>,
    /// Connections opened.
    pub connections: u64,
    /// When the first request was sent, boottime nanoseconds.
    pub first_start_ns: Option<u64>,
    /// When the last one ended, boottime nanoseconds.
    pub last_end_ns: Option<u64>,
}

/// One line of a load's log: a request as its client saw it. Times are `CLOCK_BOOTTIME`
/// nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestLog {
    /// Its name, also in the truth file.
    pub x_request_id: String,
    /// When it was sent.
    pub start_ns: u64,
    /// When the first of the answer's body had come.
    pub first_data_ns: Option<u64>,
    /// When the answer had ended, or the client left.
    pub end_ns: u64,
    /// Server-sent events, without `[DONE]`.
    pub chunks: u64,
    /// `completed`, `aborted` or `failed`.
    pub outcome: String,
}

/// Counts while the load runs.
#[derive(Default)]
pub(crate) struct Tally {
    log: Option<Box<dyn Write>>,
    log_failure: Option<io::Error>,
    in_flight: u64,
    in_flight_max: u64,
    sent: u64,
    completed: u64,
    aborted: u64,
    failed: u64,
    first_failure: Option<String>,
    chunks: u64,
    chunks_aborted: u64,
    tokens_in: u64,
    tokens_out: u64,
    ttft_s: Vec<f64>,
    duration_s: Vec<f64>,
    busy_s: f64,
    connections: u64,
    first_start_ns: Option<u64>,
    last_end_ns: Option<u64>,
}

impl Tally {
    pub(crate) fn new(log: Option<Box<dyn Write>>) -> Self {
        Self {
            log,
            ..Self::default()
        }
    }

    pub(crate) fn sent(&mut self) {
        self.first_start_ns.get_or_insert_with(boottime_ns);
        self.sent += 1;
        self.in_flight += 1;
        self.in_flight_max = self.in_flight_max.max(self.in_flight);
    }

    pub(crate) fn landed(
        &mut self,
        planned: &Planned,
        flown: &Flown,
        config: &LoadConfig,
        connections: u64,
    ) {
        if let Err(error) = self.write_log(planned, flown, config) {
            self.log_failure.get_or_insert(error);
        }
        let seconds = |at_ns: u64| at_ns.saturating_sub(flown.start_ns) as f64 * 1e-9;
        self.in_flight -= 1;
        self.connections = connections;
        self.busy_s += seconds(flown.end_ns);
        self.last_end_ns = self.last_end_ns.max(Some(flown.end_ns));
        match &flown.ended {
            Ended::Whole => {
                self.completed += 1;
                self.chunks += flown.chunks;
                self.tokens_in += planned.prompt_tokens;
                self.tokens_out += flown.output_tokens;
                self.duration_s.push(seconds(flown.end_ns));
                if planned.stream {
                    self.ttft_s.extend(flown.first_data_ns.map(seconds));
                }
            }
            Ended::Left => {
                self.aborted += 1;
                self.chunks_aborted += flown.chunks;
            }
            Ended::Failed(reason) => {
                self.failed += 1;
                self.first_failure.get_or_insert_with(|| reason.clone());
            }
        }
    }

    fn write_log(
        &mut self,
        planned: &Planned,
        flown: &Flown,
        config: &LoadConfig,
    ) -> io::Result<()> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let outcome = match flown.ended {
            Ended::Whole => "completed",
            Ended::Left => "aborted",
            Ended::Failed(_) => "failed",
        };
        let mut line = serde_json::to_vec(&RequestLog {
            x_request_id: planned.x_request_id(config.seed),
            start_ns: flown.start_ns,
            first_data_ns: flown.first_data_ns,
            end_ns: flown.end_ns,
            chunks: flown.chunks,
            outcome: outcome.to_owned(),
        })?;
        line.push(b'\n');
        log.write_all(&line)
    }

    /// What came of it; the error is the log's.
    pub(crate) fn summary(&mut self) -> io::Result<Summary> {
        match self.log_failure.take() {
            Some(failure) => Err(failure),
            None => Ok(self.counts()),
        }
    }

    fn counts(&self) -> Summary {
        let span_s = self
            .first_start_ns
            .zip(self.last_end_ns)
            .map(|(first, last)| last.saturating_sub(first) as f64 * 1e-9);
        Summary {
            sent: self.sent,
            completed: self.completed,
            aborted: self.aborted,
            failed: self.failed,
            first_failure: self.first_failure.clone(),
            chunks: self.chunks,
            chunks_aborted: self.chunks_aborted,
            tokens_in: self.tokens_in,
            tokens_out: self.tokens_out,
            ttft_p50_s: quantile(&self.ttft_s, 0.5),
            ttft_p99_s: quantile(&self.ttft_s, 0.99),
            duration_p50_s: quantile(&self.duration_s, 0.5),
            duration_p99_s: quantile(&self.duration_s, 0.99),
            in_flight_max: self.in_flight_max,
            in_flight_mean: span_s
                .filter(|span| *span > 0.0)
                .map(|span| self.busy_s / span),
            connections: self.connections,
            first_start_ns: self.first_start_ns,
            last_end_ns: self.last_end_ns,
        }
    }
}

/// The smallest value that at least this share of the values does not exceed.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(100.0));
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&[3.0], 0.99), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
