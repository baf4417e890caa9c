//! Sums over a window of whole seconds, as they are shown. What is not known is `None`.
//!
//! Ratios are Σ/Σ: joules per request are the energy of the requests that ended in the window over
//! their number; watts are energy over the time that was measured.

use super::model::{MeterState, Model, Served, ServicePoint, ServiceState};
use super::ring::{self, SHOWN};
use super::sketch::Sketch;
use crate::ledger::{Class, Component, ServiceId, Source};

/// Over how much of the latest past figures are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the variants say it")]
pub enum Window {
    TwoSeconds,
    #[default]
    TenSeconds,
    OneMinute,
    FiveMinutes,
}

impl Window {
    const ALL: [Self; 4] = [
        Self::TwoSeconds,
        Self::TenSeconds,
        Self::OneMinute,
        Self::FiveMinutes,
    ];

    /// Its length.
    pub const fn seconds(self) -> u64 {
        match self {
            Self::TwoSeconds => 2,
            Self::TenSeconds => 10,
            Self::OneMinute => 60,
            Self::FiveMinutes => SHOWN,
        }
    }

    /// The next longer one; after the longest the shortest.
    pub fn next(self) -> Self {
        let longer = |window: &Self| window.seconds() > self.seconds();
        Self::ALL
            .into_iter()
            .find(longer)
            .unwrap_or(Self::TwoSeconds)
    }
}

/// Less is not shown: a rate over it says little.
const SHORTEST: f64 = 0.5;

/// Whole seconds, from one to before another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
    /// For how long of them somebody looked.
    pub(super) seconds: f64,
}

/// The machine's.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeFigures {
    /// By component.
    pub(super) watts: [Option<f64>; 3],
    pub(super) requests: Option<f64>,
    pub(super) per_request: Option<f64>,
    /// Meters that told nothing of the window.
    pub(super) silent: usize,
}

impl NodeFigures {
    /// Of all components that are known.
    pub(super) fn power(&self) -> Option<f64> {
        self.watts
            .into_iter()
            .flatten()
            .reduce(|sum, watts| sum + watts)
    }
}

/// A meter's.
#[derive(Debug, Clone)]
pub(super) struct DeviceFigures {
    pub(super) device: String,
    pub(super) component: Component,
    pub(super) source: Source,
    pub(super) name: Option<String>,
    pub(super) watts: Option<f64>,
    pub(super) limit: Option<f64>,
    pub(super) utilization: Option<f64>,
    /// Shares of the energy, in the order of `Accounts::NAMES`.
    pub(super) shares: Option<[f64; 8]>,
}

/// A service's.
#[derive(Debug, Clone)]
pub(super) struct ServiceFigures {
    pub(super) id: ServiceId,
    pub(super) name: String,
    pub(super) model: Option<String>,
    pub(super) engine: Option<String>,
    pub(super) requests: Option<f64>,
    pub(super) in_flight: Option<u64>,
    pub(super) watts: Option<f64>,
    pub(super) per_request: Option<f64>,
    pub(super) per_output: Option<f64>,
    pub(super) per_token: Option<f64>,
    pub(super) output: Option<f64>,
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) first_p50: Option<f64>,
    pub(super) first_p99: Option<f64>,
    pub(super) cpu: Option<f64>,
    pub(super) run_queue: Option<f64>,
    pub(super) starved: Option<f64>,
    pub(super) class: Option<Class>,
    pub(super) error_ratio: Option<f64>,
}

/// Some seconds of a service's past.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Past {
    pub(super) watts: Option<f64>,
    pub(super) requests: Option<f64>,
    pub(super) per_request: Option<f64>,
}

impl Model {
    /// The seconds of a window, as far as they are complete; `None` while there are none.
    pub(super) fn span(&self, window: Window) -> Option<Span> {
        let to = ring::second(self.booked_until());
        self.seen(to.saturating_sub(window.seconds()), to)
    }

    /// What was seen of these seconds; `None` if it is next to nothing.
    fn seen(&self, from: u64, to: u64) -> Option<Span> {
        let began = self.began?.0 as f64 * 1e-9;
        let seconds = to as f64 - began.max(from as f64);
        (seconds >= SHORTEST).then_some(Span { from, to, seconds })
    }

    pub(super) fn node(&self, span: Option<Span>) -> NodeFigures {
        let Some(span) = span else {
            return NodeFigures::default();
        };
        let mut figures = NodeFigures::default();
        for meter in self.meters.values() {
            let Some(watts) = meter.watts(span) else {
                figures.silent += 1;
                continue;
            };
            if let Some(sum) = figures.watts.get_mut(meter.component as usize) {
                *sum = Some(sum.unwrap_or(0.0) + watts);
            }
        }
        let mut served = Served::default();
        for point in self.served.between(span.from, span.to) {
            served.merge(point);
        }
        figures.requests = self.rate(served.requests, span);
        figures.per_request = served.per_request();
        figures
    }

    /// GPUs first.
    pub(super) fn devices(&self, span: Option<Span>) -> Vec<DeviceFigures> {
        let mut devices: Vec<DeviceFigures> = self
            .meters
            .values()
            .map(|meter| {
                let facts = self.gpus.get(&meter.device);
                DeviceFigures {
                    device: meter.device.clone(),
                    component: meter.component,
                    source: meter.source,
                    name: facts.and_then(|facts| facts.name.clone()),
                    watts: span.and_then(|span| meter.watts(span)),
                    limit: facts.and_then(|facts| Some(facts.limit?.0)),
                    utilization: facts.and_then(|facts| Some(facts.utilization?.0)),
                    shares: span.and_then(|span| meter.shares(span)),
                }
            })
            .collect();
        devices.sort_by(|one, other| {
            (one.component, &one.device).cmp(&(other.component, &other.device))
        });
        devices
    }

    pub(super) fn service(&self, id: ServiceId, span: Option<Span>) -> Option<ServiceFigures> {
        let service = self.services.get(&id)?;
        let mut figures = ServiceFigures {
            id,
            name: service.name.clone(),
            model: service.model.clone(),
            engine: service.engine.clone(),
            requests: None,
            in_flight: service.in_flight,
            watts: None,
            per_request: None,
            per_output: None,
            per_token: None,
            output: None,
            p50: None,
            p99: None,
            first_p50: None,
            first_p99: None,
            cpu: None,
            run_queue: None,
            starved: None,
            class: None,
            error_ratio: None,
        };
        if let Some(span) = span {
            self.sum_up(service, span, &mut figures);
        }
        Some(figures)
    }

    fn sum_up(&self, service: &ServiceState, span: Span, figures: &mut ServiceFigures) {
        let points = || service.points.between(span.from, span.to);
        let sum = |value: fn(&ServicePoint) -> u64| points().map(value).sum::<u64>();
        let per_second = |nanos: u64| nanos as f64 * 1e-9 / span.seconds;
        let (mut served, mut durations, mut first_tokens) =
            (Served::default(), Sketch::default(), Sketch::default());
        for point in points() {
            served.merge(&point.served);
            durations.merge(&point.durations);
            first_tokens.merge(&point.first_tokens);
        }
        figures.requests = self.rate(served.requests, span);
        figures.watts = self.watts(points(), span);
        figures.per_request = served.per_request();
        figures.per_output = served.per_output();
        figures.per_token = served.per_token();
        let engine = sum(|point| point.engine_nanos);
        figures.output = if engine > 0 {
            Some(sum(|point| point.engine_output) as f64 / (engine as f64 * 1e-9))
        } else if served.requests > served.counted {
            None
        } else {
            self.rate(served.output, span)
        };
        figures.p50 = durations.quantile(0.50);
        figures.p99 = durations.quantile(0.99);
        figures.first_p50 = first_tokens.quantile(0.50);
        figures.first_p99 = first_tokens.quantile(0.99);
        figures.cpu = service.sees_cpu.then(|| per_second(sum(|point| point.cpu)));
        let run_queue = || per_second(sum(|point| point.run_queue));
        figures.run_queue = service.sees_waits.then(run_queue);
        let starved = || per_second(sum(|point| point.starved));
        figures.starved = service.sees_starved.then(starved);
        figures.class = served.active.class();
        figures.error_ratio = served.active.error_ratio();
    }

    /// What a service did in each of `count` stretches of `seconds` up to now, the oldest first; `None`
    /// where nobody looked yet.
    pub(super) fn past(&self, id: ServiceId, count: u64, seconds: u64) -> Vec<Option<Past>> {
        let end = ring::second(self.booked_until());
        let Some(service) = self.services.get(&id) else {
            return Vec::new();
        };
        let past = |number: u64| {
            let to = end.checked_sub((count - 1 - number) * seconds)?;
            let span = self.seen(to.saturating_sub(seconds), to)?;
            let points = || service.points.between(span.from, span.to);
            let mut served = Served::default();
            for point in points() {
                served.merge(&point.served);
            }
            Some(Past {
                watts: self.watts(points(), span),
                requests: self.rate(served.requests, span),
                per_request: served.per_request(),
            })
        };
        (0..count).map(past).collect()
    }

    fn rate(&self, count: u64, span: Span) -> Option<f64> {
        self.sees_requests.then(|| count as f64 / span.seconds)
    }

    /// Each component over the part of the span for which it was measured, by the meter that saw most.
    fn watts<'a>(&self, points: impl Iterator<Item = &'a ServicePoint>, span: Span) -> Option<f64> {
        let mut energy = [0; 3];
        for point in points {
            for (sum, more) in energy.iter_mut().zip(point.energy) {
                *sum += more;
            }
        }
        let watts = Component::ALL
            .into_iter()
            .zip(energy)
            .map(|(component, energy)| {
                let meters = self.meters.values();
                let meters = meters.filter(|meter| meter.component == component);
                let measured = meters.map(|meter| meter.measured(span)).max();
                let measured = measured.filter(|nanos| *nanos > 0)?;
                Some(energy as f64 * 1e3 / measured as f64)
            });
        watts.flatten().reduce(|sum, watts| sum + watts)
    }
}

impl MeterState {
    /// How much of a span was measured, nanoseconds.
    fn measured(&self, span: Span) -> u64 {
        let points = self.points.between(span.from, span.to);
        points.map(|point| point.nanos).sum()
    }

    fn watts(&self, span: Span) -> Option<f64> {
        let points = self.points.between(span.from, span.to);
        let energy: u64 = points.flat_map(|point| point.accounts).sum();
        let measured = self.measured(span);
        (measured > 0).then(|| energy as f64 * 1e3 / measured as f64)
    }

    fn shares(&self, span: Span) -> Option<[f64; 8]> {
        let mut sums = [0; 8];
        for point in self.points.between(span.from, span.to) {
            for (sum, energy) in sums.iter_mut().zip(point.accounts) {
                *sum += energy;
            }
        }
        let all: u64 = sums.iter().sum();
        (all > 0).then(|| sums.map(|sum| sum as f64 / all as f64))
    }
}

impl Served {
    /// Beyond a bound of 100 % a sum is no figure.
    fn is_figure(&self) -> bool {
        self.active.class().is_none() || self.active.error_ratio().is_some()
    }

    fn ratio(&self, microjoules: u64, count: u64) -> Option<f64> {
        (count > 0 && self.is_figure()).then(|| microjoules as f64 * 1e-6 / count as f64)
    }

    fn per_request(&self) -> Option<f64> {
        self.ratio(self.active.active()?.0, self.charged)
    }

    fn per_output(&self) -> Option<f64> {
        self.ratio(self.output_energy, self.output)
    }

    fn per_token(&self) -> Option<f64> {
        self.ratio(self.both_energy, self.both)
    }
}
