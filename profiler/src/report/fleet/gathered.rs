//! The answers of a fleet's server, and the report that they make.

use std::collections::{BTreeMap, BTreeSet};

use super::FleetError;
use super::client::Answer;
use super::model::{Fleet, Group};
use super::period::{self, Period};
use super::question::{self, Subject};
use super::source::FleetSource;
use super::sums::{Quantity, Sums};
use super::versions::{self, Served};
use crate::export::labels::clean;
use crate::ledger::Component;
use crate::report::figures::figure;
use crate::report::full::FullEnergy;
use crate::report::inputs::Inputs;
use crate::report::model::{AccountJoules, JoulesPerRequest, LedgerCheck, Losses, Report};
use crate::report::planner::TOKENS_KNOWN;
use crate::report::planner::figures::Measured;
use crate::report::planner::model::{
    Amount, Carbon, Change, Part, Plan, Power, RequestFigures, Shares, Totals, Trend,
};
use crate::report::planner::savings::{self, Found};
use crate::report::planner::trend::BOOKED;

/// Samples beyond one every five minutes that clocks may make.
const SPARE: f64 = 2.0;

/// What was answered so far.
#[derive(Debug)]
pub(super) struct Gathered {
    period: Period,
    subjects: BTreeMap<Subject, Sums>,
    /// When the first part began in which a version served.
    served_from: BTreeMap<Subject, i64>,
    /// Of all nodes, by part of the period.
    parts: Vec<Sums>,
    seen: BTreeSet<String>,
    warnings: BTreeSet<String>,
}

/// The fleet's nodes as one.
struct Whole {
    nodes: f64,
    steps: f64,
    sums: Sums,
}

impl Gathered {
    pub(super) fn new(period: Period) -> Self {
        Self {
            period,
            subjects: BTreeMap::new(),
            served_from: BTreeMap::new(),
            parts: vec![Sums::default(); period.parts().count()],
            seen: BTreeSet::new(),
            warnings: BTreeSet::new(),
        }
    }

    /// The answer for the part at this place; in order.
    pub(super) fn take(
        &mut self,
        (place, of): (usize, Period),
        answer: Answer,
    ) -> Result<(), FleetError> {
        self.warnings.extend(answer.warnings);
        for row in answer.rows {
            let (series, understood) = question::understood(&row.labels);
            let Some((subject, quantity)) = understood.filter(|_| row.value.is_finite()) else {
                return Err(FleetError::Foreign {
                    what: format!("{:?} with the value {}", row.labels, row.value),
                    series,
                });
            };
            if let (Subject::Node { .. }, Some(part)) = (&subject, self.parts.get_mut(place)) {
                part.add(quantity, row.value);
            }
            if matches!(subject, Subject::Version { .. })
                && quantity == Quantity::Requests
                && row.value > 0.0
            {
                self.served_from.entry(subject.clone()).or_insert(of.from);
            }
            self.subjects
                .entry(subject)
                .or_default()
                .add(quantity, row.value);
            self.seen.insert(series);
        }
        Ok(())
    }

    /// Whether no node has energy.
    pub(super) fn is_empty(&self) -> bool {
        !self.seen.contains(question::ENERGY)
    }

    /// Whether no node has more samples than it can.
    pub(super) fn check(&self) -> Result<(), FleetError> {
        let expected = self.period.steps() as f64;
        for (node, sums) in self.nodes() {
            let samples = sums.get(Quantity::Samples).unwrap_or(0.0);
            if samples > expected * 1.01 + SPARE {
                return Err(FleetError::TooOften {
                    node,
                    series: question::ENERGY,
                    samples: samples as u64,
                    expected: expected as u64,
                });
            }
        }
        Ok(())
    }

    /// Names and sums of the nodes.
    fn nodes(&self) -> impl Iterator<Item = (String, &Sums)> {
        self.subjects.iter().filter_map(|(subject, sums)| {
            let Subject::Node {
                cluster, instance, ..
            } = subject
            else {
                return None;
            };
            let name = if cluster.is_empty() {
                clean(instance)
            } else {
                clean(&format!("{cluster}/{instance}"))
            };
            Some((name, sums))
        })
    }

    pub(super) fn report(
        mut self,
        source: &FleetSource,
        full: FullEnergy,
        inputs: &Inputs,
        today: &str,
    ) -> Report {
        self.subjects.values_mut().for_each(Sums::note_floor);
        let mut whole = Whole {
            nodes: 0.0,
            steps: self.period.steps() as f64,
            sums: Sums::default(),
        };
        for (_, sums) in self.nodes() {
            whole.nodes += 1.0;
            whole.sums.merge(sums);
        }
        let seconds = self.period.seconds() as f64;
        let amount = |joules: Option<f64>| inputs.amount(full, joules);
        let requests = self.requests(&whole);
        let measured = measured(&whole.sums);
        let totals = Totals::new(
            measured,
            requests.count,
            requests.output_tokens,
            inputs,
            amount,
        );
        // What making one machine emitted, of each of them.
        let of_all = Inputs {
            embodied_kg: inputs.embodied_kg.map(|kg| kg * whole.nodes),
            ..inputs.clone()
        };
        let plan = Plan {
            inputs: inputs.list(full, Some(today)),
            carbon: Carbon::new(&totals, &requests, &of_all, seconds),
            shares: shares(&whole.sums, measured),
            trend: self.trend(&whole),
            services: Vec::new(),
            versions: versions::plans(self.served()),
            power: Power {
                gpus: Vec::new(),
                all: None,
                busiest_minute: None,
            },
            load_curve: Vec::new(),
            host_waits_s: BTreeMap::new(),
            throttled_s: BTreeMap::new(),
            coverage: Vec::new(),
            savings: measured.all.map_or_else(Vec::new, |measured| {
                savings::rank(found(&whole.sums).into_iter().flatten(), measured, amount)
            }),
            environment: self.environment(source),
            totals,
            requests,
        };
        Report {
            schema: 1,
            simulated: false,
            duration_s: Some(seconds),
            idle_policy: full.idle_policy,
            pue: full.pue,
            services: Vec::new(),
            meters: Vec::new(),
            ledger: LedgerCheck {
                residual_microjoules: None,
            },
            losses: Losses {
                events: None,
                requests: None,
            },
            planner: Some(plan),
            fleet: Some(self.fleet(&whole, amount)),
        }
    }

    /// The versions that served requests.
    fn served(&self) -> impl Iterator<Item = Served<'_>> {
        self.subjects.iter().filter_map(|(subject, sums)| {
            let Subject::Version { model, engine } = subject else {
                return None;
            };
            let from = self.served_from.get(subject)?;
            Some(Served {
                model,
                engine,
                from_s: (from - self.period.from) as f64,
                sums,
            })
        })
    }

    fn requests(&self, whole: &Whole) -> RequestFigures {
        let sums = &whole.sums;
        let active = sums.get(Quantity::Account("requests"));
        let counted = sums.ratio(Quantity::TokenJoules, Quantity::Account("requests"));
        let versions = self.subjects.iter();
        let versions = versions.filter(|(subject, _)| matches!(subject, Subject::Version { .. }));
        let all_tokens = versions.fold(Sums::default(), |mut all, (_, sums)| {
            all.merge(sums);
            all
        });
        RequestFigures {
            count: sums.count(Quantity::Requests).unwrap_or(0),
            output_tokens: sums
                .count(Quantity::OutputTokens)
                .filter(|_| counted.is_some_and(|ratio| ratio >= TOKENS_KNOWN)),
            j_per_request: JoulesPerRequest {
                mean: active
                    .and_then(|_| sums.ratio(Quantity::Account("requests"), Quantity::Requests)),
                p50: None,
                p95: None,
            },
            class: None,
            error_ratio: None,
            j_per_output_token: sums.ratio(Quantity::TokenJoules, Quantity::OutputTokens),
            j_per_token: all_tokens.ratio(Quantity::AllTokenJoules, Quantity::AllTokens),
            mean_input_tokens: None,
            mean_output_tokens: None,
            mean_in_flight: None,
        }
    }

    fn trend(&self, whole: &Whole) -> Trend {
        let start = self.period.from;
        let booked = |part: Period, sums: &Sums| {
            let samples = sums.get(Quantity::Samples).unwrap_or(0.0);
            (samples / (part.steps() as f64 * whole.nodes)).min(1.0)
        };
        let parts: Vec<Part> = self
            .period
            .parts()
            .zip(&self.parts)
            .map(|(part, sums)| {
                let energy = sums.energy().unwrap_or(0.0);
                let requests = sums.count(Quantity::Requests).unwrap_or(0);
                Part {
                    from_s: (part.from - start) as f64,
                    to_s: (part.to - start) as f64,
                    energy_j: energy,
                    accounts_j: accounts(sums),
                    requests,
                    j_per_request: (requests > 0).then(|| energy / requests as f64),
                    booked_ratio: booked(part, sums),
                }
            })
            .collect();
        let (first, second) = parts.split_at(parts.len() / 2);
        let half = |parts: &[Part]| {
            let booked = parts.iter().map(|part| part.booked_ratio).sum::<f64>();
            (booked >= parts.len() as f64 * BOOKED).then(|| {
                let energy = parts.iter().map(|part| part.energy_j).sum();
                (energy, parts.iter().map(|part| part.requests).sum())
            })
        };
        let change = half(first)
            .zip(half(second))
            .and_then(|(first, second)| Change::between(first, second));
        Trend { parts, change }
    }

    fn fleet(self, whole: &Whole, amount: impl Fn(Option<f64>) -> Amount) -> Fleet {
        let all = whole.sums.energy();
        let group = |name: String, energy: Option<f64>, nodes: Option<u64>, sums: &Sums| {
            let gpus = sums.get(Quantity::Gpus);
            Group {
                name,
                nodes,
                gpus: gpus.map(|gpus| gpus / whole.steps),
                energy_j: energy,
                total: amount(energy),
                energy_ratio: energy
                    .zip(all.filter(|all| *all > 0.0))
                    .map(|(energy, all)| energy / all),
                active_j: sums.get(Quantity::Account("requests")),
                requests: sums.count(Quantity::Requests),
                j_per_request: sums.ratio(Quantity::Account("requests"), Quantity::Requests),
                output_tokens: sums.count(Quantity::OutputTokens),
                j_per_output_token: sums.ratio(Quantity::TokenJoules, Quantity::OutputTokens),
                j_per_token: sums.ratio(Quantity::AllTokenJoules, Quantity::AllTokens),
                gpu_idle_ratio: sums.ratio(Quantity::GpuIdle, Quantity::GpuWithFloor),
                gpu_parked_ratio: sums.ratio(Quantity::GpuParked, Quantity::GpuWithFloor),
                coverage_ratio: whole.coverage(sums, nodes.unwrap_or(1) as f64),
            }
        };
        let by_node = self.nodes();
        let by_node = by_node.map(|(name, sums)| group(name, sums.energy(), None, sums));
        let by_node: Vec<Group> = by_node.collect();
        let mut clusters: BTreeMap<String, (u64, Sums)> = BTreeMap::new();
        let mut models: BTreeMap<String, Sums> = BTreeMap::new();
        let mut gpu_types = Vec::new();
        for (subject, sums) in &self.subjects {
            match subject {
                Subject::Node { cluster, .. } => {
                    let of = clusters.entry(named(cluster, "no cluster")).or_default();
                    of.0 += 1;
                    of.1.merge(sums);
                }
                Subject::Version { model, .. } => {
                    let of = models.entry(named(model, "not known")).or_default();
                    of.merge(sums);
                }
                Subject::GpuType(name) => {
                    gpu_types.push(group(named(name, "not known"), sums.energy(), None, sums));
                }
            }
        }
        let clusters = clusters.into_iter();
        let clusters =
            clusters.map(|(name, (nodes, sums))| group(name, sums.energy(), Some(nodes), &sums));
        let models = models.into_iter().map(|(name, sums)| {
            let parts = ["requests", "overhead"].map(Quantity::Account);
            let energy = parts.iter().filter_map(|part| sums.get(*part));
            let energy = energy.reduce(|sum, part| sum + part);
            group(name, energy, None, &sums)
        });
        Fleet {
            from: period::shown(self.period.from),
            to: period::shown(self.period.to),
            nodes: whole.nodes as u64,
            coverage_ratio: whole.coverage(&whole.sums, whole.nodes).unwrap_or(0.0),
            clusters: ranked(clusters.collect()),
            models: ranked(models.collect()),
            gpu_types: ranked(gpu_types),
            by_node: ranked(by_node),
            missing: question::missing(|series| self.seen.contains(series)),
            warnings: self.warnings.iter().map(|warning| clean(warning)).collect(),
        }
    }

    /// Where the figures come from.
    fn environment(&self, source: &FleetSource) -> BTreeMap<String, String> {
        let matchers: Vec<&str> = source.matchers().iter().map(|one| one.text()).collect();
        let nodes = self.nodes().count();
        [
            ("server", source.shown()),
            ("from", period::shown(self.period.from)),
            ("to", period::shown(self.period.to)),
            ("matchers", matchers.join(",")),
            ("recorded every", format!("{} s", period::STEP)),
            ("nodes", nodes.to_string()),
            ("perjoule", env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), clean(&value)))
        .collect()
    }
}

impl Whole {
    /// Recorded time of so many nodes ÷ the period's; of what has nodes.
    fn coverage(&self, sums: &Sums, nodes: f64) -> Option<f64> {
        let samples = sums.get(Quantity::Samples)?;
        Some((samples / (self.steps * nodes)).min(1.0))
    }
}

/// A name from a label; empty where there is no such label.
pub(super) fn named(label: &str, without: &str) -> String {
    if label.is_empty() {
        without.to_owned()
    } else {
        clean(label)
    }
}

/// The biggest first, by name where they are equal.
fn ranked(mut groups: Vec<Group>) -> Vec<Group> {
    groups.sort_by(|one, other| {
        let energy = |group: &Group| group.energy_j.unwrap_or(-1.0);
        let by_energy = energy(other).total_cmp(&energy(one));
        by_energy.then_with(|| one.name.cmp(&other.name))
    });
    groups
}

fn measured(sums: &Sums) -> Measured {
    let of = |component| sums.get(Quantity::Energy(component));
    Measured {
        all: sums.energy(),
        gpu: of(Component::Gpu),
        cpu: of(Component::Cpu),
        dram: of(Component::Dram),
        active: sums.get(Quantity::Account("requests")),
        gain_error_ratio: None,
    }
}

fn shares(sums: &Sums, measured: Measured) -> Shares {
    let all = measured.all.filter(|all| *all > 0.0);
    let ratio = |joules: Option<f64>| Some(joules? / all?);
    let host = [measured.cpu, measured.dram].into_iter().flatten();
    Shares {
        gpu_idle: sums.ratio(Quantity::GpuIdle, Quantity::GpuWithFloor),
        gpu_parked: sums.ratio(Quantity::GpuParked, Quantity::GpuWithFloor),
        gpu: ratio(measured.gpu),
        host: ratio(host.reduce(|sum, part| sum + part)),
        requests: ratio(measured.active),
    }
}

fn accounts(sums: &Sums) -> AccountJoules {
    let of = |name| sums.get(Quantity::Account(name));
    AccountJoules {
        idle: of("idle"),
        context: of("context"),
        requests: of("requests"),
        overhead: of("overhead"),
        other: of("other"),
        agent: of("agent"),
        unattributed: of("unattributed"),
        gap: of("gap"),
    }
}

/// What recorded series tell of savings.
fn found(sums: &Sums) -> [Option<Found>; 3] {
    let quiet = |quantity| sums.get(quantity).filter(|joules| *joules > 0.0);
    let of_gpus = sums
        .ratio(Quantity::QuietIdle, Quantity::Energy(Component::Gpu))
        .map_or_else(String::new, |ratio| figure(ratio * 100.0));
    [
        quiet(Quantity::QuietIdle).map(|joules| Found {
            name: "quiet_gpus",
            title: "GPUs that are on and have nothing to do",
            joules,
            advice: format!(
                "In five minutes in which neither a request nor another program used them, GPUs drew their idle power all the \
                 same: {of_gpus} % of the energy of all GPUs. Put the same requests on fewer GPUs and switch the others off, or \
                 give them other work at those times. The nodes' idle shares say where to begin."
            ),
            method: "Σ of the account idle of GPUs over five minutes in which their account requests is 0 and other work is at \
                     most a tenth.",
        }),
        quiet(Quantity::QuietParked).map(|joules| Found {
            name: "parked_models",
            title: "Models that stay loaded while nobody asks them",
            joules,
            advice: "A GPU with a model loaded draws more than an empty one, also while no request comes. In five minutes \
                     without requests this was the extra. Unload models in hours without use, or let several share a GPU; the \
                     first request afterwards then waits for the loading."
                .to_owned(),
            method: "Σ of the account context of GPUs over the same five minutes as idle GPUs: the account requests 0, other \
                     work at most a tenth.",
        }),
        savings::overhead(sums.get(Quantity::Account("overhead")).unwrap_or(0.0)),
    ]
}
