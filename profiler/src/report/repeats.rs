//! `stat -r N`: what several runs of the same thing gave: each figure's mean, and a 95 % interval of it by Student's t
//! with N − 1 degrees of freedom. A figure that a run does not know is the mean of those that do.

use std::fmt::{self, Write};

use serde::Serialize;

use super::figures::{count, figure, percent};
use super::model::Report;
use super::rows::{Row, Section, Value};
use super::separated::{Line, Separator, write};
use super::table;
use crate::student::critical;

/// How sure the intervals are.
const CONFIDENCE: f64 = 0.95;
/// An interval whose half-width is a larger part of the mean than this is called noisy.
const NOISY: f64 = 0.05;
/// More repeats than this are no advice.
const MOST_ADVISED: usize = 200;
/// So many noisy figures are named.
const MOST_NAMED: usize = 4;

/// Several runs.
#[derive(Debug, Serialize)]
pub struct Repeats {
    schema: u32,
    repeats: usize,
    confidence: f64,
    /// How intervals are made.
    interval: &'static str,
    noisy_beyond: f64,
    figures: Vec<Repeated>,
    runs: Vec<Report>,
}

/// One figure of all runs.
#[derive(Debug, Serialize)]
struct Repeated {
    subject: String,
    event: String,
    unit: &'static str,
    /// Null where no run knows it.
    mean: Option<f64>,
    /// Of the interval; null where fewer than two runs know it.
    half_width: Option<f64>,
    noisy: bool,
    /// By run.
    values: Vec<Option<f64>>,
    #[serde(skip)]
    title: String,
    /// As the first run has it that has it.
    #[serde(skip)]
    row: Row,
}

impl Repeats {
    /// Puts the runs together.
    pub fn new(runs: Vec<Report>) -> Self {
        let sections: Vec<Vec<Section>> = runs.iter().map(Report::sections).collect();
        let mut figures: Vec<Repeated> = Vec::new();
        for section in sections.iter().flatten() {
            for row in section.rows.iter().flat_map(Row::figures) {
                let known = figures
                    .iter()
                    .any(|known| known.subject == section.subject && known.event == row.event);
                if !known {
                    figures.push(repeated(section, row, &sections));
                }
            }
        }
        // A row that only a later run has stands with those of its section.
        let order: Vec<String> = figures.iter().map(|one| one.subject.clone()).collect();
        figures.sort_by_key(|one| order.iter().position(|subject| *subject == one.subject));
        Self {
            schema: 1,
            repeats: runs.len(),
            confidence: CONFIDENCE,
            interval: "student_t",
            noisy_beyond: NOISY,
            figures,
            runs,
        }
    }

    /// One compact line: each figure with its interval, and the runs' own reports.
    ///
    /// # Errors
    /// None in practice: every key is a string and every figure finite.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Every figure, one a line, with its interval in per cent of the mean.
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn to_separated(&self, separator: Separator) -> Result<String, csv::Error> {
        let seconds = mean(&self.durations());
        let lines = self.figures.iter().map(|one| Line {
            time: None,
            subject: &one.subject,
            row: &one.row,
            spread: Some(one.share().map(|share| share * 100.0)),
            seconds,
        });
        write(separator, lines)
    }

    /// The table for people: means, and behind each its interval.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        let simulated = match self.runs.iter().any(|run| run.simulated) {
            true => "   SIMULATED GPU",
            false => "",
        };
        let each = mean(&self.durations())
            .map_or_else(String::new, |mean| format!(" of {} s", figure(mean)));
        let runs = count(self.repeats as u64);
        writeln!(
            out,
            "\n Mean of {runs} runs{each}, ± 95 % (Student's t){simulated}"
        )?;
        let mut subject = "";
        for one in &self.figures {
            if one.subject != subject {
                subject = &one.subject;
                if !one.title.is_empty() {
                    writeln!(out, "\n {}", one.title)?;
                }
                writeln!(out)?;
            }
            let row = &one.row;
            table::row_with_spread(out, &row.value.shown(), row.unit, &row.what, &one.spread())?;
        }
        writeln!(out)
    }

    /// Which of the main figures are noisy, and what to do; `None` where none is.
    pub fn noise(&self) -> Option<String> {
        let mut noisy: Vec<&Repeated> = self
            .figures
            .iter()
            .filter(|one| one.row.main && one.noisy)
            .collect();
        noisy.sort_by(|one, other| {
            other
                .share()
                .unwrap_or(0.0)
                .total_cmp(&one.share().unwrap_or(0.0))
        });
        let worst = noisy.first()?;
        let names: Vec<String> = noisy
            .iter()
            .take(MOST_NAMED)
            .map(|one| {
                let (what, share) = (one.row.what.trim(), one.share().unwrap_or(0.0));
                format!("{} of {} (± {})", what, one.subject, percent(share))
            })
            .collect();
        let more = match noisy.len() - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let advice = match worst.repeats_needed() {
            Some(repeats) => format!("-r {repeats} would do if the noise stays as it is"),
            None => "make each run longer".to_owned(),
        };
        Some(format!(
            "noisy, beyond ± {} of the mean: {}{more}; repeat more often ({advice})",
            percent(NOISY),
            names.join("; "),
        ))
    }

    fn durations(&self) -> Vec<f64> {
        self.runs.iter().filter_map(|run| run.duration_s).collect()
    }
}

impl Repeated {
    /// The interval's half-width ÷ the mean.
    fn share(&self) -> Option<f64> {
        let (mean, half) = (self.mean?, self.half_width?);
        (mean != 0.0).then(|| half / mean.abs())
    }

    fn spread(&self) -> String {
        let known = self.values.iter().flatten().count();
        let mut text = match (self.half_width, self.share()) {
            (Some(half), Some(share)) => format!("± {:<10} ({})", figure(half), percent(share)),
            (Some(half), None) => format!("± {}", figure(half)),
            _ => String::new(),
        };
        if known > 0 && known < self.values.len() {
            let _ = write!(text, " in {known} of {} runs", self.values.len());
        }
        if self.noisy && self.row.main {
            text += " noisy";
        }
        text
    }

    /// How many runs would bring the interval below [`NOISY`], with the spread that was seen.
    fn repeats_needed(&self) -> Option<usize> {
        let values: Vec<f64> = self.values.iter().flatten().copied().collect();
        let spread = deviation(&values)? / self.mean?.abs();
        let half = |runs: usize| {
            critical(1.0 - CONFIDENCE, runs as f64 - 1.0) * spread / (runs as f64).sqrt()
        };
        (values.len() + 1..=MOST_ADVISED).find(|runs| half(*runs) <= NOISY)
    }
}

/// This row of each run.
fn repeated(of: &Section, row: Row, runs: &[Vec<Section>]) -> Repeated {
    let values: Vec<Option<f64>> = runs
        .iter()
        .map(|run| value(run, &of.subject, &row))
        .collect();
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    let mean = mean(&known);
    let half_width = deviation(&known).map(|deviation| {
        let runs = known.len() as f64;
        critical(1.0 - CONFIDENCE, runs - 1.0) * deviation / runs.sqrt()
    });
    let mut one = Repeated {
        subject: of.subject.clone(),
        event: row.event.clone(),
        unit: row.unit,
        mean,
        half_width,
        noisy: false,
        values,
        title: of.title.clone(),
        row: Row {
            value: mean.map_or(row.value, Value::Figure),
            // What followed from one run's figure does not follow from the mean.
            metric: None,
            ..row
        },
    };
    one.noisy = one.share().is_some_and(|share| share > NOISY);
    one
}

/// This row's figure in one run. Rows that are left out where they are 0 are 0 there.
fn value(run: &[Section], subject: &str, row: &Row) -> Option<f64> {
    let mut of_it = run.iter().filter(|section| section.subject == subject);
    let mut rows = of_it
        .clone()
        .flat_map(|section| &section.rows)
        .flat_map(Row::figures);
    match rows.find(|one| one.event == row.event) {
        Some(found) => found.value.number(),
        // Unless nothing at all was counted.
        None if row.or_zero => of_it.next()?.rows.first()?.value.number().map(|_| 0.0),
        None => None,
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation, of two values or more.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() as f64 - 1.0)).sqrt())
}
