//! Recordings of a simulated engine, as a demo makes them, without its time passing.
//!
//! The engine and the load are inference-sim's: continuous batching, so that requests share steps; sizes of
//! prompts and answers as in public traces. On top of what requests truly cost come: power that drifts (an
//! autoregression with a memory of ten seconds), steps that a busy host holds up, requests that are sent
//! milliseconds late, and what the ledger owes one request to another.

use std::collections::BTreeMap;
use std::path::PathBuf;

use inference_sim::engine::batch::{Batch, Sequence};
use inference_sim::engine::model::EngineModel;
use inference_sim::load::{LoadConfig, plan};
use inference_sim::random::Random;
use profiler::clock::Timestamp;
use profiler::ledger::{
    BookedRequest, Class, End, ErrorRatios, Input, Outcome, Request, RequestId, Route, ServiceId,
};
use profiler::recording::{RecordedRequest, Recording};
use profiler::units::Microjoules;
use tempfile::TempDir;

/// What a run is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Requests a second.
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    /// Standard deviation of power's drift.
    pub(crate) drift: f64,
}

/// A folder of recordings.
pub(crate) struct Runs(TempDir);

impl Runs {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Records a run of a load; what is noise comes from its own seed. It draws `gain` times the usual.
    pub(crate) fn record(&self, run: Run, load: u64, noise: u64, gain: f64) -> PathBuf {
        let path = self.0.path().join(format!("{load}-{noise}.pj"));
        let mut recording = Recording::create(&path, "run", true).unwrap();
        recording.service(ServiceId(1), "vllm", None).unwrap();
        for booked in requests(run, load, noise, gain) {
            recording.request(&RecordedRequest::from(booked)).unwrap();
        }
        recording.close().unwrap();
        path
    }
}

fn normal(random: &mut Random) -> f64 {
    random.lognormal(1.0, 1.0).ln()
}

fn requests(run: Run, load: u64, noise: u64, gain: f64) -> Vec<BookedRequest> {
    let config = LoadConfig {
        rate: run.rate,
        seconds: run.seconds,
        seed: load,
        median_in: 900.0,
        sigma_in: 0.7,
        median_out: 140.0,
        sigma_out: 0.9,
        stream_share: 1.0,
        abort_share: 0.0,
        routes: Vec::new(),
        include_usage: false,
        model: String::new(),
    };
    // Its own sequence, far from the loads'.
    let mut random = Random::new(noise.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut arrivals: Vec<(u64, Sequence)> = plan(&config)
        .map(|planned| {
            let at = planned.at_s + 0.002 * random.exponential();
            let sequence = Sequence {
                id: planned.number,
                unread_tokens: planned.prompt_tokens,
                output_tokens: planned.output_tokens.max(1),
            };
            ((at * 1e9) as u64, sequence)
        })
        .collect();
    arrivals.sort_by_key(|(at, _)| *at);
    let mut booked: BTreeMap<u64, (BookedRequest, f64)> = BTreeMap::new();
    let mut batch = Batch::new(EngineModel::default());
    let mut arrivals = arrivals.into_iter().peekable();
    let (mut now, mut second, mut drift) = (0_u64, 0_u64, 0.0);
    loop {
        while let Some((at, sequence)) = arrivals.next_if(|(at, _)| *at <= now) {
            booked.insert(sequence.id, (request(at, &sequence), 0.0));
            batch.add(sequence);
        }
        while second <= now {
            second += 1_000_000_000;
            drift = 0.9 * drift + run.drift * 0.19_f64.sqrt() * normal(&mut random);
        }
        if random.uniform() < 0.000_5 {
            now += (0.3e9 * random.exponential()) as u64;
        }
        let Some(step) = batch.next_step() else {
            let Some((at, _)) = arrivals.peek() else {
                break;
            };
            now = *at;
            continue;
        };
        now += step.cost.duration_ns;
        for share in step.shares {
            let Some((booked, microjoules)) = booked.get_mut(&share.id) else {
                continue;
            };
            *microjoules += share.energy_uj as f64 * gain * (1.0 + drift);
            if share.tokens > 0 {
                booked.request.first_data.get_or_insert(Timestamp(now));
                booked.request.last_data = Some(Timestamp(now));
                booked.request.chunks += share.tokens;
            }
            if share.last {
                booked.request.end = Some(End {
                    at: Timestamp(now),
                    outcome: Outcome::Done,
                });
            }
        }
    }
    let mut all: Vec<BookedRequest> = booked
        .into_values()
        .map(|(mut booked, microjoules)| {
            let owed = (1.0 + 0.05 * normal(&mut random)).max(0.1);
            booked.gpu = Some(Microjoules((microjoules * owed) as u64));
            booked
        })
        .collect();
    all.sort_by_key(|booked| booked.request.id.0);
    all
}

fn request(at: u64, sequence: &Sequence) -> BookedRequest {
    BookedRequest {
        request: Request {
            id: RequestId(sequence.id),
            service: ServiceId(1),
            route: Route::ChatCompletions,
            start: Timestamp(at),
            first_data: None,
            last_data: None,
            // Words of an English prompt, and a head.
            input: Input::Bytes(300 + 5 * sequence.unread_tokens),
            chunks: 0,
            streamed: true,
            status: 200,
            end: None,
        },
        gpu: None,
        phases: None,
        cpu: None,
        dram: None,
        class: Class::A,
        errors: Some(ErrorRatios {
            own: 0.05,
            common: 0.03,
        }),
        tokens: None,
    }
}
