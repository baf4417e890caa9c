//! What is tried, and what must hold.

use std::ops::Range;

use profiler::ledger::Source;

use crate::engine::Load;
use crate::observer::{Run, Sight, observe};

/// A load of public conversation traces at a rate that keeps so many requests in flight.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Requests in flight, as rows are named.
    pub name: &'static str,
    rate: f64,
    seconds: f64,
    runs: u64,
}

/// The batch sizes that are tried.
pub const BATCHES: [Batch; 4] = [
    Batch {
        name: "0.2",
        rate: 0.085,
        seconds: 1_500.0,
        runs: 4,
    },
    Batch {
        name: "1.4",
        rate: 0.52,
        seconds: 400.0,
        runs: 4,
    },
    Batch {
        name: "8",
        rate: 2.35,
        seconds: 60.0,
        runs: 8,
    },
    Batch {
        name: "35",
        rate: 5.3,
        seconds: 60.0,
        runs: 6,
    },
];

/// Clients that each have one request in flight.
pub const CLIENTS: [usize; 4] = [1, 8, 32, 100];

/// What a row must keep to; a part of the true energy, a request's or the sum's.
#[derive(Clone, Copy, Debug)]
pub struct Ceiling {
    /// Which rows.
    pub rows: Rows,
    /// Median error of a request.
    pub median: f64,
    /// 95th percentile of it.
    pub p95: f64,
    /// Median half-width of the bound.
    pub half_width: f64,
}

/// Rows that share a ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Streaming, counter, prefill speed learned, at this batch.
    Streaming(&'static str),
    /// The same with the prefill speed held wrong by 30 %.
    WrongSpeed(&'static str),
    /// No ceiling of their own.
    Other,
}

/// What must hold of rows; beside them [`SUM`] and a residual of 0 hold of every row, and each
/// has its part within the bound.
pub const CEILINGS: [Ceiling; 3] = [
    Ceiling {
        rows: Rows::Streaming("8"),
        median: 0.01,
        p95: 0.05,
        half_width: 0.10,
    },
    Ceiling {
        rows: Rows::Streaming("35"),
        median: 0.02,
        p95: 0.08,
        half_width: 0.15,
    },
    Ceiling {
        rows: Rows::WrongSpeed("8"),
        median: 0.06,
        p95: 0.20,
        half_width: f64::INFINITY,
    },
];

/// How far Σ requests may lie from Σ truth.
pub const SUM: f64 = 0.01;
/// How far a service's Σ may lie from its truth, over all runs: also where two share a GPU.
pub const SERVICE_SUM: f64 = 0.05;
/// The least part of services' sums, of all rows, whose truth lies within the sum's bound.
pub const SUMS_COVERED: f64 = 0.95;
/// The least part of requests whose truth lies within the bound.
pub const COVERED: f64 = 0.95;
/// The same with engines of other kinds.
pub const ENGINES_COVERED: f64 = 0.90;
/// The same where prompts are cached.
pub const CACHED_COVERED: f64 = 0.60;

/// A row: something that is tried, with several seeds.
#[derive(Clone, Debug)]
pub struct Case {
    /// Under which heading.
    pub section: Section,
    /// What sets it apart there.
    pub name: String,
    /// Which ceiling holds.
    pub rows: Rows,
    /// The least part of requests whose truth lies within the bound.
    pub covered: f64,
    load: Load,
    sight: Sight,
    runs: u64,
}

/// Headings of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Batch sizes, ways to respond, sources.
    Batches,
    /// The prefill speed is held wrong.
    WrongSpeed,
    /// A fixed number of clients.
    Clients,
    /// Engines of other kinds.
    Engines,
}

impl Case {
    /// The seeds it is tried with.
    pub fn seeds(&self, first: u64) -> Range<u64> {
        first..first + self.runs
    }

    /// Tries it with one seed.
    pub fn run(&self, seed: u64) -> Run {
        let load = Load { seed, ..self.load };
        observe(load, self.sight)
    }

    /// What does not hold.
    pub fn exceeded(&self, run: &Run) -> Vec<String> {
        let mut checks = vec![
            (
                "|sum of requests / sum of truth - 1|",
                (run.ratio() - 1.0).abs(),
                SUM,
            ),
            (
                "truth outside the bound",
                1.0 - run.covered(),
                1.0 - self.covered,
            ),
            (
                "|sum of a service's requests / its truth - 1|",
                run.services_error(),
                SERVICE_SUM,
            ),
            ("residual, µJ", run.residual as f64, 0.0),
            (
                "accounts less measured, µJ",
                run.accounted.abs_diff(run.measured) as f64,
                0.0,
            ),
        ];
        let ceiling = CEILINGS.iter().find(|ceiling| ceiling.rows == self.rows);
        if let Some(ceiling) = ceiling {
            checks.extend([
                ("median error", run.error(0.5), ceiling.median),
                ("p95 error", run.error(0.95), ceiling.p95),
                ("median half-width", run.bound(0.5), ceiling.half_width),
            ]);
        }
        let over = checks.into_iter().filter(|(_, value, most)| value > most);
        over.map(|(what, value, most)| format!("{}: {what} {value:.4} > {most:.4}", self.name))
            .collect()
    }
}

/// Every row.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for batch in BATCHES {
        for (responses, unstreamed, tokens_a_chunk) in [
            ("streams", 0.0, 1),
            ("streams, 8 tokens a chunk", 0.0, 8),
            ("no streams", 1.0, 1),
        ] {
            for source in [Source::Counter, Source::Integrated] {
                let is_streaming =
                    unstreamed == 0.0 && tokens_a_chunk == 1 && source == Source::Counter;
                cases.push(Case {
                    section: Section::Batches,
                    name: format!("{} | {responses} | {}", batch.name, name_of(source)),
                    rows: match is_streaming {
                        true => Rows::Streaming(batch.name),
                        false => Rows::Other,
                    },
                    covered: COVERED,
                    load: Load {
                        unstreamed,
                        tokens_a_chunk,
                        ..load(batch)
                    },
                    sight: Sight {
                        source,
                        ..Sight::default()
                    },
                    runs: batch.runs,
                });
            }
        }
    }
    for batch in BATCHES {
        for (name, part) in [("30 % too slow", 0.7), ("30 % too fast", 1.3)] {
            cases.push(Case {
                section: Section::WrongSpeed,
                name: format!("{} | {name}", batch.name),
                rows: Rows::WrongSpeed(batch.name),
                covered: COVERED,
                load: load(batch),
                sight: Sight {
                    held_speed: Some(part),
                    ..Sight::default()
                },
                runs: batch.runs,
            });
        }
    }
    for clients in CLIENTS {
        cases.push(Case {
            section: Section::Clients,
            name: format!("{clients} clients"),
            rows: Rows::Other,
            covered: COVERED,
            load: Load {
                clients: Some(clients),
                seconds: if clients == 1 { 300.0 } else { 60.0 },
                ..Load::default()
            },
            sight: Sight::default(),
            runs: 4,
        });
    }
    cases.extend(engines());
    cases
}

/// Engines of other kinds, at batch 8 or so.
fn engines() -> impl Iterator<Item = Case> {
    let base = load(BATCHES[2]);
    let kinds = [
        ("two GPUs, tensor parallel", Load { gpus: 2, ..base }),
        (
            "prompts read in parts of 512 tokens beside decode steps",
            Load {
                prompt_parts: Some(512.0),
                ..base
            },
        ),
        (
            "half of the prompts of 64 tokens",
            Load { short: 0.5, ..base },
        ),
        (
            "half of the prompts cached to 80 %",
            Load {
                cached: 0.5,
                ..base
            },
        ),
        (
            "speculative decoding, 1 to 4 tokens a chunk",
            Load {
                speculates: true,
                ..base
            },
        ),
        (
            "two services take turns on one GPU",
            Load { engines: 2, ..base },
        ),
        (
            "30 % of responses do not stream",
            Load {
                unstreamed: 0.3,
                ..base
            },
        ),
    ];
    kinds.into_iter().map(|(name, load)| Case {
        section: Section::Engines,
        name: name.to_owned(),
        // Short prompts say little of the speed, and are to take nothing from what the others say.
        rows: if load.short > 0.0 {
            Rows::Streaming(BATCHES[2].name)
        } else {
            Rows::Other
        },
        // What nobody outside can see is not in the bound: which prompts were cached.
        covered: if load.cached > 0.0 {
            CACHED_COVERED
        } else {
            ENGINES_COVERED
        },
        load,
        sight: Sight::default(),
        runs: BATCHES[2].runs,
    })
}

fn load(batch: Batch) -> Load {
    Load {
        rate: batch.rate,
        seconds: batch.seconds,
        ..Load::default()
    }
}

fn name_of(source: Source) -> &'static str {
    match source {
        Source::Counter => "counter",
        Source::Integrated => "integrated",
        Source::Model => "model",
    }
}
