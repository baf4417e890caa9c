//! A simulated driver, and the source that reads it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use gpu_state::GpuState;
use nvml_sim::Scenario;
use profiler::ledger::{Event, Meter, MeterId, Reading};
use profiler::meters::{Config, News, Running, SourceState, discover};
use profiler::telemetry::GpuTelemetry;

/// The library plays one scenario a process: its users take turns.
static TURN: Mutex<()> = Mutex::new(());
static PANICS: AtomicUsize = AtomicUsize::new(0);
static COUNT_PANICS: Once = Once::new();

/// A scenario that is played, alone in this process.
pub(crate) struct Driver {
    pub(crate) state: Arc<GpuState>,
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// The running source, and all it has told.
pub(crate) struct Source {
    pub(crate) running: Running,
    pub(crate) meters: Vec<Meter>,
    pub(crate) news: Vec<News>,
    receiver: Receiver<News>,
}

impl Driver {
    pub(crate) fn play(scenario: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        COUNT_PANICS.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                let thread = std::thread::current();
                if thread.name().is_some_and(|name| name.starts_with("nvml")) {
                    PANICS.fetch_add(1, Ordering::Relaxed);
                }
                usual(panic);
            }));
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("scenario.toml");
        let lines = format!("gpu_state = \"gpu\"\ncall_log = \"calls\"\n{scenario}");
        fs::write(&path, lines).expect("a scenario");
        let scenario = Scenario::load(&path).expect("a scenario");
        let state = Arc::new(scenario.open_state().expect("a state"));
        // SAFETY: tests take turns, and no other thread reads the environment meanwhile.
        unsafe { std::env::set_var(nvml_sim::SCENARIO_VARIABLE, &path) };
        Self {
            state,
            folder,
            _turn: turn,
        }
    }

    /// Where the agent looks.
    pub(crate) fn config(&self) -> Config {
        Config {
            nvml_library: Some(library().into()),
            // Other meters tell nothing here.
            powercap: "/nonexistent".into(),
            pmu: "/nonexistent".into(),
            cpus: "/nonexistent".into(),
            hwmon: "/nonexistent".into(),
            ipmi: None,
            node_power: None,
            proc: "/nonexistent".into(),
        }
    }

    /// Starts the source as the agent does.
    pub(crate) fn start(&self) -> Source {
        let (sender, receiver) = mpsc::channel();
        let mut meters = Vec::new();
        let add = |meter| {
            meters.push(meter);
            MeterId(meters.len() as u32 - 1)
        };
        let running = discover(&self.config())
            .start(add, sender)
            .expect("threads");
        Source {
            running,
            meters,
            news: Vec::new(),
            receiver,
        }
    }

    /// Waits for a moment of the scenario, seconds.
    pub(crate) fn wait_until(&self, seconds: u64) {
        let moment = self.state.created_ns() + seconds * 1_000_000_000;
        let left = moment.saturating_sub(gpu_state::boottime_ns());
        std::thread::sleep(Duration::from_nanos(left));
    }

    /// How often a function or field was asked for.
    pub(crate) fn calls(&self, name: &str) -> usize {
        let log = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        log.lines().filter(|line| *line == name).count()
    }
}

impl Source {
    /// Takes news for `time`, or until `enough` of them have come.
    pub(crate) fn listen(&mut self, time: Duration, enough: impl Fn(&[News]) -> bool) -> bool {
        let until = Instant::now() + time;
        while !enough(&self.news) {
            let left = until.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(News::Board(board)) => {
                    let meter = board.meter().expect("it can be metered");
                    let id = MeterId(self.meters.len() as u32);
                    self.meters.push(meter);
                    self.running.add_board(*board, id);
                }
                Ok(news) => self.news.push(news),
                Err(_) => return false,
            }
        }
        true
    }

    /// The same for the whole time.
    pub(crate) fn listen_for(&mut self, time: Duration) {
        self.listen(time, |_| false);
    }

    pub(crate) fn readings(&self, meter: u32) -> Vec<Reading> {
        readings(&self.news, meter)
    }

    /// The last look at a board.
    pub(crate) fn telemetry(&self, device: &str) -> Option<GpuTelemetry> {
        let of = |news: &News| match news {
            News::Telemetry(told) if told.device == device => Some((**told).clone()),
            _ => None,
        };
        self.news.iter().rev().find_map(of)
    }

    /// How a source was, as told last.
    pub(crate) fn state(&self, name: &str) -> Option<SourceState> {
        let of = |news: &News| match news {
            News::State(state) if state.name == name => Some(state.clone()),
            _ => None,
        };
        self.news.iter().rev().find_map(of)
    }

    /// Ends it; nothing hangs and nothing has panicked.
    pub(crate) fn end(self) {
        assert_eq!(self.running.stop(), [""; 0]);
        assert_eq!(PANICS.load(Ordering::Relaxed), 0);
    }
}

pub(crate) fn readings(news: &[News], meter: u32) -> Vec<Reading> {
    let of = |news: &News| match news {
        News::Event(Event::Reading(reading)) if reading.meter.0 == meter => Some(*reading),
        _ => None,
    };
    news.iter().filter_map(of).collect()
}

/// Cargo builds the library's shared object beside the tests.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let mut folders = test.ancestors().skip(1);
    let found = folders.find_map(|folder| {
        let file = folder.join("libnvml_sim.so");
        file.exists().then_some(file)
    });
    found.expect("cargo builds the shared object with its tests")
}
