//! A recording's report: one pass over its rows.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::{FullEnergy, Inputs, Planner, Report, Summary};
use crate::ledger::Booked;
use crate::recording::{Recorded, RecordedRequest, RecordingError};

/// Rows that go over together to the thread that adds them up …
const TOGETHER: usize = 512;
/// … and how many such loads may wait there.
const WAITING: usize = 8;

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
    // Before the requests: whether a request's tokens are counted is known from the start.
    recorded.tokens(|delta| summary.add_tokens(&delta))?;
    recorded.host(|host| summary.add_host(&host))?;
    recorded.starved(|service, _, reason, nanos| summary.add_starved(service, reason, nanos))?;
    if let Some((events, requests)) = losses(&recorded)? {
        summary.set_losses(events, requests);
    }
    tell_all(&recorded, file, |booked| {
        summary.add(booked);
        if let Some(planner) = &mut planner {
            planner.add(booked);
        }
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

/// Tells `add` all that was booked. To read rows takes longer than to add them up, and there are millions: the
/// later half of the requests is read by a thread of its own, and a third one adds up.
fn tell_all(
    recorded: &Recorded,
    file: &Path,
    mut add: impl FnMut(&Booked) + Send,
) -> Result<(), RecordingError> {
    let latest = recorded.latest_booking()?;
    let half = latest.map_or(0, |latest| latest / 2);
    let again = Recorded::open(file)?;
    let cannot_start = |error| RecordingError::Io {
        path: file.to_owned(),
        error,
    };
    thread::scope(|scope| {
        let (mut earlier, first) = Rows::channel();
        let (mut later, second) = Rows::channel();
        let sums = move || {
            // In turns, so that sums of floating point are the same each time.
            loop {
                let batches = [first.recv(), second.recv()];
                if batches.iter().all(Result::is_err) {
                    break;
                }
                let rows = batches.into_iter().flatten().flatten();
                rows.for_each(|booked| add(&booked));
            }
        };
        thread::Builder::new()
            .name("sums".to_owned())
            .spawn_scoped(scope, sums)
            .map_err(cannot_start)?;
        let read_later = move || -> Result<(), RecordingError> {
            if let Some(latest) = latest {
                let push = |request: &RecordedRequest| later.push(Booked::Request(request.booked));
                again.requests_booked(half + 1..=latest, push)?;
            }
            later.hand_over();
            Ok(())
        };
        let reader = thread::Builder::new()
            .name("rows".to_owned())
            .spawn_scoped(scope, read_later)
            .map_err(cannot_start)?;

        recorded.holes(|hole| earlier.push(hole))?;
        recorded.intervals(|interval| earlier.push(interval))?;
        let mut push = |request: &RecordedRequest| earlier.push(Booked::Request(request.booked));
        if latest.is_some() {
            recorded.requests_booked(0..=half, push)?;
        } else {
            let _all: ControlFlow<()> = recorded.requests(|request| {
                push(request);
                ControlFlow::Continue(())
            })?;
        }
        earlier.hand_over();
        drop(earlier);
        reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Rows on their way to another thread.
struct Rows {
    full: SyncSender<Vec<Booked>>,
    batch: Vec<Booked>,
}

impl Rows {
    fn channel() -> (Self, Receiver<Vec<Booked>>) {
        let (full, received) = sync_channel(WAITING);
        let batch = Vec::with_capacity(TOGETHER);
        (Self { full, batch }, received)
    }

    fn push(&mut self, row: Booked) {
        self.batch.push(row);
        if self.batch.len() == TOGETHER {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(TOGETHER));
        // Nobody takes it where the other thread panicked, which the scope says at its end.
        let _ = self.full.send(batch);
    }
}

/// Events and request records that were lost, where the file tells it.
fn losses(recorded: &Recorded) -> Result<Option<(u64, u64)>, RecordingError> {
    let (mut events, mut requests) = (None, None);
    recorded.facts(|key, value| match key {
        "events_lost" => events = value.parse().ok(),
        "requests_lost" => requests = value.parse().ok(),
        _ => {}
    })?;
    Ok(events.zip(requests))
}

/// Where there are intervals.
fn planner(recorded: &Recorded) -> Result<Option<Planner>, RecordingError> {
    let Some((from, to)) = recorded.window()? else {
        return Ok(None);
    };
    let mut planner = Planner::new(from, to);
    recorded.meters(|id, meter| planner.describe_meter(id, &meter))?;
    recorded.services(|id, name, model| planner.describe_service(id, name, model))?;
    recorded.engines(|told| planner.describe_engine(&told))?;
    recorded.facts(|name, value| planner.add_fact(name, value))?;
    recorded.waits_by_reason(|_, reason, nanos| planner.add_host_wait(reason, nanos))?;
    recorded.throttled(|meter, _, reason, nanos| planner.add_throttled(meter, reason, nanos))?;
    Ok(Some(planner))
}
