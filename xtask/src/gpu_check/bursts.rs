//! The simulated GPU's square wave: prompts whose reading takes as long as a burst is to last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use super::client::{Kind, ask};
use super::trace::boottime_s;

/// Prompt tokens that inference-sim works off in a second.
const TOKENS_PER_S: f64 = 14_000.0;

/// A prompt at the start of each period.
#[derive(Debug)]
pub(super) struct Bursts {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bursts {
    pub(super) fn start(address: &str, period_s: f64, on_s: f64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (address, stopped) = (address.to_owned(), Arc::clone(&stop));
        let kind = Kind {
            name: "burst",
            input: (on_s * TOKENS_PER_S).round() as u64,
            output: 1,
        };
        let thread = spawn(move || {
            let start = boottime_s();
            let tokens = AtomicU64::new(0);
            let mut begin = start;
            while !stopped.load(Ordering::Relaxed) {
                sleep(Duration::from_secs_f64((begin - boottime_s()).max(0.0)));
                if ask(&address, kind, "burst".to_owned(), &tokens).is_err() {
                    return;
                }
                // A burst that was missed is left out: the others stay where they belong.
                let periods = ((boottime_s() - start) / period_s).ceil();
                begin = start + periods * period_s;
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Bursts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends after the burst that is on its way.
            let _ = thread.join();
        }
    }
}
