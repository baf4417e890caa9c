//! Is a request in company charged with what it would cost alone? Two kinds of request that are
//! as different as can be: each by itself, one after the other, where the counter says what one
//! takes; then both at once, where only the ledger can say.
//!
//! Energy is above what the GPU draws with the server up and nothing in flight. Requests that share
//! decode steps are cheaper in company: the ratio to alone shows by how much, and how alike the
//! two kinds' ratios must be is not given by anything that can be measured.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::check::Check;
use super::client::{Kind, Served};
use super::perjoule::Books;
use super::trace::{Trace, boottime_s};

const LONG_PROMPT: Kind = Kind {
    name: "long-prompt",
    input: 2_000,
    output: 16,
};
const LONG_ANSWER: Kind = Kind {
    name: "long-answer",
    input: 64,
    output: 128,
};
const SOLO_S: f64 = 10.0;
const MIXED_S: f64 = 20.0;
/// So many of each kind at once.
const TOGETHER: usize = 3;
/// With nothing in flight: first, where the level is taken, and between two phases.
const LEVEL_S: f64 = 3.0;
const PAUSE_S: f64 = 0.5;

/// The section's text.
pub(super) fn measure(check: &Check<'_>) -> Result<String> {
    let perjoule = check.perjoule()?;
    let mut server = check.load()?.serve()?;
    let mut trace = Trace::default();
    // What comes right after the start is not the level.
    check.quiet(&mut trace, 1.0)?;
    let begin = boottime_s();
    check.quiet(&mut trace, LEVEL_S)?;
    let parked = trace.span_within(begin, f64::INFINITY)?.watts();

    let mut all = Vec::new();
    let mut solo = Vec::new();
    for kind in [LONG_PROMPT, LONG_ANSWER] {
        let served = check.serve(&mut trace, &mut server, "solo", &[(kind, 1)], SOLO_S)?;
        check.quiet(&mut trace, PAUSE_S)?;
        solo.push(served.len());
        all.extend(served);
    }
    let kinds = [(LONG_PROMPT, TOGETHER), (LONG_ANSWER, TOGETHER)];
    let mixed = check.serve(&mut trace, &mut server, "mixed", &kinds, MIXED_S)?;
    check.quiet(&mut trace, PAUSE_S)?;
    drop(server);

    let together = above(&trace, &mixed, parked)?;
    let alone = [LONG_PROMPT, LONG_ANSWER].map(|kind| {
        let of: Vec<Served> = all
            .iter()
            .filter(|served| served.kind.name == kind.name)
            .cloned()
            .collect();
        above(&trace, &of, parked)
    });
    let [prompt, answer] = alone;
    let counted = [prompt?, answer?];
    all.extend(mixed);
    let books = perjoule.replay("solo", &check.uuid, &trace, &all, Some(parked))?;
    Comparison::of(parked, &books, counted, together)?.to_text()
}

/// Joules of the counter above a level, from just before the first request to just after the last.
fn above(trace: &Trace, served: &[Served], watts: f64) -> Result<f64> {
    let from = served.iter().map(|served| served.start_s);
    let to = served.iter().map(|served| served.end_s);
    let span = trace.span_around(
        from.fold(f64::INFINITY, f64::min),
        to.fold(f64::NEG_INFINITY, f64::max),
    )?;
    Ok(span.joules() - watts * span.seconds())
}

/// One kind of request, joules of one.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PerRequest {
    alone_count: usize,
    alone_counted: f64,
    alone_booked: f64,
    mixed_count: usize,
    mixed_booked: f64,
}

/// Alone and in company.
#[derive(Debug)]
struct Comparison {
    parked: f64,
    kinds: [(&'static str, PerRequest); 2],
    /// The counter's rise in the mixed run, above the level.
    together: f64,
    residual_uj: i64,
}

impl Comparison {
    fn of(parked: f64, books: &Books, counted: [f64; 2], together: f64) -> Result<Self> {
        let of = |kind: Kind, counted: f64| {
            let (alone, alone_count) = books.joules_of(&format!("solo/{}/", kind.name));
            let (mixed, mixed_count) = books.joules_of(&format!("mixed/{}/", kind.name));
            ensure!(
                alone_count > 0 && mixed_count > 0,
                "no request of the kind {} was booked",
                kind.name
            );
            let per = PerRequest {
                alone_count,
                alone_counted: counted / alone_count as f64,
                alone_booked: alone / alone_count as f64,
                mixed_count,
                mixed_booked: mixed / mixed_count as f64,
            };
            Ok((kind.name, per))
        };
        let [prompt, answer] = counted;
        Ok(Self {
            parked,
            kinds: [of(LONG_PROMPT, prompt)?, of(LONG_ANSWER, answer)?],
            together,
            residual_uj: books.residual_uj(),
        })
    }

    fn to_text(&self) -> Result<String> {
        let mut text = format!(
            "Above {:.1} W, the power with the server up and nothing in flight. Long prompt: {} tokens in, \
             {} out; long answer: {} in, {} out. Alone: one after another; mixed: {TOGETHER} of each at once.\n\n",
            self.parked,
            LONG_PROMPT.input,
            LONG_PROMPT.output,
            LONG_ANSWER.input,
            LONG_ANSWER.output
        );
        writeln!(
            text,
            "| | alone: requests | J each by the counter | J each as booked | mixed: requests | J each as booked | mixed ÷ alone |"
        )?;
        writeln!(text, "|---|--:|--:|--:|--:|--:|--:|")?;
        let (mut predicted, mut booked) = (0.0, 0.0);
        for (name, per) in &self.kinds {
            writeln!(
                text,
                "| {name} | {} | {:.2} | {:.2} | {} | {:.2} | {:.3} |",
                per.alone_count,
                per.alone_counted,
                per.alone_booked,
                per.mixed_count,
                per.mixed_booked,
                per.mixed_booked / per.alone_counted
            )?;
            predicted += per.alone_counted * per.mixed_count as f64;
            booked += per.mixed_booked * per.mixed_count as f64;
        }
        let part = |mixed: bool| {
            let joules = |per: &PerRequest| {
                let each = if mixed {
                    per.mixed_booked
                } else {
                    per.alone_counted
                };
                each * per.mixed_count as f64
            };
            let [(_, prompt), (_, answer)] = &self.kinds;
            joules(prompt) / (joules(prompt) + joules(answer)) * 100.0
        };
        writeln!(
            text,
            "\nMixed, the counter rose by {:.1} J above the level, {booked:.1} J of it booked on requests ({:+.2} %); \
             alone, the same requests would take {predicted:.1} J: together {:.3} of that. \
             The long prompts' part is {:.1} % as booked, {:.1} % by the runs alone. Residual {} µJ.",
            self.together,
            (booked / self.together - 1.0) * 100.0,
            self.together / predicted,
            part(true),
            part(false),
            self.residual_uj
        )?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_the_mixed_run_to_what_the_counter_says_of_one_alone() {
        let request = |id: &str, energy| (Some(id.to_owned()), energy);
        let books = Books {
            from_s: 0.0,
            to_s: 60.0,
            energy_uj: 400_000_000,
            accounts_uj: vec![("requests", 400_000_000)],
            requests: vec![
                request("solo/long-prompt/0/0", 100_000_000),
                request("solo/long-answer/0/0", 200_000_000),
                request("mixed/long-prompt/0/0", 90_000_000),
                request("mixed/long-prompt/1/0", 90_000_000),
                request("mixed/long-answer/0/0", 60_000_000),
            ],
        };
        let comparison = Comparison::of(80.0, &books, [100.0, 200.0], 250.0).unwrap();
        let [(_, prompt), (_, answer)] = comparison.kinds;
        assert!((prompt.mixed_booked - 90.0).abs() < 1e-9 && prompt.mixed_count == 2);
        let text = comparison.to_text().unwrap();
        assert!(
            text.contains("| long-prompt | 1 | 100.00 | 100.00 | 2 | 90.00 | 0.900 |"),
            "{text}"
        );
        assert!((answer.mixed_booked - 60.0).abs() < 1e-9);
        // 250 J of the 2 × 100 + 200 J that the runs alone predict; 180 of 240 J booked.
        assert!(text.contains("400.0 J: together 0.625"), "{text}");
        assert!(text.contains("75.0 % as booked, 50.0 %"), "{text}");
        let none = Books {
            requests: Vec::new(),
            ..books
        };
        assert!(Comparison::of(80.0, &none, [1.0, 1.0], 1.0).is_err());
    }
}
