//! What the agent said beside what is true.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Bars;
use super::recording::{Recording, Request};
use super::stack::{Stack, Truth};

/// A booked request and a true one are the same if they began within this time of each other.
const SAME_START_S: f64 = 0.25;

/// The demo's result; energies are of GPUs, summed.
#[derive(Debug)]
pub(crate) struct Summary {
    served: usize,
    seen: usize,
    residual_microjoules: i128,
    energy_measured: f64,
    counter_delta: f64,
    energy_requests: f64,
    energy_requests_true: f64,
    error_median: Option<f64>,
    error_p95: Option<f64>,
    aborted: usize,
    load: Value,
    simulated: bool,
}

impl Summary {
    pub(super) fn new(recording: &Recording, stack: &Stack, load: &Value) -> Result<Self> {
        let truths = stack.truths()?;
        let intervals = &recording.intervals;
        ensure!(!intervals.is_empty(), "the agent booked no interval");

        // Per GPU: the counter at the first and at the last booked tick, read from the simulator.
        let mut devices: Vec<&str> = intervals.iter().map(|i| i.device.as_str()).collect();
        devices.sort_unstable();
        devices.dedup();
        let mut counter_delta = 0.0;
        for (index, device) in devices.iter().enumerate() {
            let of_device = || intervals.iter().filter(|i| i.device == **device);
            let from = of_device().map(|i| i.from_s).fold(f64::INFINITY, f64::min);
            let to = of_device().map(|i| i.to_s).fold(0.0, f64::max);
            counter_delta +=
                stack.counter_joules(index, to)? - stack.counter_joules(index, from)?;
        }

        let mut errors: Vec<f64> = pairs(&recording.requests, &truths)
            .filter_map(|(request, truth)| {
                let estimated = request.gpu_uj? as f64;
                let true_uj = truth.energy_uj as f64;
                (true_uj > 0.0).then(|| (estimated - true_uj).abs() / true_uj)
            })
            .collect();
        errors.sort_by(f64::total_cmp);

        Ok(Self {
            served: truths.len(),
            seen: recording.requests.len(),
            residual_microjoules: intervals
                .iter()
                .map(|i| i128::from(i.energy_uj) - i128::from(i.accounts_uj.total))
                .sum(),
            energy_measured: intervals.iter().map(|i| i.energy_uj as f64 * 1e-6).sum(),
            counter_delta,
            energy_requests: recording
                .requests
                .iter()
                .filter_map(|r| Some(r.gpu_uj? as f64 * 1e-6))
                .sum(),
            energy_requests_true: truths.iter().map(|t| t.energy_uj as f64 * 1e-6).sum(),
            error_median: quantile(&errors, 0.5),
            error_p95: quantile(&errors, 0.95),
            aborted: recording
                .requests
                .iter()
                .filter(|r| r.outcome == "aborted")
                .count(),
            load: load.clone(),
            simulated: recording.simulated,
        })
    }

    /// One compact line.
    pub(super) fn to_json(&self) -> String {
        json!({
            "requests_served": self.served,
            "requests_seen": self.seen,
            "requests_aborted": self.aborted,
            "residual_microjoules": self.residual_microjoules as i64,
            "energy_measured_joules": self.energy_measured,
            "counter_delta_joules": self.counter_delta,
            "energy_requests_joules": self.energy_requests,
            "energy_requests_true_joules": self.energy_requests_true,
            "request_energy_error_median": self.error_median,
            "request_energy_error_p95": self.error_p95,
            "load": self.load,
            "simulated": self.simulated,
        })
        .to_string()
    }

    /// For people.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        let percent = |ratio: Option<f64>| {
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2} %", ratio * 100.0))
        };
        let simulated = if self.simulated {
            "simulated"
        } else {
            "measured"
        };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\nRequests served {}, seen {}\n\
             GPU energy booked {:.2} J, counter {:.2} J ({simulated}); residual {} µJ\n\
             Energy of requests: estimated {:.2} J, true {:.2} J ({:+.2} %)\n\
             Error per request: median {}, p95 {}\n",
            self.served,
            self.seen,
            self.energy_measured,
            self.counter_delta,
            self.residual_microjoules,
            self.energy_requests,
            self.energy_requests_true,
            (self.energy_requests / self.energy_requests_true - 1.0) * 100.0,
            percent(self.error_median),
            percent(self.error_p95),
        );
        text
    }

    /// Fails with the first bar that is missed.
    pub(super) fn hold_against(&self, bars: &Bars) -> Result<()> {
        let Bars { rate, median, p95 } = *bars;
        ensure!(self.served > 0, "rate {rate}: nothing was served");
        ensure!(
            self.seen == self.served,
            "rate {rate}: seen {} of {}",
            self.seen,
            self.served
        );
        ensure!(
            self.residual_microjoules == 0,
            "rate {rate}: residual {} µJ",
            self.residual_microjoules
        );
        ensure!(
            (self.energy_measured - self.counter_delta).abs() <= 1.0,
            "rate {rate}: booked {} J, counter {} J",
            self.energy_measured,
            self.counter_delta
        );
        let ratio = self.energy_requests / self.energy_requests_true;
        ensure!(
            (ratio - 1.0).abs() <= 0.02,
            "rate {rate}: Σ requests is {ratio} of the truth"
        );
        ensure!(
            self.error_median.is_some_and(|error| error <= median),
            "rate {rate}: median error {:?} > {median}",
            self.error_median
        );
        ensure!(
            self.error_p95.is_some_and(|error| error <= p95),
            "rate {rate}: p95 error {:?} > {p95}",
            self.error_p95
        );
        ensure!(self.simulated, "a simulated GPU was not labelled so");
        Ok(())
    }
}

/// Each true request with the booked one that began with it. Of several that could be meant, the
/// one whose stream had as many chunks as there were tokens.
fn pairs<'a>(
    requests: &'a [Request],
    truths: &'a [Truth],
) -> impl Iterator<Item = (&'a Request, &'a Truth)> {
    let mut free: Vec<&Request> = requests.iter().collect();
    truths.iter().filter_map(move |truth| {
        let distance = |request: &&Request| {
            let apart = (request.start_s - truth.start_s).abs();
            // A chat stream has one chunk more: the role.
            let same = request.chunks.abs_diff(truth.output_tokens) <= 1;
            if same {
                apart
            } else {
                apart + SAME_START_S / 2.0
            }
        };
        let nearest =
            (0..free.len()).min_by(|a, b| distance(&free[*a]).total_cmp(&distance(&free[*b])))?;
        (distance(&free[nearest]) < SAME_START_S).then(|| (free.swap_remove(nearest), truth))
    })
}

/// The value below which a share `q` of the sorted values lies; `None` without values.
pub(super) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * q).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(start_s: f64, chunks: u64) -> Request {
        Request {
            service: "s".into(),
            start_s,
            end_s: start_s + 1.0,
            chunks,
            gpu_uj: Some(1),
            outcome: "done".into(),
        }
    }

    #[test]
    fn requests_that_begin_together_are_told_apart_by_their_tokens() {
        let requests = [request(1.000, 51), request(1.001, 9), request(3.0, 9)];
        let truths = [
            Truth {
                start_s: 1.0005,
                output_tokens: 8,
                energy_uj: 1,
            },
            Truth {
                start_s: 1.0012,
                output_tokens: 50,
                energy_uj: 1,
            },
            Truth {
                start_s: 2.0,
                output_tokens: 8,
                energy_uj: 1,
            },
        ];
        let found: Vec<_> = pairs(&requests, &truths)
            .map(|(r, t)| (r.chunks, t.output_tokens))
            .collect();
        assert_eq!(found, [(9, 8), (51, 50)]);
    }
}
