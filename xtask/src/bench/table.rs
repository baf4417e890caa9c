//! The figures, as a table for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::interval::Interval;

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub(super) enum Budget {
    /// The figure itself.
    Figure(f64),
    /// Its ratio to the peer.
    Ratio(f64),
}

/// One figure.
#[derive(Debug, Clone)]
pub(super) struct Row {
    name: String,
    unit: &'static str,
    /// In the order they were measured; the median is the figure.
    values: Vec<f64>,
    peer: Vec<f64>,
    ratios: Vec<f64>,
    budget: Option<Budget>,
    remark: Option<String>,
}

impl Row {
    /// A figure measured once or several times; with none it is not available.
    pub(super) fn new(
        name: impl Into<String>,
        unit: &'static str,
        values: impl IntoIterator<Item = f64>,
    ) -> Self {
        Self {
            name: name.into(),
            unit,
            values: values.into_iter().collect(),
            peer: Vec::new(),
            ratios: Vec::new(),
            budget: None,
            remark: None,
        }
    }

    /// The peer's figures from the same runs, in the same order.
    pub(super) fn peer(mut self, values: impl IntoIterator<Item = f64>) -> Self {
        self.peer = values.into_iter().collect();
        self.ratios = self
            .values
            .iter()
            .zip(&self.peer)
            .filter(|(_, peer)| **peer > 0.0)
            .map(|(ours, peer)| ours / peer)
            .collect();
        self
    }

    pub(super) fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Printed below the table.
    pub(super) fn remark(mut self, text: impl Into<String>) -> Self {
        self.remark = Some(text.into());
        self
    }

    /// What is held against the budget.
    fn interval(&self) -> Option<Interval> {
        match self.budget {
            Some(Budget::Figure(_)) => Interval::of(&self.values),
            _ => Interval::of_ratios(&self.ratios),
        }
    }

    /// Over only where the lower bound is, ok only where the upper bound is; between them the
    /// mean decides, with a question mark.
    fn verdict(&self) -> &'static str {
        let (Some(Budget::Figure(limit) | Budget::Ratio(limit)), Some(measured)) =
            (self.budget, self.interval())
        else {
            return "-";
        };
        if measured.lower > limit {
            "over"
        } else if measured.upper <= limit {
            "ok"
        } else if measured.mean <= limit {
            "ok?"
        } else {
            "over?"
        }
    }

    fn budget_text(&self) -> String {
        match self.budget {
            Some(Budget::Figure(limit)) => format!("≤ {}", number(limit)),
            Some(Budget::Ratio(limit)) => format!("≤ {}×", number(limit)),
            None => "-".to_owned(),
        }
    }

    fn cells(&self) -> [String; COLUMNS] {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
        [
            self.name.clone(),
            median(&self.values).map_or_else(|| "not available".to_owned(), number),
            range(&self.values),
            self.unit.to_owned(),
            optional(median(&self.peer)),
            Interval::of_ratios(&self.ratios)
                .map_or_else(|| "-".to_owned(), |of| format!("{:.2}×", of.mean)),
            match self.interval() {
                Some(of) if of.lower < of.upper => {
                    format!("{} to {}", number(of.lower), number(of.upper))
                }
                _ => "-".to_owned(),
            },
            self.budget_text(),
            self.verdict().to_owned(),
        ]
    }

    fn to_json(&self) -> Value {
        let (figure, ratio) = match self.budget {
            Some(Budget::Figure(limit)) => (Some(limit), None),
            Some(Budget::Ratio(limit)) => (None, Some(limit)),
            None => (None, None),
        };
        json!({
            "name": self.name,
            "unit": self.unit,
            "figure": median(&self.values),
            "values": self.values,
            "peer": median(&self.peer),
            "peer_values": self.peer,
            "ratio": Interval::of_ratios(&self.ratios).map(|of| of.mean),
            "bounds": self.interval().map(|of| [of.lower, of.upper]),
            "budget": figure,
            "budget_ratio": ratio,
            "verdict": self.verdict(),
            "remark": self.remark,
        })
    }
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle).copied()?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted.get(middle - 1)? + upper) / 2.0)
}

const COLUMNS: usize = 9;

const HEADS: [&str; COLUMNS] = [
    "figure", "median", "range", "unit", "peer", "ratio", "bounds", "budget", "verdict",
];

/// The figures that are over budget, beyond what their runs leave open.
pub(super) fn over(rows: &[Row]) -> impl Iterator<Item = &str> {
    rows.iter()
        .filter(|row| row.verdict() == "over")
        .map(|row| row.name.as_str())
}

/// For people.
pub(super) fn to_text(rows: &[Row]) -> String {
    let cells: Vec<[String; COLUMNS]> = std::iter::once(HEADS.map(str::to_owned))
        .chain(rows.iter().map(Row::cells))
        .collect();
    let mut widths = [0; COLUMNS];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &cells {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Writing to a string cannot fail.
            let _ = match column {
                0 | 3 | 8 => write!(line, "{cell:<width$}  "),
                _ => write!(line, "{cell:>width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for row in rows {
        if let Some(remark) = &row.remark {
            let _ = writeln!(text, "{}: {remark}", row.name);
        }
    }
    text
}

/// For programs: one line.
pub(super) fn to_json(rows: &[Row], machine: &Value) -> String {
    let rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
    json!({ "schema": 1, "machine": machine, "rows": rows }).to_string()
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size == size.round() => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn range(values: &[f64]) -> String {
    if values.len() < 2 {
        return "-".to_owned();
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} to {}", number(low), number(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_within_each_run() {
        let row = Row::new("r", "ns", [10.0, 30.0, 300.0])
            .peer([10.0, 20.0, 200.0])
            .budget(Budget::Ratio(0.5));
        assert_eq!(row.ratios, [1.0, 1.5, 1.5]);
        assert_eq!(row.verdict(), "over");
        assert_eq!(over(&[row]).collect::<Vec<_>>(), ["r"]);
    }

    #[test]
    fn what_the_runs_leave_open_has_a_question_mark_and_is_not_over() {
        let row = |values: [f64; 3]| Row::new("r", "%", values).budget(Budget::Figure(10.0));
        assert_eq!(row([9.0, 11.0, 40.0]).verdict(), "over?");
        assert_eq!(row([12.0, 12.5, 12.2]).verdict(), "over");
        assert_eq!(row([9.0, 8.0, 11.0]).verdict(), "ok?");
        assert_eq!(row([9.0, 8.9, 9.1]).verdict(), "ok");
    }

    #[test]
    fn what_was_not_measured_is_neither_within_budget_nor_over() {
        let row = Row::new("r", "ns", []).budget(Budget::Figure(1.0));
        assert_eq!(row.verdict(), "-");
        assert!(to_text(&[row]).contains("not available"));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
