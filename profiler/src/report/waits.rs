//! What threads waited for, as the report tells it.

use std::collections::BTreeMap;

use super::model::{Seconds, ServiceReport, Switches, ThreadReport};
use crate::waits::{Reason, ThreadTimes, Waits};

/// One service's waits.
#[derive(Debug, Default)]
pub(super) struct WaitSums {
    waits: Option<Waits>,
    /// Nanoseconds by reason.
    starved: Option<BTreeMap<String, u64>>,
    threads: Option<Vec<ThreadReport>>,
}

impl WaitSums {
    /// The same reasons, with nothing waited for yet.
    pub(super) fn emptied(&self) -> Self {
        let starved = self.starved.as_ref();
        Self {
            waits: self.waits.as_ref().map(|_| Waits::default()),
            starved: starved
                .map(|starved| starved.keys().map(|reason| (reason.clone(), 0)).collect()),
            threads: None,
        }
    }

    pub(super) fn add(&mut self, waits: &Waits) {
        self.waits.get_or_insert_default().add(waits);
    }

    pub(super) fn add_starved(&mut self, reason: &str, nanos: u64) {
        let starved = self.starved.get_or_insert_default();
        match starved.get_mut(reason) {
            Some(sum) => *sum += nanos,
            None => {
                starved.insert(reason.to_owned(), nanos);
            }
        }
    }

    pub(super) fn add_thread(&mut self, name: &str, times: ThreadTimes) {
        let off = |reason| times.off_cpu(reason);
        self.threads.get_or_insert_default().push(ThreadReport {
            pid: times.tgid,
            tid: times.tid,
            name: name.to_owned(),
            cpu_s: seconds(times.on_cpu),
            run_queue_s: seconds(times.run_queue),
            off_cpu_s: by_reason(off),
            switches: Switches {
                voluntary: times.voluntary,
                involuntary: times.involuntary,
            },
            migrations: times.migrations,
        });
    }

    /// Fills in what is known.
    pub(super) fn report(&self, report: &mut ServiceReport) {
        if let Some(waits) = &self.waits {
            report.run_queue_s = Some(seconds(waits.run_queue));
            report.run_queue_wait_s = Seconds {
                p50: quantile(&waits.histogram, 0.50),
                p99: quantile(&waits.histogram, 0.99),
            };
            report.off_cpu_s = Some(by_reason(|reason| waits.off_cpu(reason)));
            report.switches = Some(Switches {
                voluntary: waits.voluntary,
                involuntary: waits.involuntary,
            });
            report.migrations = Some(waits.migrations);
        }
        report.gpu_starved_s = self.starved.as_ref().map(|starved| {
            let told = starved.iter();
            told.map(|(reason, nanos)| (reason.clone(), seconds(*nanos)))
                .collect()
        });
        report.threads.clone_from(&self.threads);
        if let Some(threads) = &mut report.threads {
            threads.sort_by(|one, other| other.cpu_s.total_cmp(&one.cpu_s));
        }
    }
}

fn by_reason(nanos: impl Fn(Reason) -> u64) -> BTreeMap<String, f64> {
    let told = |reason: Reason| (reason.name().to_owned(), seconds(nanos(reason)));
    Reason::ALL.into_iter().map(told).collect()
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A quantile, seconds, of waits that are counted by powers of two of nanoseconds: within its bucket they
/// are taken to be spread evenly.
fn quantile(counts: &[u64], quantile: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    let mut left = all as f64 * quantile;
    for (power, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        if left <= *count as f64 {
            let start = (1u64 << power) as f64;
            return Some(start * (1.0 + left / *count as f64) / 1e9);
        }
        left -= *count as f64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_in_the_bucket_that_holds_it() {
        let mut counts = [0; 40];
        assert_eq!(quantile(&counts, 0.5), None);
        (counts[10], counts[20]) = (98, 2);
        assert_eq!(quantile(&counts, 0.49), Some(1.536e-6));
        let p99 = quantile(&counts, 0.99).unwrap();
        assert!((1.048e-3..=2.098e-3).contains(&p99), "{p99}");
    }
}
