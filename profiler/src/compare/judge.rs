//! From two runs to figures with verdicts.
//!
//! J/request decides: it is judged for each service, and all services together (Holm). The other figures
//! are judged together in the same way, by themselves.

use std::collections::BTreeSet;

use super::blocks::{Blocks, mean};
use super::model::{
    Figure, FigureChange, Load, Pair, PartChange, SeenIn, ServiceComparison, Verdict,
};
use super::run::{Run, ServiceRun};
use super::significance::{Series, estimate, holm};
use crate::report::ServiceReport;

/// Judges services of two runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) a: &'a Run,
    pub(super) b: &'a Run,
    pub(super) alpha: f64,
}

/// One service in one run.
#[derive(Clone, Copy)]
struct Seen<'a> {
    run: &'a ServiceRun,
    report: Option<&'a ServiceReport>,
}

impl<'a> Seen<'a> {
    fn of(run: &'a Run, name: &str) -> Option<Self> {
        let mut reports = run.report.services.iter();
        Some(Self {
            run: run.services.get(name)?,
            report: reports.find(|report| report.service == name),
        })
    }

    fn series(self, figure: Figure) -> Series {
        let blocks: &Blocks = &self.run.blocks;
        match figure {
            Figure::JPerRequest => blocks.joules_per_request(),
            Figure::JPerOutputToken => blocks.joules_per_output_token(),
            Figure::JPerToken => blocks.joules_per_token(),
            Figure::DurationS => blocks.duration(),
            Figure::TtftS => blocks.first_token(),
            Figure::RequestsPerS => blocks.rate(),
        }
    }

    fn value(self, figure: Figure) -> Option<f64> {
        let seconds = || mean(&self.series(figure)).map(|nanos| nanos * 1e-9);
        match figure {
            Figure::JPerRequest => self.report?.j_per_request.mean,
            Figure::JPerOutputToken => self.report?.j_per_output_token,
            Figure::JPerToken => self.report?.j_per_token,
            Figure::DurationS | Figure::TtftS => seconds(),
            Figure::RequestsPerS => mean(&self.series(figure)).map(|rate| rate * 1e9),
        }
    }

    fn per_request(self, joules: Option<f64>) -> Option<f64> {
        let charged = self.run.blocks.charged();
        joules
            .filter(|_| charged > 0)
            .map(|joules| joules / charged as f64)
    }

    fn gpu(self) -> Option<f64> {
        self.report?.energy_j.gpu
    }

    /// Overhead and its part of open contexts.
    fn beside(self) -> Option<f64> {
        let report = self.report?;
        let beside = report.energy_full_j? - report.energy_j.total?;
        self.per_request(Some(beside.max(0.0)))
    }
}

impl Judge<'_> {
    /// One service; what its figures are worth is not concluded yet.
    pub(super) fn service(self, name: &str) -> ServiceComparison {
        let (a, b) = (Seen::of(self.a, name), Seen::of(self.b, name));
        let pair = |of: &dyn Fn(Seen<'_>) -> Option<f64>| Pair {
            a: a.and_then(of),
            b: b.and_then(of),
        };
        let both = a.zip(b);
        let load = both.map(|(a, b)| match a.run.blocks.is_same_load(&b.run.blocks) {
            true => Load::Same,
            false => Load::Different,
        });
        let too_little = both.and_then(|(a, b)| {
            let of = |run: &str, seen: Seen<'_>| {
                let why = seen.run.blocks.too_little()?;
                Some(format!("{run}: {why}"))
            };
            of("A", a).or_else(|| of("B", b))
        });
        let figures = Figure::ALL.into_iter().map(|figure| {
            let values = pair(&|seen| seen.value(figure));
            let change = values.change();
            let mut judged = FigureChange {
                figure,
                values,
                change,
                low: None,
                high: None,
                p: None,
                verdict: Verdict::NotSupported,
            };
            let (Some((a, b)), Some(change)) = (both, change) else {
                return judged;
            };
            judged.verdict = Verdict::NotEnoughData;
            let (a, b) = (a.series(figure), b.series(figure));
            let paired = load == Some(Load::Same);
            let found = estimate(&a, &b, paired, 1.0 + change, self.alpha);
            if let Some(found) = found.filter(|_| too_little.is_none()) {
                judged.low = Some(found.low);
                judged.high = Some(found.high);
                judged.p = Some(found.p);
                judged.verdict = Verdict::NotShown;
            }
            judged
        });
        ServiceComparison {
            service: name.to_owned(),
            seen_in: match (a, b) {
                (Some(_), None) => SeenIn::A,
                (None, Some(_)) => SeenIn::B,
                _ => SeenIn::Both,
            },
            load,
            requests: Pair {
                a: a.map(|seen| seen.run.blocks.requests()),
                b: b.map(|seen| seen.run.blocks.requests()),
            },
            block_s: pair(&|seen| Some(seen.run.blocks.seconds())),
            figures: figures.collect(),
            not_enough_data: too_little,
            parts: self.parts(a, b),
            overhead_and_context: pair(&|seen| seen.beside()),
            off_cpu: self.off_cpu(both),
            stacks: None,
        }
    }

    /// What J/request is made of.
    fn parts(self, a: Option<Seen<'_>>, b: Option<Seen<'_>>) -> Vec<PartChange> {
        let mut parts = Vec::new();
        let mut put = |part: &str, of: &dyn Fn(Seen<'_>) -> Option<f64>| {
            let value = |seen: Option<Seen<'_>>| seen.and_then(|seen| seen.per_request(of(seen)));
            let values = Pair {
                a: value(a),
                b: value(b),
            };
            if values.a.is_some() || values.b.is_some() {
                parts.push(PartChange {
                    part: part.to_owned(),
                    values,
                });
            }
        };
        let seen = || [a, b].into_iter().flatten();
        if seen().all(|seen| seen.run.has_phases) {
            for (place, part) in ["gpu_prefill", "gpu_decode", "gpu_wait", "gpu_not_streamed"]
                .into_iter()
                .enumerate()
            {
                put(part, &|seen| {
                    let energy = seen.run.gpu.get(place).map(|uj| *uj as f64 * 1e-6);
                    seen.gpu().and(energy)
                });
            }
        } else {
            put("gpu", &|seen| seen.gpu());
        }
        put("cpu", &|seen| seen.report?.energy_j.cpu);
        put("dram", &|seen| seen.report?.energy_j.dram);
        parts
    }

    fn off_cpu(self, both: Option<(Seen<'_>, Seen<'_>)>) -> Option<Vec<PartChange>> {
        let (a, b) = both.filter(|_| self.a.has_waits && self.b.has_waits)?;
        let reasons: BTreeSet<&String> = a.run.waits.keys().chain(b.run.waits.keys()).collect();
        let of = |seen: Seen<'_>, reason: &String| {
            let nanos = seen.run.waits.get(reason).copied().unwrap_or(0);
            let requests = seen.run.blocks.requests().max(1);
            Some(nanos as f64 * 1e-9 / requests as f64)
        };
        let change = |reason: &String| PartChange {
            part: reason.clone(),
            values: Pair {
                a: of(a, reason),
                b: of(b, reason),
            },
        };
        Some(reasons.into_iter().map(change).collect())
    }
}

/// Says which changes are more than chance: J/request of all services together, then all the rest.
pub(super) fn conclude(services: &mut [ServiceComparison], alpha: f64) {
    for deciding in [true, false] {
        let mut family: Vec<&mut f64> = services
            .iter_mut()
            .flat_map(|service| &mut service.figures)
            .filter(|change| (change.figure == Figure::JPerRequest) == deciding)
            .filter_map(|change| change.p.as_mut())
            .collect();
        holm(&mut family);
    }
    for change in services.iter_mut().flat_map(|service| &mut service.figures) {
        if let (Some(p), Some(by)) = (change.p, change.change)
            && p < alpha
        {
            change.verdict = match by > 0.0 {
                true => Verdict::Higher,
                false => Verdict::Lower,
            };
        }
    }
}
