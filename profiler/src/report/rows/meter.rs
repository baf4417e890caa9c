//! A meter's rows: its whole energy, what of it is above idle, and where it went.

use super::{Row, Section, Value, known, per};
use crate::ledger::Component;
use crate::report::figures::figure;
use crate::report::model::{MeterReport, Report};

pub(super) fn section(meter: &MeterReport, report: &Report) -> Section {
    let (component, source) = (meter.component.name(), meter.source.name());
    // Without an interval it has told nothing yet.
    let energy = known(meter.energy_j, Value::NotCounted);
    let watts = meter
        .energy_j
        .and_then(|energy| per(energy, report.duration_s));
    let mut rows = vec![
        Row::new("meter_energy", energy, "J", "energy")
            .metric(watts, "W")
            .note(format!("gross, from {source}"))
            .main(),
        Row::new(
            "meter_energy_above_idle",
            known(meter.above_idle_j, Value::NotCounted),
            "J",
            "energy above idle",
        )
        .note(floor(meter))
        .main(),
    ];
    for (name, energy) in meter.accounts_j.rows() {
        let total = meter.energy_j.filter(|total| *total > 0.0);
        let share = energy.zip(total).map(|(energy, total)| energy / total);
        // An account without energy says nothing; that it is 0 follows from the others.
        if let Some(energy) = energy.filter(|energy| *energy != 0.0) {
            let (event, what) = (format!("account_{name}"), format!("  {name}"));
            let row = Row::new(&event, Value::Figure(energy), "J", &what);
            rows.push(row.metric(share.map(|share| share * 100.0), "%").or_zero());
        }
    }
    Section {
        subject: meter.device.clone(),
        title: format!("meter {component} {} ({source})", meter.device),
        rows,
    }
}

/// Where what is idle comes from.
fn floor(meter: &MeterReport) -> String {
    let told = match (meter.idle_w, meter.idle_source.as_deref()) {
        (Some(watts), Some(source)) => format!("idle {} W, {source}", figure(watts)),
        (None, Some(_)) => "no idle floor is known".to_owned(),
        _ => String::new(),
    };
    match meter.energy_j {
        Some(_) => told,
        None => String::new(),
    }
}

/// The sums over all GPUs, where there are several.
pub(super) fn all_gpus(report: &Report) -> Option<Section> {
    let gpus = || {
        let meters = report.meters.iter();
        meters.filter(|meter| meter.component == Component::Gpu)
    };
    let number = gpus().count();
    if number < 2 {
        return None;
    }
    let sum = |part: fn(&MeterReport) -> Option<f64>| -> Option<f64> { gpus().map(part).sum() };
    let energy = sum(|meter| meter.energy_j);
    let above = sum(|meter| meter.above_idle_j);
    let watts = energy.and_then(|energy| per(energy, report.duration_s));
    Some(Section {
        subject: "gpus".to_owned(),
        title: format!("all {number} GPUs"),
        rows: vec![
            Row::new(
                "gpus_energy",
                known(energy, Value::NotCounted),
                "J",
                "energy",
            )
            .metric(watts, "W")
            .note("gross")
            .main(),
            Row::new(
                "gpus_energy_above_idle",
                known(above, Value::NotCounted),
                "J",
                "energy above idle",
            )
            .main(),
        ],
    })
}
