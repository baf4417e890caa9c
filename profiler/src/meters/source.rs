//! What every source of energy has in common: a thread that can be stopped, and its health.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::News;
use super::nvml::{Board, Roster};
use crate::clock::Timestamp;
use crate::ledger::{Event, MeterId};

/// How long [`Running::stop`] waits for a thread before it leaves it behind.
const PATIENCE: Duration = Duration::from_millis(500);
/// Calls whose latency is remembered.
const REMEMBERED: usize = 512;
/// Sources call at least so often, unless they say otherwise.
const USUALLY: Duration = Duration::from_secs(2);
/// How often a source says how it is.
const STATE_EVERY: Duration = Duration::from_secs(1);

/// A source's health, as its thread last told it. A thread that hangs in a call tells nothing:
/// its age is what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceState {
    /// `nvml`, `nvml-telemetry`, `rapl`, `hwmon`, `ipmi`, `external` or `model`.
    pub name: &'static str,
    /// Between two calls, at most.
    pub every: Duration,
    /// Whether all of its devices answered when last asked.
    pub up: bool,
    /// When a call last succeeded.
    pub last_at: Option<Timestamp>,
    /// Calls made so far.
    pub calls: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Wall time spent inside calls so far.
    pub busy: Duration,
    /// Median latency of the latest 512 calls.
    pub latency_p50: Option<Duration>,
    /// Its 99th percentile.
    pub latency_p99: Option<Duration>,
    /// What is wrong; `None` while up.
    pub error: Option<String>,
}

impl SourceState {
    /// Of a source that has not called yet, and will at least so often.
    pub(crate) fn new(name: &'static str, every: Duration) -> Self {
        Self {
            name,
            every,
            up: false,
            last_at: None,
            calls: 0,
            errors: 0,
            busy: Duration::ZERO,
            latency_p50: None,
            latency_p99: None,
            error: None,
        }
    }
}

/// Counts a source's calls and says how it is.
#[derive(Debug)]
pub(super) struct Health {
    state: SourceState,
    latencies: VecDeque<u64>,
    told: Option<Timestamp>,
    /// The state changed in a way that should not wait for the next second.
    turned: bool,
}

impl Health {
    pub(super) fn new(name: &'static str) -> Self {
        Self::seldom(name, USUALLY)
    }

    /// Of a source that calls so seldom.
    pub(super) fn seldom(name: &'static str, every: Duration) -> Self {
        Self {
            state: SourceState::new(name, every),
            latencies: VecDeque::new(),
            told: None,
            turned: true,
        }
    }

    /// Books a call that ran from `start` to `end`.
    pub(super) fn called(&mut self, start: Timestamp, end: Timestamp, succeeded: bool) {
        let took = end.since(start);
        self.state.calls += 1;
        self.state.busy += Duration::from_nanos(took);
        if self.latencies.len() == REMEMBERED {
            self.latencies.pop_front();
        }
        self.latencies.push_back(took);
        if succeeded {
            self.state.last_at = Some(end);
        } else {
            self.state.errors += 1;
        }
    }

    /// Says what is wrong at present with any of the source's devices; `None` for nothing.
    pub(super) fn is(&mut self, failure: Option<String>) {
        self.turned |= self.state.up != failure.is_none();
        self.state.up = failure.is_none();
        self.state.error = failure;
    }

    /// The source cannot even be called.
    pub(super) fn down(&mut self, failure: String) {
        self.state.errors += 1;
        self.is(Some(failure));
    }

    /// When a call last succeeded.
    pub(super) fn last_at(&self) -> Option<Timestamp> {
        self.state.last_at
    }

    /// The 99th percentile of the remembered calls' latency; `None` before the first call.
    fn latency_p99(&self) -> Option<Duration> {
        self.percentile(0.99)
    }

    fn percentile(&self, part: f64) -> Option<Duration> {
        let mut sorted: Vec<u64> = self.latencies.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted
            .get((last as f64 * part).round() as usize)
            .copied()
            .map(Duration::from_nanos)
    }

    /// The state, if it is time to tell it.
    pub(super) fn due(&mut self, now: Timestamp) -> Option<SourceState> {
        let waited = self.told.is_none_or(|told| now >= told.plus(STATE_EVERY));
        if !waited && !self.turned {
            return None;
        }
        self.told = Some(now);
        self.turned = false;
        self.state.latency_p50 = self.percentile(0.5);
        self.state.latency_p99 = self.latency_p99();
        Some(self.state.clone())
    }
}

/// The agent has gone: nobody takes the news any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deaf;

/// Where a source sends its news.
#[derive(Debug, Clone)]
pub(super) struct Feed(pub(super) Sender<News>);

impl Feed {
    pub(super) fn event(&self, event: Event) -> Result<(), Deaf> {
        self.news(News::Event(event))
    }

    pub(super) fn news(&self, news: News) -> Result<(), Deaf> {
        self.0.send(news).map_err(|_| Deaf)
    }

    pub(super) fn health(&self, health: &mut Health) -> Result<(), Deaf> {
        health
            .due(Timestamp::now())
            .map_or(Ok(()), |state| self.news(News::State(state)))
    }
}

/// Tells threads to end or to do less, and is what they sleep on.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    stopped: Mutex<bool>,
    bell: Condvar,
    rests: AtomicBool,
}

impl Stop {
    fn set(&self) {
        *self
            .0
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.0.bell.notify_all();
    }

    /// Whether nobody is served at present.
    pub(super) fn rests(&self) -> bool {
        self.0.rests.load(Ordering::Relaxed)
    }

    /// Sleeps until `moment`. True if the thread must end.
    pub(super) fn wait_until(&self, moment: Timestamp) -> bool {
        let Told { stopped, bell, .. } = &*self.0;
        let mut stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = moment.since(Timestamp::now());
            if *stopped || left == 0 {
                return *stopped;
            }
            let waited = bell.wait_timeout(stopped, Duration::from_nanos(left));
            stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The threads of all sources. Dropping it stops them like [`Self::stop`].
#[derive(Debug, Default)]
pub struct Running {
    stop: Stop,
    threads: Vec<(&'static str, JoinHandle<()>)>,
    /// Boards that NVML's threads meter.
    boards: Roster,
}

impl Running {
    /// Tells the sources whether nobody is served at present: they may do less then. They notice
    /// at their next read.
    pub fn set_rest(&self, rests: bool) {
        self.stop.0.rests.store(rests, Ordering::Relaxed);
    }

    /// From now on follows a board that came after the start; `meter` is what the ledger made of
    /// [`Board::meter`].
    pub fn add_board(&self, board: Board, meter: MeterId) {
        self.boards.add(board, meter);
    }

    /// Where NVML's threads look for boards to meter.
    pub(super) fn meter_later_boards(&mut self, roster: Roster) {
        self.boards = roster;
    }

    /// Starts one source's thread.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        body: impl FnOnce(Stop) + Send + 'static,
    ) -> std::io::Result<()> {
        let stop = self.stop.clone();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || body(stop))?;
        self.threads.push((name, thread));
        Ok(())
    }

    /// Ends all threads, within half a second. Returns those that hang in a call: they are left
    /// behind, because a thread must not be killed inside the driver.
    pub fn stop(mut self) -> Vec<&'static str> {
        self.end()
    }

    fn end(&mut self) -> Vec<&'static str> {
        self.stop.set();
        let deadline = Instant::now() + PATIENCE;
        while self.threads.iter().any(|(_, thread)| !thread.is_finished())
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(1));
        }
        let mut hung = Vec::new();
        for (name, thread) in self.threads.drain(..) {
            if !thread.is_finished() {
                hung.push(name);
            } else if thread.join().is_err() {
                log::error!("the thread of {name} panicked");
            }
        }
        hung
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread_ends_at_once_and_a_hanging_one_is_named_and_left_behind() {
        let mut running = Running::default();
        let spawned = running.spawn("sleeper", |stop| {
            stop.wait_until(Timestamp::now().plus(Duration::from_secs(60)));
        });
        assert!(spawned.is_ok());
        assert!(running.stop().is_empty(), "ended within half a second");

        let mut running = Running::default();
        let spawned = running.spawn("hung", |_| thread::sleep(Duration::from_secs(5)));
        assert!(spawned.is_ok());
        let start = Instant::now();
        assert_eq!(running.stop(), ["hung"]);
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn a_failure_is_told_at_once_and_success_clears_it() {
        let mut health = Health::new("rapl");
        let at = |milliseconds: u64| Timestamp(1_000_000_000_000 + milliseconds * 1_000_000);
        health.called(at(0), at(1), true);
        health.is(None);
        assert!(
            health
                .due(at(1))
                .is_some_and(|state| state.up && state.error.is_none())
        );
        health.called(at(2), at(3), true);
        health.is(None);
        assert_eq!(
            health.due(at(3)),
            None,
            "nothing new within the same second"
        );
        health.called(at(4), at(10), false);
        health.is(Some("lost".into()));
        let state = health.due(at(10)).expect("a failure does not wait");
        assert!(!state.up);
        assert_eq!(
            (state.calls, state.errors, state.last_at),
            (3, 1, Some(at(3)))
        );
        assert_eq!(state.error.as_deref(), Some("lost"));
        assert_eq!(state.latency_p99, Some(Duration::from_millis(6)));
        assert_eq!(state.busy, Duration::from_millis(8));
    }
}
