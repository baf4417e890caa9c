//! What an agent sees of the engine: a counter that ticks every 100 ms, read within 4 ms, and
//! requests as 20 ms polls find them.

use std::collections::HashMap;
use std::time::Duration;

use profiler::clock::Timestamp;
use profiler::ledger::*;
use profiler::units::{Microjoules, Watts};

use crate::engine::{History, Load, serve};
use crate::random::Random;

const TICK: f64 = 0.1;
const POLL: f64 = 0.02;
const BRACKET: f64 = 0.004;
const SERVICE: ServiceId = ServiceId(7);

/// Estimate beside truth.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) estimate: f64,
    pub(crate) truth: f64,
    pub(crate) error_ratio: Option<f64>,
    pub(crate) class: Class,
}

impl Pair {
    /// |estimate − truth| ÷ truth.
    pub(crate) fn error(&self) -> f64 {
        (self.estimate - self.truth).abs() / self.truth
    }
}

/// What came out of one run.
pub(crate) struct Run {
    pub(crate) pairs: Vec<Pair>,
    pub(crate) floor: f64,
    pub(crate) kappa: f64,
    pub(crate) residual: i128,
}

impl Run {
    /// Σ estimates ÷ Σ truths.
    pub(crate) fn ratio(&self) -> f64 {
        let estimate: f64 = self.pairs.iter().map(|pair| pair.estimate).sum();
        estimate / self.pairs.iter().map(|pair| pair.truth).sum::<f64>()
    }

    /// A quantile of the requests' errors.
    pub(crate) fn error(&self, share: f64) -> f64 {
        quantile(self.pairs.iter().map(Pair::error), share)
    }

    /// The part of the requests with a bound whose truth lies within it.
    pub(crate) fn covered(&self) -> f64 {
        let (mut within, mut bounded) = (0.0, 0.0);
        for pair in &self.pairs {
            if let Some(ratio) = pair.error_ratio {
                let holds = (pair.estimate - pair.truth).abs() <= ratio * pair.estimate;
                within += f64::from(u8::from(holds));
                bounded += 1.0;
            }
        }
        if bounded > 0.0 { within / bounded } else { 1.0 }
    }

    /// A quantile of the requests' bounds.
    pub(crate) fn bound(&self, share: f64) -> f64 {
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

/// Serves the load and lets the ledger see what an agent would.
pub(crate) fn observe(load: Load) -> Run {
    let history = serve(load);
    let mut random = Random::new(load.seed ^ 0xABCD);
    let mut ledger = Ledger::new(Config {
        cpu: false,
        ..Config::default()
    });
    let meter = ledger.add_meter(Meter {
        component: Component::Gpu,
        device: "GPU-0".into(),
        source: Source::Counter,
        limit: Some(Watts(500.0)),
        tick: 100_000_000,
        stale_after: 2_000_000_000,
        gain_error_ratio: 0.05,
        idle: None,
    });
    ledger.apply(Event::Holders(Holders {
        meter,
        at: at(0.0),
        services: vec![SERVICE],
        others: 0,
    }));
    let mut told: HashMap<usize, usize> = HashMap::new();
    let mut booked = Vec::new();
    let phase = random.between(0.0, TICK);
    let (mut poll, mut tick) = (0_u32, 0_u32);
    let mut gauge = 0.0;
    loop {
        let next_poll = f64::from(poll) * POLL;
        let next_tick = phase + f64::from(tick) * TICK;
        if next_poll.min(next_tick) > history.end {
            break;
        }
        if next_tick < next_poll {
            tick += 1;
            let after = next_tick - random.between(0.0, BRACKET);
            let millijoules = (history.energy_at(next_tick) * 1e3) as u64;
            ledger.apply(Event::Reading(Reading {
                meter,
                after: at(after),
                until: at(after + BRACKET),
                energy: Microjoules::from_millijoules(millijoules),
            }));
        } else {
            poll += 1;
            if load.gauges.is_some_and(|every| next_poll >= gauge * every) {
                gauge += 1.0;
                ledger.apply(Event::Load(EngineLoad {
                    service: SERVICE,
                    asked: at(next_poll),
                    answered: at(next_poll + 0.004),
                    running: None,
                    waiting: Some(history.waiting(next_poll + 0.002, load)),
                }));
            }
            tell(&mut ledger, &history, next_poll, &mut told);
            ledger.apply(Event::RequestsUntil(at(next_poll)));
            booked.extend(ledger.advance(at(next_poll)));
        }
    }
    booked.extend(ledger.finish(at(history.end + 0.1)));
    let pairs = booked.iter().filter_map(|booked| match booked {
        Booked::Request(booked) => Some(Pair {
            estimate: booked.gpu?.joules().0,
            truth: history.requests[booked.request.id.0 as usize].joules,
            error_ratio: booked.error_ratio,
            class: booked.class,
        }),
        _ => None,
    });
    let pairs: Vec<Pair> = pairs.collect();
    assert_eq!(
        pairs.len(),
        history.requests.len(),
        "every request is booked once"
    );
    Run {
        pairs,
        floor: ledger.floor(meter).map_or(0.0, |floor| floor.watts.0),
        kappa: ledger.kappa(meter).unwrap_or(0.0),
        residual: ledger.residual_microjoules(meter),
    }
}

/// One poll: every request that changed since the last.
fn tell(ledger: &mut Ledger, history: &History, now: f64, told: &mut HashMap<usize, usize>) {
    for (place, served) in history.requests.iter().enumerate() {
        if served.start > now {
            break;
        }
        let last = served.tokens_at.last().copied().unwrap_or(served.start);
        let over = last + 0.0002 <= now;
        let sent = match served.streamed {
            true => served
                .tokens_at
                .iter()
                .take_while(|sent| **sent <= now)
                .count(),
            false => usize::from(over),
        };
        let state = 1 + sent + usize::from(over) * 1_000_000;
        if told.insert(place, state) == Some(state) {
            continue;
        }
        let data = |index: usize| served.tokens_at.get(index).copied().map(at);
        let (first, latest) = match (served.streamed, sent) {
            (_, 0) => (None, None),
            (true, sent) => (data(0), data(sent - 1)),
            (false, _) => (Some(at(last)), Some(at(last))),
        };
        ledger.apply(Event::Request {
            at: at(now),
            request: Request {
                id: RequestId(place as u64),
                service: SERVICE,
                route: Route::ChatCompletions,
                start: at(served.start),
                first_data: first,
                last_data: latest,
                input: Input::Bytes(served.input_bytes),
                chunks: if served.streamed { sent as u64 } else { 0 },
                streamed: served.streamed && sent > 0,
                status: 200,
                end: over.then(|| End {
                    at: at(last + 0.0002),
                    outcome: Outcome::Done,
                }),
            },
        });
    }
}
