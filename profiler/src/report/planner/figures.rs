//! Totals of the period, and what follows from them.

use super::model::{Amount, Both, Carbon, RequestFigures, Shares, Totals};
use super::{Mean, Planner, ServiceSums, TOKENS_KNOWN};
use crate::ledger::Component;
use crate::report::inputs::Inputs;
use crate::report::model::{JoulesPerRequest, MeterReport, Report, ServiceReport};

impl Planner {
    pub(super) fn totals(
        &self,
        report: &Report,
        inputs: &Inputs,
        amount: impl Fn(Option<f64>) -> Amount,
    ) -> Totals {
        let energy = |of: Option<Component>| {
            let meters = self.meters.values().filter(|meter| meter.intervals > 0);
            let meters =
                meters.filter(|meter| of.is_none_or(|component| meter.component == component));
            let sum = meters
                .map(|meter| meter.energy)
                .reduce(|sum, energy| sum + energy);
            sum.map(|sum| sum.joules().0)
        };
        let measured = energy(None);
        let gain = self.meters.values().map(|meter| meter.gain());
        let measured = Measured {
            all: measured,
            gpu: energy(Some(Component::Gpu)),
            cpu: energy(Some(Component::Cpu)),
            dram: energy(Some(Component::Dram)),
            active: self.active_joules(),
            gain_error_ratio: measured
                .filter(|measured| *measured > 0.0)
                .map(|measured| gain.sum::<f64>() / measured),
        };
        Totals::new(measured, self.served, output_tokens(report), inputs, amount)
    }

    /// `None` where it is no figure: no meter, or a bound above 100 %.
    fn active_joules(&self) -> Option<f64> {
        let is_figure = self.active.class().is_none() || self.active.error_ratio().is_some();
        let active = self.active.active().filter(|_| is_figure)?;
        Some(active.joules().0)
    }

    pub(super) fn requests(&self, report: &Report) -> RequestFigures {
        let missing = self.charged - self.per_request.count();
        let quantile = |q| {
            let known = missing * 10 < self.charged;
            let energy = self.per_request.quantile(q).filter(|_| known);
            energy.map(|microjoules| microjoules / 1e6)
        };
        let mean = |of: fn(&ServiceSums) -> Mean| {
            let sum = self
                .services
                .iter()
                .map(of)
                .fold(Mean::default(), |sum, one| Mean {
                    sum: sum.sum + one.sum,
                    count: sum.count + one.count,
                });
            sum.value()
        };
        RequestFigures {
            count: self.served,
            output_tokens: output_tokens(report),
            j_per_request: JoulesPerRequest {
                mean: self
                    .active_joules()
                    .filter(|_| self.charged > 0)
                    .map(|joules| joules / self.charged as f64),
                p50: quantile(0.50),
                p95: quantile(0.95),
            },
            class: self.active.class(),
            error_ratio: self.active.error_ratio(),
            j_per_output_token: per_token(report, |service| {
                Some((service.j_per_output_token?, service.tokens.output?))
            }),
            j_per_token: per_token(report, |service| {
                let tokens = service.tokens.output? + service.tokens.input?;
                Some((service.j_per_token?, tokens))
            }),
            mean_input_tokens: mean(|service| service.input),
            mean_output_tokens: mean(|service| service.output),
            mean_in_flight: self.load.mean_in_flight(),
        }
    }
}

/// What the period's energy was, joules.
#[derive(Debug, Clone, Copy)]
pub(in crate::report) struct Measured {
    pub(in crate::report) all: Option<f64>,
    pub(in crate::report) gpu: Option<f64>,
    pub(in crate::report) cpu: Option<f64>,
    pub(in crate::report) dram: Option<f64>,
    /// What requests caused.
    pub(in crate::report) active: Option<f64>,
    /// What the sensors' gain may be off by, of all.
    pub(in crate::report) gain_error_ratio: Option<f64>,
}

impl Totals {
    /// Of a period in which so many requests were served and, where that is known, so many tokens.
    pub(in crate::report) fn new(
        measured: Measured,
        served: u64,
        output_tokens: Option<u64>,
        inputs: &Inputs,
        amount: impl Fn(Option<f64>) -> Amount,
    ) -> Self {
        let per = |count: u64, times: f64| {
            let each = |joules: Option<f64>| {
                let joules = joules.filter(|_| count > 0)?;
                Some(joules / count as f64 * times)
            };
            Both {
                all: amount(each(measured.all)),
                active: amount(each(measured.active)),
            }
        };
        let total = amount(measured.all);
        Self {
            measured_j: measured.all,
            gpu_j: measured.gpu,
            cpu_j: measured.cpu,
            dram_j: measured.dram,
            active_j: measured.active,
            gain_error_ratio: measured.gain_error_ratio,
            currency: inputs.currency.clone(),
            requests_per_kwh: total
                .energy_kwh
                .filter(|energy| *energy > 0.0 && served > 0)
                .map(|energy| served as f64 / energy),
            total,
            per_1000_requests: per(served, 1e3),
            per_million_output_tokens: per(output_tokens.unwrap_or(0), 1e6),
        }
    }
}

impl Carbon {
    /// Of a period of so many seconds.
    pub(in crate::report) fn new(
        totals: &Totals,
        requests: &RequestFigures,
        inputs: &Inputs,
        seconds: f64,
    ) -> Self {
        let energy = totals.total.energy_kwh;
        let operational = totals.total.carbon_g;
        let embodied = inputs.embodied(seconds);
        let per = |carbon: Option<f64>, count: u64| {
            let carbon = carbon.filter(|_| count > 0)?;
            Some(carbon / count as f64)
        };
        let both = operational.zip(embodied).map(|(one, other)| one + other);
        let tokens = requests.output_tokens.unwrap_or(0);
        Self {
            energy_kwh: energy,
            intensity_g_per_kwh: inputs.intensity(),
            operational_g: operational,
            embodied_g: embodied,
            requests: requests.count,
            operational_g_per_request: per(operational, requests.count),
            sci_g_per_request: per(both, requests.count),
            sci_g_per_million_output_tokens: per(both, tokens).map(|carbon| carbon * 1e6),
            market_g_per_kwh: inputs.carbon_market,
            market_g: energy
                .zip(inputs.carbon_market)
                .map(|(energy, factor)| energy * factor),
        }
    }
}

/// Requests of a service that cost energy.
const fn serves(service: &ServiceReport) -> u64 {
    service.requests.total - service.requests.health
}

/// The output tokens of all requests; `None` unless they are known of all but a hundredth.
fn output_tokens(report: &Report) -> Option<u64> {
    let serving = || report.services.iter().filter(|service| serves(service) > 0);
    let mut all = 0;
    for service in serving() {
        let counted = service
            .tokens
            .by_source
            .values()
            .filter(|source| source.output.is_some());
        let counted: u64 = counted.map(|source| source.requests).sum();
        if (counted as f64) < TOKENS_KNOWN * serves(service) as f64 {
            return None;
        }
        all += service.tokens.output?;
    }
    (all > 0).then_some(all)
}

/// Joules per token over all services whose tokens are known: Σ joules ÷ Σ tokens.
fn per_token(report: &Report, of: impl Fn(&ServiceReport) -> Option<(f64, u64)>) -> Option<f64> {
    let known = report.services.iter().filter_map(of);
    let (joules, tokens) = known.fold((0.0, 0), |(joules, tokens), (each, count)| {
        (joules + each * count as f64, tokens + count)
    });
    (tokens > 0).then(|| joules / tokens as f64)
}

pub(super) fn shares(report: &Report, totals: &Totals) -> Shares {
    // Where nobody knows the floor, the account says 0.
    let floor_known = |meter: &&MeterReport| {
        meter.component == Component::Gpu
            && (meter.idle_w.is_some() || meter.accounts_j.idle.is_some_and(|idle| idle > 0.0))
    };
    let sum = |of: &dyn Fn(&MeterReport) -> Option<f64>| -> f64 {
        report
            .meters
            .iter()
            .filter(floor_known)
            .filter_map(of)
            .sum()
    };
    let energy = sum(&|meter| meter.energy_j);
    let of_gpus = |joules: f64| (energy > 0.0).then(|| joules / energy);
    let measured = totals.measured_j.filter(|measured| *measured > 0.0);
    let ratio = |joules: Option<f64>| Some(joules? / measured?);
    let host = [totals.cpu_j, totals.dram_j]
        .into_iter()
        .flatten()
        .reduce(|sum, part| sum + part);
    let requests = report
        .meters
        .iter()
        .filter_map(|meter| meter.accounts_j.requests)
        .sum();
    Shares {
        gpu_idle: of_gpus(sum(&|meter| meter.accounts_j.idle)),
        gpu_parked: of_gpus(sum(&|meter| meter.accounts_j.context)),
        gpu: ratio(totals.gpu_j),
        host: ratio(host),
        requests: ratio(Some(requests)),
    }
}
