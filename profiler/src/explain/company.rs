//! A request among others: what was in flight with it, where it stands, what it rested on.

use std::collections::BTreeSet;

use super::model::{
    Base, Bound, Company, EnergyParts, Explained, Moments, Position, ServiceWaits, TokensOf,
};
use super::window;
use crate::clock::Timestamp;
use crate::ledger::{BookedInterval, BookedRequest, MeterId};
use crate::recording::RecordedRequest;

/// What is gathered of one request in a walk over the recording.
#[derive(Debug)]
pub(super) struct Gathering<'a> {
    pub(super) request: &'a RecordedRequest,
    service: String,
    from: Timestamp,
    to: Timestamp,
    met: u64,
    /// Nanoseconds in flight with it, summed over the others.
    together: u64,
    /// When others come and go while it is in flight.
    steps: Vec<(Timestamp, i64)>,
    requests: u64,
    energy: Rank,
    duration: Rank,
    tokens: Rank,
    gpus: BTreeSet<MeterId>,
    idle: f64,
    context: f64,
}

/// How many others are below a value.
#[derive(Debug)]
struct Rank {
    own: Option<u64>,
    below: u64,
    others: u64,
}

impl Rank {
    const fn of(own: Option<u64>) -> Self {
        Self {
            own,
            below: 0,
            others: 0,
        }
    }

    fn meet(&mut self, other: Option<u64>) {
        if let (Some(own), Some(other)) = (self.own, other) {
            self.others += 1;
            self.below += u64::from(other < own);
        }
    }

    fn share(&self) -> Option<f64> {
        (self.others > 0).then(|| self.below as f64 / self.others as f64)
    }
}

fn energy(booked: &BookedRequest) -> Option<u64> {
    booked.active().map(|energy| energy.0)
}

fn duration(booked: &BookedRequest) -> Option<u64> {
    let request = &booked.request;
    request.end.map(|end| end.at.since(request.start))
}

fn tokens_out(booked: &BookedRequest) -> Option<u64> {
    booked.token_count().and_then(|tokens| tokens.output)
}

impl<'a> Gathering<'a> {
    pub(super) fn of(request: &'a RecordedRequest, service: String) -> Self {
        let (from, to) = window(request);
        let booked = &request.booked;
        Self {
            service,
            from,
            to,
            met: 0,
            together: 0,
            steps: Vec::new(),
            requests: 1,
            energy: Rank::of(energy(booked)),
            duration: Rank::of(duration(booked)),
            tokens: Rank::of(tokens_out(booked)),
            gpus: BTreeSet::new(),
            idle: 0.0,
            context: 0.0,
            request,
        }
    }

    /// Looks at a request of `service`.
    pub(super) fn meet(&mut self, other: &RecordedRequest, service: &str) {
        let request = &other.booked.request;
        if service != self.service
            || request.id == self.request.booked.request.id
            || request.begins_session()
            || !request.route.costs_energy()
        {
            return;
        }
        self.requests += 1;
        self.energy.meet(energy(&other.booked));
        self.duration.meet(duration(&other.booked));
        self.tokens.meet(tokens_out(&other.booked));
        let (from, to) = window(other);
        let (from, to) = (from.max(self.from), to.min(self.to));
        if from < to {
            self.met += 1;
            self.together += to.since(from);
            self.steps.push((from, 1));
            self.steps.push((to, -1));
        }
    }

    /// Looks at an interval of a GPU.
    pub(super) fn rest_on(&mut self, interval: &BookedInterval) {
        let (from, to) = (interval.from.max(self.from), interval.to.min(self.to));
        let own = self.request.booked.request.service;
        if from >= to || !interval.services.iter().any(|share| share.service == own) {
            return;
        }
        let part = to.since(from) as f64 / interval.to.since(interval.from) as f64;
        self.gpus.insert(interval.meter);
        self.idle += part * interval.accounts.idle.joules().0;
        self.context += part * interval.accounts.context.joules().0;
    }

    fn company(&mut self) -> Option<Company> {
        if self.from >= self.to {
            return None;
        }
        // Who goes at an instant is gone before another one comes.
        self.steps.sort_unstable();
        let (mut now, mut most) = (1_i64, 1);
        let mut least: Option<i64> = None;
        let mut since = self.from;
        let end = (self.to, 0);
        for (at, step) in self.steps.iter().copied().chain([end]) {
            // A number counts that lasted for some time.
            if at > since {
                least = Some(least.map_or(now, |least| least.min(now)));
                most = most.max(now);
                since = at;
            }
            now += step;
        }
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Some(Company {
            met: self.met,
            least: count(least.unwrap_or(1)),
            mean: 1.0 + self.together as f64 / self.to.since(self.from) as f64,
            most: count(most),
        })
    }

    /// What is known of it.
    pub(super) fn explained(mut self, service_threads: Option<ServiceWaits>) -> Explained {
        let company = self.company();
        let recorded = self.request;
        let booked = &recorded.booked;
        let request = &booked.request;
        let tokens = booked.token_count();
        let seconds = |nanos: u64| nanos as f64 * 1e-9;
        let base = (!self.gpus.is_empty()).then(|| {
            let all = self.idle + self.context;
            Base {
                gpus: self.gpus.len() as u64,
                idle_j: self.idle,
                context_j: self.context,
                equal_part_j: company.as_ref().map(|company| all / company.mean),
            }
        });
        Explained {
            id: match &recorded.name {
                Some(name) => name.clone(),
                None => request.id.0.to_string(),
            },
            trace: None,
            service: self.service,
            route: request.route.name(),
            code: request.code(),
            outcome: request.end.map(|end| end.outcome.name()),
            moments: Moments {
                start_s: seconds(request.start.0),
                duration_s: duration(booked).map(seconds),
                ttft_s: request
                    .first_data
                    .filter(|_| request.streamed)
                    .map(|first| seconds(first.since(request.start))),
            },
            tokens: TokensOf {
                input: tokens.and_then(|tokens| tokens.input),
                output: tokens.and_then(|tokens| tokens.output),
                source: tokens.map(|tokens| tokens.source),
                calibrated: tokens.map(|tokens| tokens.calibrated),
                chunks: (recorded.chunks_seen && request.streamed).then_some(request.chunks),
            },
            energy_uj: parts(booked),
            bound: booked.errors.map(|errors| Bound {
                own: errors.own,
                common: errors.common,
                both: errors.total(),
            }),
            class: booked.class,
            class_because: Vec::new(),
            company,
            position: Position {
                requests: self.requests,
                energy: self.energy.share(),
                duration: self.duration.share(),
                tokens_out: self.tokens.share(),
            },
            base,
            service_threads,
        }
    }
}

fn parts(booked: &BookedRequest) -> EnergyParts {
    let [gpu, cpu, dram] = [booked.gpu, booked.cpu, booked.dram].map(|part| part.map(|uj| uj.0));
    let phases = booked.phases;
    let rest = gpu.zip(phases).map(|(gpu, phases)| {
        gpu.saturating_sub(phases.prefill.0 + phases.decode.0 + phases.wait.0)
    });
    EnergyParts {
        gpu_prefill: phases.map(|phases| phases.prefill.0),
        gpu_decode: phases.map(|phases| phases.decode.0),
        gpu_wait: phases.map(|phases| phases.wait.0),
        gpu_not_streamed: rest,
        gpu,
        cpu,
        dram,
        total: energy(booked),
    }
}
