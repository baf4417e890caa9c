//! The report as a document: sections of figures, tables, charts and words. HTML, Markdown and CSV show
//! this and nothing else, so that none has a figure of its own.

mod answers;
mod devices;
mod fleet;
mod grounds;
mod services;
mod trend;
mod versions;

use super::chart::Chart;
use super::figures::{UNKNOWN, count, figure, percent};
use super::model::Report;

/// What the forms show.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) title: String,
    /// Said before anything else.
    pub(super) notices: Vec<String>,
    pub(super) sections: Vec<Section>,
}

/// A section; its id names it in CSV and in links.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) blocks: Vec<Block>,
}

#[derive(Debug)]
pub(super) enum Block {
    Text(String),
    Cards {
        title: &'static str,
        figures: Vec<Figure>,
    },
    Table(Table),
    Chart(Chart),
    Finding(Finding),
}

/// A figure with its name.
#[derive(Debug)]
pub(super) struct Figure {
    /// Its name in CSV.
    pub(super) key: &'static str,
    pub(super) label: &'static str,
    pub(super) value: Value,
    pub(super) unit: String,
    pub(super) note: String,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) caption: &'static str,
    /// What a row is.
    pub(super) subject: &'static str,
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
    /// Folded up where the form can.
    pub(super) long: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) key: &'static str,
    pub(super) label: &'static str,
    pub(super) unit: String,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) subject: String,
    /// As many as columns.
    pub(super) cells: Vec<Value>,
}

/// Something to do.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) key: String,
    pub(super) title: String,
    pub(super) figures: Vec<Figure>,
    pub(super) advice: String,
    pub(super) method: String,
}

/// A value, `None` where it is not known.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Number(Option<f64>),
    Count(Option<u64>),
    /// A part of a whole, shown in per cent.
    Ratio(Option<f64>),
    /// From one to another: 0.1 is 10 % more.
    Change(Option<f64>),
    Text(Option<String>),
}

impl Document {
    pub(super) fn new(report: &Report, title: &str) -> Self {
        let mut notices = Vec::new();
        if report.simulated {
            notices.push(
                "Simulated: the GPU behind these figures is a simulator. They show how the method works, not what any hardware \
                 draws."
                    .to_owned(),
            );
        }
        if report.planner.is_none() {
            notices.push(
                "No meter's energy is in this recording: there is nothing to divide. `perjoule doctor` says which meters this \
                 machine has."
                    .to_owned(),
            );
        }
        notices.extend(report.fleet.iter().flat_map(fleet::notices));
        let mut sections = Vec::new();
        if let Some(plan) = &report.planner {
            sections.push(answers::answers(report, plan));
            sections.push(answers::savings(plan));
            sections.push(trend::trend(plan));
        }
        let plan = report.planner.as_ref();
        let changes = plan.and_then(|plan| versions::versions(plan, report.fleet.is_some()));
        match &report.fleet {
            Some(fleet) => {
                let [clusters, models, gpu_types, nodes] = fleet::groups(report, fleet);
                sections.extend([clusters, models]);
                sections.extend(changes);
                sections.extend([gpu_types, nodes]);
            }
            None => {
                sections.push(services::services(report));
                sections.extend(changes);
                sections.push(devices::meters(report));
            }
        }
        if let Some(plan) = &report.planner {
            if report.fleet.is_none() {
                sections.push(devices::load_curve(plan));
                sections.push(devices::headroom(plan));
                sections.push(devices::starvation(report, plan));
            }
            sections.push(grounds::carbon(plan));
            sections.push(match &report.fleet {
                Some(fleet) => fleet::coverage(fleet),
                None => grounds::coverage(report, plan),
            });
        }
        sections.push(match &report.fleet {
            Some(_) => fleet::method(report),
            None => grounds::method(report),
        });
        if let Some(plan) = &report.planner {
            sections.push(grounds::inputs(plan));
            sections.push(grounds::environment(plan));
        }
        Self {
            title: title.to_owned(),
            notices,
            sections,
        }
    }
}

impl Figure {
    pub(super) fn new(key: &'static str, label: &'static str, value: Value, unit: &str) -> Self {
        Self {
            key,
            label,
            value,
            unit: unit.to_owned(),
            note: String::new(),
        }
    }

    pub(super) fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }
}

impl Column {
    pub(super) fn new(key: &'static str, label: &'static str, unit: &str) -> Self {
        Self {
            key,
            label,
            unit: unit.to_owned(),
        }
    }
}

impl Table {
    /// Without the columns of which nothing is known; a table without any is none.
    pub(super) fn known(mut self) -> Option<Self> {
        let known = |rows: &[Row], column: usize| {
            let cells = rows.iter().filter_map(|row| row.cells.get(column));
            cells.into_iter().any(Value::is_known)
        };
        let keep: Vec<bool> = (0..self.columns.len())
            .map(|column| known(&self.rows, column))
            .collect();
        let mut kept = keep.iter();
        self.columns.retain(|_| kept.next() == Some(&true));
        for row in &mut self.rows {
            let mut kept = keep.iter();
            row.cells.retain(|_| kept.next() == Some(&true));
        }
        (!self.columns.is_empty()).then_some(self)
    }
}

impl Value {
    pub(super) const fn is_known(&self) -> bool {
        match self {
            Self::Number(value) | Self::Ratio(value) | Self::Change(value) => value.is_some(),
            Self::Count(value) => value.is_some(),
            Self::Text(value) => value.is_some(),
        }
    }

    /// For people.
    pub(super) fn shown(&self) -> String {
        let shown = match self {
            Self::Number(value) => value.map(figure),
            Self::Count(value) => value.map(count),
            Self::Ratio(value) => value.map(percent),
            Self::Change(value) => value.map(|change| format!("{:+.1} %", change * 100.0)),
            Self::Text(value) => value.clone(),
        };
        shown.unwrap_or_else(|| UNKNOWN.to_owned())
    }

    /// For programs: all digits; `None` where it is not known.
    pub(super) fn exact(&self) -> Option<String> {
        match self {
            Self::Number(value) | Self::Ratio(value) | Self::Change(value) => {
                value.map(|value| value.to_string())
            }
            Self::Count(value) => value.map(|value| value.to_string()),
            Self::Text(value) => value.clone(),
        }
    }

    /// True of text.
    pub(super) const fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }
}
