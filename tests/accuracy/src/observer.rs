//! What an agent sees of the engine: a counter that ticks every 100 ms, read within 4 ms, or power
//! readings of a 25 ms window every 100 ms, and requests as 20 ms polls find them.

use std::collections::BTreeMap;
use std::time::Duration;

use profiler::clock::Timestamp;
use profiler::ledger::*;
use profiler::meters::integrate::Integrator;
use profiler::units::{Microjoules, Watts};

use crate::engine::{History, Load, Served, serve};
use crate::methods::{Others, others};
use crate::random::Random;

/// Between two changes of the counter, seconds.
pub const TICK: f64 = 0.1;
const POLL: f64 = 0.02;
const BRACKET: f64 = 0.004;
/// What a power reading is the mean of, seconds.
const POWER_WINDOW: f64 = 0.025;
/// Between the last chunk and the response's end, seconds.
const CLOSING: f64 = 0.0002;

/// How the agent looks.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// An energy counter, or power that is integrated.
    pub source: Source,
    /// A prefill speed that is held, as a multiple of the true one; learned if `None`.
    pub held_speed: Option<f64>,
    /// Seconds between two reads of the engine's queue, if it is read.
    pub gauges: Option<f64>,
    /// It counts a request until its first token is out, not until its prompt is taken up.
    pub counts_prompts: bool,
}

impl Default for Sight {
    fn default() -> Self {
        Self {
            source: Source::Counter,
            held_speed: None,
            gauges: None,
            counts_prompts: false,
        }
    }
}

/// Estimates beside truth.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The ledger's, joules.
    pub estimate: f64,
    /// The engine's, joules.
    pub truth: f64,
    /// The published bound.
    pub error_ratio: Option<f64>,
    /// The published class.
    pub class: Class,
    /// What other methods say.
    pub others: Others,
}

impl Pair {
    /// |estimate − truth| ÷ truth.
    pub fn error(&self) -> f64 {
        (self.estimate - self.truth).abs() / self.truth
    }
}

/// A service's sum over a run.
#[derive(Debug, Clone, Copy)]
pub struct Sum {
    /// Which service's.
    pub service: ServiceId,
    /// What its requests got, joules.
    pub estimate: f64,
    /// What they took.
    pub truth: f64,
    /// The sum's published bound.
    pub error_ratio: Option<f64>,
}

impl Sum {
    /// |estimate − truth| ÷ truth.
    pub fn error(&self) -> f64 {
        (self.estimate - self.truth).abs() / self.truth
    }

    fn is_within(&self) -> bool {
        let bound = self.error_ratio.unwrap_or(f64::INFINITY);
        (self.estimate - self.truth).abs() <= bound * self.estimate
    }
}

/// What came out of one run, or of several.
#[derive(Default, Debug)]
pub struct Run {
    /// All requests.
    pub pairs: Vec<Pair>,
    /// Each service's sum, of each run.
    pub sums: Vec<Sum>,
    /// The idle floor that was learned, watts.
    pub floor: f64,
    /// The ratio of prefill to decode power that was learned.
    pub kappa: f64,
    /// Σ over meters of |counter − accounts|, from the ledger's integers, µJ.
    pub residual: i128,
    /// What the meters measured, and Σ over the accounts of all booked intervals, µJ.
    pub measured: u64,
    /// See `measured`.
    pub accounted: u64,
    /// Requests in flight on average.
    pub in_flight: f64,
}

impl Run {
    /// Joins runs of the same kind.
    pub fn joined(runs: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        let mut count = 0.0;
        for run in runs {
            all.pairs.extend(run.pairs);
            all.sums.extend(run.sums);
            all.residual += run.residual;
            all.measured += run.measured;
            all.accounted += run.accounted;
            count += 1.0;
            all.floor += (run.floor - all.floor) / count;
            all.kappa += (run.kappa - all.kappa) / count;
            all.in_flight += (run.in_flight - all.in_flight) / count;
        }
        all
    }

    /// Σ estimates ÷ Σ truths.
    pub fn ratio(&self) -> f64 {
        let estimate: f64 = self.pairs.iter().map(|pair| pair.estimate).sum();
        estimate / self.pairs.iter().map(|pair| pair.truth).sum::<f64>()
    }

    /// How many sums the bound holds for.
    pub fn sums_within(&self) -> usize {
        self.sums.iter().filter(|sum| sum.is_within()).count()
    }

    /// The median of the sums' bounds.
    pub fn sums_bound(&self) -> f64 {
        let bound = |sum: &Sum| sum.error_ratio.unwrap_or(1.0);
        quantile(self.sums.iter().map(bound), 0.5)
    }

    /// The worst error of a sum.
    pub fn sums_error(&self) -> f64 {
        self.sums.iter().map(Sum::error).fold(0.0, f64::max)
    }

    /// The worst error of a service's sum over all runs.
    pub fn services_error(&self) -> f64 {
        let mut services: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for sum in &self.sums {
            let (estimate, truth) = services.entry(sum.service.0).or_default();
            *estimate += sum.estimate;
            *truth += sum.truth;
        }
        let errors = services
            .values()
            .map(|(estimate, truth)| (estimate / truth - 1.0).abs());
        errors.fold(0.0, f64::max)
    }

    /// A quantile of the requests' errors.
    pub fn error(&self, share: f64) -> f64 {
        quantile(self.pairs.iter().map(Pair::error), share)
    }

    /// A quantile of another method's errors.
    pub fn others_error(&self, method: impl Fn(&Others) -> f64, share: f64) -> f64 {
        let error = |pair: &Pair| (method(&pair.others) - pair.truth).abs() / pair.truth;
        quantile(self.pairs.iter().map(error), share)
    }

    /// The part of the requests with a bound whose truth lies within it.
    pub fn covered(&self) -> f64 {
        let bounded: Vec<(&Pair, f64)> = self
            .pairs
            .iter()
            .filter_map(|pair| Some((pair, pair.error_ratio?)))
            .collect();
        let within = bounded
            .iter()
            .filter(|(pair, ratio)| (pair.estimate - pair.truth).abs() <= ratio * pair.estimate)
            .count();
        if bounded.is_empty() {
            return 1.0;
        }
        within as f64 / bounded.len() as f64
    }

    /// The part of the requests that have a bound: that of the others is above 1.
    pub fn bounded(&self) -> f64 {
        let bounded = self.pairs.iter().filter(|pair| pair.error_ratio.is_some());
        bounded.count() as f64 / self.pairs.len().max(1) as f64
    }

    /// A quantile of the requests' bounds; one that is suppressed counts as 1.
    pub fn bound(&self, share: f64) -> f64 {
        quantile(
            self.pairs
                .iter()
                .map(|pair| pair.error_ratio.unwrap_or(1.0)),
            share,
        )
    }
}

fn quantile(values: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share) as usize]
}

fn at(seconds: f64) -> Timestamp {
    Timestamp(0).plus(Duration::from_secs_f64(1_000.0 + seconds))
}

fn service(engine: usize) -> ServiceId {
    ServiceId(7 + engine as u32)
}

/// One GPU's meter.
struct Watched {
    meter: MeterId,
    gpu: usize,
    phase: f64,
    ticks: u32,
    integrator: Option<Integrator>,
}

impl Watched {
    fn next(&self) -> f64 {
        self.phase + f64::from(self.ticks) * TICK
    }

    fn read(&mut self, history: &History, random: &mut Random) -> Reading {
        let now = self.next();
        self.ticks += 1;
        let (after, energy) = match &mut self.integrator {
            None => {
                let millijoules = (history.energy_at(self.gpu, now) * 1e3) as u64;
                let after = now - random.between(0.0, BRACKET);
                (after, Microjoules::from_millijoules(millijoules))
            }
            Some(integrator) => {
                let joules = history.energy_at(self.gpu, now)
                    - history.energy_at(self.gpu, now - POWER_WINDOW);
                let watts = Watts((joules / POWER_WINDOW).max(0.0));
                (now, integrator.add(at(now + BRACKET / 2.0), watts))
            }
        };
        Reading {
            meter: self.meter,
            after: at(after),
            until: at(after + BRACKET),
            energy,
        }
    }
}

/// Serves the load and lets the ledger see what an agent would.
pub fn observe(load: Load, sight: Sight) -> Run {
    let history = serve(load);
    let mut random = Random::new(load.seed ^ 0xABCD);
    let mut ledger = Ledger::new(Config {
        cpu: false,
        prefill_speed: sight.held_speed.map(|part| part * load.prefill_speed),
        ..Config::default()
    });
    let mut meters: Vec<Watched> = (0..history.gpus())
        .map(|gpu| watch(&mut ledger, gpu, load, sight, &mut random))
        .collect();
    let mut told = vec![None; history.requests.len()];
    let mut over = 0;
    let mut booked = Vec::new();
    let mut poll = 0_u32;
    let mut gauge = 0.0;
    loop {
        let next_poll = f64::from(poll) * POLL;
        let earliest = meters
            .iter_mut()
            .min_by(|one, other| one.next().total_cmp(&other.next()));
        let reading = earliest.filter(|watched| watched.next() < next_poll);
        if next_poll > history.end {
            break;
        }
        if let Some(watched) = reading {
            ledger.apply(Event::Reading(watched.read(&history, &mut random)));
            continue;
        }
        poll += 1;
        if sight.gauges.is_some_and(|every| next_poll >= gauge * every) {
            gauge += 1.0;
            ledger.apply(Event::Load(EngineLoad {
                service: service(0),
                asked: at(next_poll),
                answered: at(next_poll + 0.004),
                running: None,
                waiting: Some(history.waiting(next_poll + 0.002, sight.counts_prompts)),
            }));
        }
        tell(&mut ledger, &history, next_poll, &mut told, &mut over);
        ledger.apply(Event::RequestsUntil(at(next_poll)));
        booked.extend(ledger.advance(at(next_poll)));
    }
    booked.extend(ledger.finish(at(history.end + 0.1)));
    sum_up(&history, &ledger, &meters, &booked)
}

fn watch(
    ledger: &mut Ledger,
    gpu: usize,
    load: Load,
    sight: Sight,
    random: &mut Random,
) -> Watched {
    let meter = ledger.add_meter(Meter {
        component: Component::Gpu,
        device: format!("GPU-{gpu}"),
        source: sight.source,
        limit: Some(Watts(500.0)),
        tick: 100_000_000,
        stale_after: 2_000_000_000,
        gain_error_ratio: 0.05,
        idle: None,
    });
    ledger.apply(Event::Holders(Holders {
        meter,
        at: at(0.0),
        services: (0..load.engines.max(1)).map(service).collect(),
        others: 0,
        instances: Vec::new(),
    }));
    Watched {
        meter,
        gpu,
        phase: random.between(0.0, TICK),
        ticks: 0,
        integrator: (sight.source == Source::Integrated)
            .then(|| Integrator::new(Duration::from_secs(2))),
    }
}

fn sum_up(history: &History, ledger: &Ledger, meters: &[Watched], booked: &[Booked]) -> Run {
    let others = others(history);
    let mut run = Run {
        floor: ledger
            .floor(meters[0].meter)
            .map_or(0.0, |floor| floor.watts.0),
        kappa: ledger.kappa(meters[0].meter).unwrap_or(0.0),
        residual: ledger.total_residual_microjoules(),
        in_flight: history.mean_in_flight(),
        ..Run::default()
    };
    let mut sums: BTreeMap<ServiceId, (Aggregate, f64)> = BTreeMap::new();
    for booked in booked {
        match booked {
            Booked::Request(booked) => {
                let place = booked.request.id.0 as usize;
                let (sum, truth) = sums.entry(booked.request.service).or_default();
                sum.add(booked);
                *truth += history.requests[place].joules;
                run.pairs.push(Pair {
                    estimate: booked.gpu.map_or(0.0, |energy| energy.joules().0),
                    truth: history.requests[place].joules,
                    error_ratio: booked.error_ratio(),
                    class: booked.class,
                    others: others[place],
                });
            }
            Booked::Interval(interval) => {
                run.measured += interval.energy.0;
                run.accounted += interval.accounts.total().0;
            }
            Booked::Hole { .. } => {}
        }
    }
    run.sums = sums
        .into_iter()
        .map(|(service, (sum, truth))| Sum {
            service,
            estimate: sum.active().map_or(0.0, |energy| energy.joules().0),
            truth,
            error_ratio: sum.error_ratio(),
        })
        .collect();
    assert_eq!(
        run.pairs.len(),
        history.requests.len(),
        "every request is booked once"
    );
    run
}

/// One poll: every request that changed since the last. Before `over` all have ended.
fn tell(
    ledger: &mut Ledger,
    history: &History,
    now: f64,
    told: &mut [Option<(usize, bool)>],
    over: &mut usize,
) {
    while matches!(told.get(*over), Some(Some((_, true)))) {
        *over += 1;
    }
    for (place, served) in history.requests.iter().enumerate().skip(*over) {
        if served.start > now {
            break;
        }
        let last = served.last();
        let ended = last + CLOSING <= now;
        let sent = match served.streamed {
            true => served.chunks_at.partition_point(|sent| *sent <= now),
            false => usize::from(ended),
        };
        let state = Some((sent, ended));
        if std::mem::replace(&mut told[place], state) != state {
            ledger.apply(Event::Request {
                at: at(now),
                request: as_seen(place, served, sent, ended),
            });
        }
    }
}

fn as_seen(place: usize, served: &Served, sent: usize, ended: bool) -> Request {
    let last = served.last();
    let data = |index: usize| served.chunks_at.get(index).copied().map(at);
    let (first, latest) = match (served.streamed, sent) {
        (_, 0) => (None, None),
        (true, sent) => (data(0), data(sent - 1)),
        (false, _) => (Some(at(last)), Some(at(last))),
    };
    Request {
        id: RequestId(place as u64),
        service: service(served.engine),
        route: Route::ChatCompletions,
        start: at(served.start),
        first_data: first,
        last_data: latest,
        input: Input::Bytes(served.input_bytes),
        chunks: if served.streamed { sent as u64 } else { 0 },
        streamed: served.streamed && sent > 0,
        status: 200,
        end: ended.then(|| End {
            at: at(last + CLOSING),
            outcome: Outcome::Done,
        }),
    }
}
