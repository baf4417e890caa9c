//! A report as rows: a value, its unit, what it is, and a remark. Every form of `stat` is made of them: the table,
//! the separated lines of `-x`, the lines of `-I`, and the means of `-r`.

mod meter;
mod service;

use super::figures::{UNCOUNTED, UNKNOWN, count, figure, percent};
use super::model::Report;

/// What a row says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    Count(u64),
    Figure(f64),
    /// This machine, or what was asked for, does not give it.
    NotSupported,
    /// It could be known, and nothing ran that it would count.
    NotCounted,
    /// The row goes on with remarks on the one above.
    Nothing,
}

impl Value {
    /// What people read.
    pub(super) fn shown(self) -> String {
        match self {
            Self::Count(number) => count(number),
            Self::Figure(number) => figure(number),
            Self::NotSupported => UNKNOWN.to_owned(),
            Self::NotCounted => UNCOUNTED.to_owned(),
            Self::Nothing => String::new(),
        }
    }

    /// What programs read: all digits; what is not known in the same words.
    pub(super) fn plain(self) -> String {
        match self.number() {
            Some(number) => number.to_string(),
            None => self.shown(),
        }
    }

    pub(super) fn number(self) -> Option<f64> {
        match self {
            Self::Count(number) => Some(number as f64),
            Self::Figure(number) => Some(number).filter(|number| number.is_finite()),
            Self::NotSupported | Self::NotCounted | Self::Nothing => None,
        }
    }
}

/// A figure of its own that the table has in a row's remark.
#[derive(Debug, Clone)]
pub(super) struct Also {
    pub(super) event: String,
    pub(super) unit: &'static str,
    pub(super) value: Value,
    /// As the remark has it.
    pub(super) shown: String,
    /// It is left out where it is 0.
    or_zero: bool,
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Its name to programs; it does not change.
    pub(super) event: String,
    pub(super) value: Value,
    pub(super) unit: &'static str,
    /// Its name to people.
    pub(super) what: String,
    /// Half-width of a 95 % interval ÷ value.
    pub(super) bound: Option<f64>,
    /// What follows from it: a number and its unit.
    pub(super) metric: Option<(f64, &'static str)>,
    /// The part of the time for which it was counted; the rest is extrapolated.
    pub(super) counted: Option<f64>,
    pub(super) also: Vec<Also>,
    pub(super) note: String,
    /// One of those that `-I` shows and `-r` warns of.
    pub(super) main: bool,
    /// It is left out where it is 0.
    pub(super) or_zero: bool,
}

impl Row {
    pub(super) fn new(event: &str, value: Value, unit: &'static str, what: &str) -> Self {
        Self {
            event: event.to_owned(),
            value,
            unit,
            what: what.to_owned(),
            bound: None,
            metric: None,
            counted: None,
            also: Vec::new(),
            note: String::new(),
            main: false,
            or_zero: false,
        }
    }

    /// A row of remarks on the one above.
    pub(super) fn more(note: impl Into<String>) -> Self {
        Self::new("", Value::Nothing, "", "").note(note)
    }

    pub(super) const fn main(mut self) -> Self {
        self.main = true;
        self
    }

    pub(super) const fn or_zero(mut self) -> Self {
        self.or_zero = true;
        self
    }

    pub(super) const fn bound(mut self, ratio: Option<f64>) -> Self {
        self.bound = ratio;
        self
    }

    pub(super) fn metric(mut self, value: Option<f64>, unit: &'static str) -> Self {
        self.metric = value
            .filter(|value| value.is_finite())
            .map(|value| (value, unit));
        self
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// One more figure in the remark; left out where it is not known.
    pub(super) fn also(
        mut self,
        event: &str,
        value: Option<Value>,
        unit: &'static str,
        shown: impl Fn(String) -> String,
    ) -> Self {
        if let Some(value) = value {
            self.also.push(Also {
                event: event.to_owned(),
                unit,
                value,
                shown: shown(value.shown()),
                or_zero: false,
            });
        }
        self
    }

    /// A part of the count, told in the remark where it is more than 0.
    fn part(mut self, event: &str, number: u64, what: &str) -> Self {
        if number > 0 {
            self.also.push(Also {
                event: event.to_owned(),
                unit: "",
                value: Value::Count(number),
                shown: format!("{} {what}", count(number)),
                or_zero: true,
            });
        }
        self
    }

    /// What stands behind the figure in the table.
    pub(super) fn remark(&self) -> String {
        let bound = self.bound.map(|ratio| format!("± {}", percent(ratio)));
        let metric = self.metric.map(|(value, unit)| match unit {
            "%" => percent(value / 100.0),
            _ => format!("{} {unit}", figure(value)),
        });
        let note = Some(self.note.clone()).filter(|note| !note.is_empty());
        let also = self.also.iter().map(|also| also.shown.clone());
        let parts = bound.into_iter().chain(metric).chain(also).chain(note);
        parts.collect::<Vec<_>>().join(", ")
    }

    /// It, and the figures of its remark, each as a row.
    pub(super) fn figures(&self) -> impl Iterator<Item = Self> {
        let own = (self.value != Value::Nothing).then(|| self.clone());
        let also = self.also.iter().map(|also| {
            let mut row = Self::new(&also.event, also.value, also.unit, &self.named(also));
            row.or_zero = also.or_zero;
            row
        });
        own.into_iter().chain(also)
    }

    /// What a figure of the remark is.
    fn named(&self, also: &Also) -> String {
        let name = also.event.rsplit('_').next().unwrap_or_default();
        let is_quantile = name
            .strip_prefix('p')
            .is_some_and(|of| of.parse::<u8>().is_ok());
        if !is_quantile {
            return also.event.replace('_', " ");
        }
        let what = self.what.trim_start().trim_end_matches(", p50");
        format!("{what}, {name}")
    }
}

/// Rows on one thing.
#[derive(Debug)]
pub(super) struct Section {
    /// What it is: a service's name, a meter's device, `agent`.
    pub(super) subject: String,
    /// The line above the rows, where there is one.
    pub(super) title: String,
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// All rows, in the table's order.
    pub(super) fn sections(&self) -> Vec<Section> {
        let services = self.services.iter().map(|one| service::section(one, self));
        let meters = self.meters.iter().map(|one| meter::section(one, self));
        let mut sections: Vec<Section> = services.chain(meters).collect();
        sections.extend(meter::all_gpus(self));
        sections.push(self.check());
        sections
    }

    /// Whether it adds up, and what is missing.
    fn check(&self) -> Section {
        let lost = |lost| counted(lost, Value::NotSupported);
        let residual = counted(self.ledger.residual_microjoules, Value::NotSupported);
        Section {
            subject: "ledger".to_owned(),
            title: String::new(),
            rows: vec![
                Row::new("ledger_residual", residual, "µJ", "ledger residual"),
                Row::new(
                    "requests_lost",
                    lost(self.losses.requests),
                    "",
                    "requests lost",
                ),
                Row::new("events_lost", lost(self.losses.events), "", "events lost"),
            ],
        }
    }
}

/// A figure, or why there is none.
fn known(value: Option<f64>, or: Value) -> Value {
    value.map_or(or, Value::Figure)
}

/// A count, or why there is none.
fn counted(value: Option<u64>, or: Value) -> Value {
    value.map_or(or, Value::Count)
}

/// By the second, or what the unit is.
fn per(number: f64, duration: Option<f64>) -> Option<f64> {
    duration
        .filter(|duration| *duration > 0.0)
        .map(|duration| number / duration)
}
