//! A recording's report: one pass over its rows.

use std::ops::ControlFlow;
use std::path::Path;

use super::{FullEnergy, Inputs, Planner, Report, Summary};
use crate::ledger::Booked;
use crate::recording::{Recorded, RecordingError};

/// Sums up a recording, row by row; memory does not grow with the file.
///
/// # Errors
/// If the file cannot be read.
pub fn read(file: &Path, full: FullEnergy, inputs: &Inputs) -> Result<Report, RecordingError> {
    let recorded = Recorded::open(file)?;
    let mut summary = Summary::new(recorded.simulated);
    recorded.meters(|id, meter| summary.describe_meter(id, &meter))?;
    recorded.floors(|id, floor| summary.set_floor(id, floor))?;
    recorded.services(|id, name, model| summary.describe_service(id, name, model))?;
    let mut planner = planner(&recorded)?;
    let mut add = |booked: &Booked| {
        summary.add(booked);
        if let Some(planner) = &mut planner {
            planner.add(booked);
        }
    };
    recorded.holes(|hole| add(&hole))?;
    recorded.intervals(|interval| add(&interval))?;
    // Before the requests: whether a request's tokens are counted is known from the start.
    recorded.tokens(|delta| summary.add_tokens(&delta))?;
    let _all: ControlFlow<()> = recorded.requests(|request| {
        summary.add_request(&request.booked);
        if let Some(planner) = &mut planner {
            planner.add_request(&request.booked);
        }
        ControlFlow::Continue(())
    })?;
    if let Some((from, to)) = recorded.window()? {
        summary.set_window(from, to);
    }
    let mut report = summary.report(full);
    if let Some(planner) = planner {
        let today = recorded.today()?;
        report.planner = Some(planner.plan(&report, inputs, full, Some(&today)));
    }
    Ok(report)
}

/// Where there are intervals.
fn planner(recorded: &Recorded) -> Result<Option<Planner>, RecordingError> {
    let Some((from, to)) = recorded.window()? else {
        return Ok(None);
    };
    let mut planner = Planner::new(from, to);
    recorded.meters(|id, meter| planner.describe_meter(id, &meter))?;
    recorded.services(|id, name, _| planner.describe_service(id, name))?;
    recorded.engines(|id, engine, version| planner.describe_engine(id, engine, version))?;
    recorded.facts(|name, value| planner.add_fact(name, value))?;
    recorded.waits_by_reason(|_, reason, nanos| planner.add_host_wait(reason, nanos))?;
    Ok(Some(planner))
}
