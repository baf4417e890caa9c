//! What the ledger alone costs on values in memory: one line of JSON a run, nanoseconds a request.
//!
//! Requests come at a steady pace and stay as long as it takes to have so many in flight. Each is
//! told `once`, at its end, or `thrice`, as it is found, at its first data and at its end; one
//! counter is read ten times a second, and the ledger advances fifty times.

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Parser;
use profiler::clock::Timestamp;
use profiler::ledger::{
    Booked, Component, Config, End, Event, Input, Ledger, Meter, Outcome, Reading, Request,
    RequestId, Route, ServiceId, Source,
};
use profiler::units::{Microjoules, Watts};

const SERVICES: u64 = 4;
const SPACING: Duration = Duration::from_micros(10);
const TICK: u64 = 20_000_000;
const COUNTER: u64 = 100_000_000;
const WATTS: u64 = 300;
const START: u64 = 1_000_000_000;

#[derive(Parser)]
struct Options {
    /// Requests a run
    #[arg(long, default_value_t = 200_000)]
    requests: u64,
    /// Runs of each kind, in turns
    #[arg(long, default_value_t = 5)]
    repeats: u32,
}

fn main() {
    let options = Options::parse();
    for _ in 0..options.repeats {
        for in_flight in [1, 100, 10_000] {
            for (told, times) in [("once", &[1.0][..]), ("thrice", &[0.1, 0.3, 1.0])] {
                let events = events(options.requests, in_flight, times);
                let nanoseconds = drive(events, options.requests);
                println!(
                    "{{\"told\":\"{told}\",\"in_flight\":{in_flight},\"ns_per_request\":{nanoseconds}}}"
                );
            }
        }
    }
}

/// Everything that is told, in order of time; requests as they stand after those parts of their
/// lives.
fn events(requests: u64, in_flight: u64, times: &[f64]) -> Vec<(Timestamp, Event)> {
    let spacing = SPACING.as_nanos() as u64;
    let life = spacing * in_flight;
    let mut events = Vec::new();
    for number in 0..requests {
        let start = START + number * spacing;
        let moment = |part: f64| Timestamp(start + (life as f64 * part) as u64);
        for &part in times {
            let at = moment(part);
            let first = moment(0.2);
            let has_data = part > 0.2;
            let request = Request {
                id: RequestId(number),
                service: ServiceId((number % SERVICES) as u32),
                route: Route::ChatCompletions,
                start: Timestamp(start),
                first_data: has_data.then_some(first),
                last_data: has_data.then_some(at),
                input: Input::Tokens(100 + number % 900),
                chunks: if has_data { (part * 20.0) as u64 } else { 0 },
                streamed: has_data,
                status: if has_data { 200 } else { 0 },
                end: (part >= 1.0).then_some(End {
                    at,
                    outcome: Outcome::Done,
                }),
            };
            events.push((at, Event::Request { at, request }));
        }
    }
    events.sort_by_key(|(at, _)| *at);
    events
}

/// Nanoseconds a request from the first event to the last booked request.
fn drive(events: Vec<(Timestamp, Event)>, requests: u64) -> f64 {
    let mut ledger = Ledger::new(Config {
        cpu: false,
        ..Config::default()
    });
    let meter = ledger.add_meter(Meter {
        component: Component::Gpu,
        device: "GPU".to_owned(),
        source: Source::Counter,
        limit: Some(Watts(700.0)),
        tick: COUNTER,
        stale_after: 2_000_000_000,
        gain_error_ratio: 0.05,
        idle: Some(Watts(80.0)),
    });
    let read = |at: u64| {
        let energy = Microjoules((at - START) / 1_000 * WATTS);
        let (after, until) = (Timestamp(at), Timestamp(at + 1));
        Event::Reading(Reading {
            meter,
            after,
            until,
            energy,
        })
    };
    let mut booked = 0;
    let mut count = |value: Booked| {
        if let Booked::Request(request) = value {
            black_box(request);
            booked += 1;
        }
    };
    let (mut tick, mut counter) = (START, START);
    let began = Instant::now();
    for (at, event) in events {
        while tick < at.0 {
            ledger.apply(Event::RequestsUntil(Timestamp(tick)));
            if counter <= tick {
                ledger.apply(read(counter));
                counter += COUNTER;
            }
            ledger.advance_into(Timestamp(tick), &mut count);
            tick += TICK;
        }
        ledger.apply(event);
    }
    ledger.apply(Event::RequestsUntil(Timestamp(counter)));
    ledger.apply(read(counter));
    ledger
        .finish(Timestamp(counter))
        .into_iter()
        .for_each(count);
    let took = began.elapsed();
    assert_eq!(booked, requests, "every request is booked once");
    assert_eq!(ledger.total_residual_microjoules(), 0);
    took.as_nanos() as f64 / requests as f64
}
