//! Whether it gets better, and whether the total falls with it.

use super::{Block, Column, Row, Section, Table, Value};
use crate::ledger::Accounts;
use crate::report::chart::{Chart, Marks, Series};
use crate::report::planner::model::{Part, Plan};

pub(super) fn trend(plan: &Plan) -> Section {
    let parts = &plan.trend.parts;
    let (size, x) = time_axis(parts);
    let mut blocks = Vec::new();
    blocks.push(Block::Text(plan.trend.change.as_ref().map_or_else(
        || "The two halves of the period cannot be compared: in one of them no request ended, or too little was measured.".to_owned(),
        |change| change.words(),
    )));
    let place = |part: &Part| f64::midpoint(part.from_s, part.to_s) / size;
    blocks.push(Block::Chart(Chart {
        id: "power-by-account",
        title: "Where the power went",
        description: "Mean power of all meters by account, over the period.".to_owned(),
        x,
        y: "W",
        marks: Marks::Areas(account_areas(parts, size)),
    }));
    let each = |part: &Part| (place(part), part.j_per_request);
    if parts.iter().any(|part| part.requests > 0) {
        blocks.push(Block::Chart(Chart {
            id: "energy-per-request",
            title: "Energy per request",
            description: "All energy that was measured ÷ requests that ended, over the period."
                .to_owned(),
            x,
            y: "J per request",
            marks: Marks::Lines(vec![Series {
                name: "J per request".to_owned(),
                points: parts.iter().map(each).collect(),
            }]),
        }));
    }
    let row = |part: &Part| Row {
        subject: format!("{:.0}-{:.0} s", part.from_s, part.to_s),
        cells: vec![
            Value::Number(Some(part.energy_j)),
            Value::Count(Some(part.requests)),
            Value::Number(part.j_per_request),
            Value::Ratio(Some(part.booked_ratio)),
        ],
    };
    blocks.push(Block::Table(Table {
        caption: "The period in equal parts",
        subject: "since its start",
        columns: vec![
            Column::new("energy", "energy", "J"),
            Column::new("requests", "requests", ""),
            Column::new("j_per_request", "per request", "J"),
            Column::new("booked_ratio", "time measured", ""),
        ],
        rows: parts.iter().map(row).collect(),
        long: true,
    }));
    Section {
        id: "trend",
        title: "Trend",
        blocks,
    }
}

/// Seconds in a unit that fits the period, and its name.
fn time_axis(parts: &[Part]) -> (f64, &'static str) {
    match parts.last().map_or(0.0, |part| part.to_s) {
        ..180.0 => (1.0, "seconds since the start"),
        ..10_800.0 => (60.0, "minutes since the start"),
        ..259_200.0 => (3_600.0, "hours since the start"),
        _ => (86_400.0, "days since the start"),
    }
}

/// Mean power by account, as steps; accounts that are never used are left out.
fn account_areas(parts: &[Part], size: f64) -> Vec<Series> {
    let area = |number: usize, name: &&str| {
        let power = |part: &Part| {
            let (_, energy) = *part.accounts_j.rows().get(number)?;
            Some(energy? / (part.to_s - part.from_s))
        };
        let used = parts.iter().filter_map(power).any(|power| power > 0.0);
        let steps = parts.iter().flat_map(|part| {
            let power = power(part);
            [(part.from_s / size, power), (part.to_s / size, power)]
        });
        used.then(|| Series {
            name: (*name).to_owned(),
            points: steps.collect(),
        })
    };
    let accounts = Accounts::NAMES.iter().enumerate();
    accounts
        .filter_map(|(number, name)| area(number, name))
        .collect()
}
