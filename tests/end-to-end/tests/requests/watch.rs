//! The probe, attached for one test, and what it told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use profiler::ledger::{Outcome, Owner, Route, ServiceId};
use profiler::probes::health::{Tier, Verdict};
use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;
use profiler::probes::requests::{Observed, RequestProbe};

/// One test at a time: each counts what happens on this machine.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other test is at work.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) const SERVICE: ServiceId = ServiceId(40);

pub(crate) struct Watch {
    pub(crate) probe: RequestProbe,
    pub(crate) owners: Owners,
    pub(crate) loader: Loader,
    pub(crate) told: Vec<Observed>,
    _turn: MutexGuard<'static, ()>,
}

/// The tier these tests run on: `PERJOULE_REQUEST_TIER`, else the first that works.
pub(crate) fn tier() -> Option<Tier> {
    let name = std::env::var("PERJOULE_REQUEST_TIER").ok()?;
    Some(name.parse().expect("a tier"))
}

fn route(path: &[u8]) -> Route {
    match path {
        b"/v1/completions" => Route::Completions,
        b"/health" => Route::Health,
        b"/inference.GRPCInferenceService/ModelInfer" => Route::ModelInfer,
        b"/inference.GRPCInferenceService/ModelStreamInfer" => Route::ModelStreamInfer,
        _ => Route::Other,
    }
}

impl Watch {
    /// Attaches the probe; `None`, with the reason printed, where the kernel cannot be probed.
    pub(crate) fn attach() -> Option<Self> {
        Self::attach_with(|_| {})
    }

    /// The same, with other options than usual.
    pub(crate) fn attach_with(configure: impl FnOnce(&mut Options)) -> Option<Self> {
        let turn = alone();
        if !end_to_end::is_root("the request probe") {
            return None;
        }
        let mut options = Options::default();
        Owners::configure(&mut options);
        RequestProbe::configure(&mut options);
        configure(&mut options);
        let mut loader = match Loader::new(&options) {
            Ok(loader) => loader,
            Err(error) => {
                end_to_end::skipped(&format!("{error}: {}", error.fix()));
                return None;
            }
        };
        let mut owners = Owners::attach(&mut loader).expect("the owners table");
        let probe = match RequestProbe::attach(&mut loader, &mut owners, tier()) {
            Ok(probe) => probe,
            // Which tiers a kernel offers is not the tests' to say; one it offers must work.
            Err(error) if tier().is_some() && error.verdict() == Verdict::Unsupported => {
                end_to_end::skipped(&error.to_string());
                return None;
            }
            Err(error) => panic!("the request probe: {error}"),
        };
        Some(Self {
            probe,
            owners,
            loader,
            told: Vec::new(),
            _turn: turn,
        })
    }

    /// The probe, with this test's own process as the service: its servers are threads.
    pub(crate) fn this_process() -> Option<Self> {
        let mut watch = Self::attach()?;
        watch.serve(std::process::id());
        Some(watch)
    }

    pub(crate) fn serve(&mut self, tgid: u32) {
        assert!(self.owners.set(tgid, Owner::Service(SERVICE)));
    }

    pub(crate) fn poll(&mut self) {
        self.probe.follow_rings(&mut self.loader);
        self.probe.poll(&self.owners, route, &mut self.told);
    }

    /// Ended requests on `port`, in the order they were told.
    pub(crate) fn ended(&self, port: u16) -> Vec<Observed> {
        let ended = |seen: &&Observed| seen.port == port && seen.request.end.is_some();
        self.told.iter().filter(ended).copied().collect()
    }

    /// Polls until `count` requests on `port` have ended, and a little longer: one too many
    /// would be told too.
    pub(crate) fn wait(&mut self, port: u16, count: usize) -> Vec<Observed> {
        let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(5));
        while self.ended(port).len() < count && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
            self.poll();
        }
        std::thread::sleep(Duration::from_millis(50));
        self.poll();
        let ended = self.ended(port);
        assert_eq!(ended.len(), count, "{:?}", self.probe.losses());
        self.check_stories();
        ended
    }

    /// Each request is told in order, and ends once.
    fn check_stories(&self) {
        use std::collections::HashMap;
        let mut stories: HashMap<u64, &Observed> = HashMap::new();
        for seen in &self.told {
            if let Some(before) = stories.insert(seen.request.id.0, seen) {
                assert!(before.request.end.is_none(), "told after its end: {seen:?}");
                assert!(seen.request.chunks >= before.request.chunks);
                assert!(seen.at >= before.at);
                assert_eq!(seen.request.start, before.request.start);
            }
        }
    }
}

pub(crate) fn outcome(seen: &Observed) -> Option<Outcome> {
    seen.request.end.map(|end| end.outcome)
}
