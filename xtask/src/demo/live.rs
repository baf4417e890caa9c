//! The table that grows while the load runs: one row a second and service.

use std::collections::BTreeMap;
use std::time::Duration;

use super::recording::Recording;
use super::summary::quantile;

/// Rows are over the last few seconds, so that a figure is not one request's.
const WINDOW_S: f64 = 5.0;

/// Prints rows on stderr.
#[derive(Debug)]
pub(super) struct Table {
    rows: u64,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { rows: 0 }
    }

    pub(super) fn row(&mut self, elapsed: Duration, recording: &Recording) {
        let Some(now) = recording.intervals.iter().map(|i| i.to_s).reduce(f64::max) else {
            return;
        };
        if self.rows.is_multiple_of(20) {
            eprintln!(
                "\n{:>4}  {:<16} {:>7} {:>8} {:>7} {:>8} {:>8} {:>8} {:>7} {:>9}",
                "s",
                "service",
                "req/s",
                "tokens/s",
                "W",
                "J/req",
                "J/req",
                "J/token",
                "idle W",
                "residual"
            );
            eprintln!(
                "{:>4}  {:<16} {:>7} {:>8} {:>7} {:>8} {:>8} {:>8} {:>7} {:>9}",
                "", "", "", "", "", "p50", "p95", "", "", "µJ"
            );
        }
        self.rows += 1;

        let recent: Vec<_> = recording
            .intervals
            .iter()
            .rev()
            .take_while(|i| i.to_s > now - WINDOW_S)
            .collect();
        let seconds: f64 = {
            let from = recent.iter().map(|i| i.from_s).fold(now, f64::min);
            (now - from).max(1e-9)
        };
        let watts = |energy: u64| energy as f64 * 1e-6 / seconds;
        let active = watts(recent.iter().map(|i| i.accounts_uj.requests).sum());
        let idle = watts(recent.iter().map(|i| i.accounts_uj.idle).sum());
        let residual: i128 = recording
            .intervals
            .iter()
            .map(|i| i128::from(i.energy_uj) - i128::from(i.accounts_uj.total))
            .sum();

        let mut services: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for request in &recording.requests {
            services.entry(&request.service).or_default().push(request);
        }
        for (service, requests) in services {
            let ended: Vec<_> = requests
                .iter()
                .filter(|r| r.end_s > now - WINDOW_S)
                .collect();
            let mut joules: Vec<f64> = requests
                .iter()
                .filter_map(|r| Some(r.gpu_uj? as f64 * 1e-6))
                .collect();
            let total: f64 = joules.iter().sum();
            let chunks: u64 = requests.iter().map(|r| r.chunks).sum();
            let tokens_per_s = ended.iter().map(|r| r.chunks).sum::<u64>() as f64 / seconds;
            joules.sort_by(f64::total_cmp);
            eprintln!(
                "{:>4}  {:<16} {:>7.1} {:>8.0} {:>7.0} {:>8} {:>8} {:>8} {:>7.0} {:>9}",
                elapsed.as_secs(),
                service,
                ended.len() as f64 / seconds,
                tokens_per_s,
                active,
                shown(quantile(&joules, 0.50)),
                shown(quantile(&joules, 0.95)),
                shown((chunks > 0).then(|| total / chunks as f64)),
                idle,
                residual,
            );
        }
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}
