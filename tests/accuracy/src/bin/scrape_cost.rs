//! What a scrape costs by its size: one line of JSON a run, milliseconds and bytes.
//!
//! Services with everything that one has by default, as many as make so many series. Each run
//! publishes a snapshot and has each of its bodies made for the first time.

use std::time::{Duration, Instant};

use clap::Parser;
use profiler::clock::Timestamp;
use profiler::export::{Encoding, Format, Metrics};
use profiler::ledger::{
    Accounts, Booked, BookedInterval, BookedRequest, Class, Component, CpuTime, End, ErrorRatios,
    Input, Meter, MeterId, Outcome, Owner, Request, RequestId, Route, ServiceId, ServiceShare,
    Source,
};
use profiler::units::Microjoules;
use profiler::waits::{Reason, Waits};

#[derive(Parser)]
struct Options {
    /// Runs of each size
    #[arg(long, default_value_t = 10)]
    repeats: u32,
}

fn main() {
    let options = Options::parse();
    for wanted in [2_000, 10_000] {
        let mut metrics = filled(wanted);
        for _ in 0..options.repeats {
            for format in [Format::Text, Format::OpenMetrics] {
                run(&mut metrics, format);
            }
        }
    }
}

fn run(metrics: &mut Metrics, format: Format) {
    serve(metrics, ServiceId(0));
    let publish = timed(|| metrics.publish(Timestamp::now(), None)).1;
    let snapshot = metrics.exposition().latest().expect("a snapshot");
    let (plain, encode) = timed(|| snapshot.body(format, Encoding::Identity));
    let (packed, compress) = timed(|| snapshot.body(format, Encoding::Gzip));
    let lines = plain.split(|byte| *byte == b'\n');
    let series = lines.filter(|line| line.first().is_some_and(|first| *first != b'#'));
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{{\"format\":\"{format:?}\",\"series\":{},\"publish_ms\":{},\"encode_ms\":{},\
         \"gzip_ms\":{},\"bytes\":{},\"gzip_bytes\":{}}}",
        series.count(),
        millis(publish),
        millis(encode),
        millis(compress),
        plain.len(),
        packed.len(),
    );
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

/// At least so many series, and no service more than that takes.
fn filled(series: usize) -> Metrics {
    let mut metrics = Metrics::new("0.1.0");
    // Nothing is folded here.
    metrics.set_series_budget(2 * series);
    metrics.describe_meter(
        MeterId(0),
        &Meter {
            component: Component::Gpu,
            device: "GPU-5c3f7a1e-8a0c-4b7e-9d52-1f2e3d4c5b6a".to_owned(),
            source: Source::Counter,
            limit: None,
            tick: 100_000_000,
            stale_after: 1_000_000_000,
            gain_error_ratio: 0.05,
            idle: None,
        },
    );
    for number in 0.. {
        metrics.publish(Timestamp::now(), None);
        let snapshot = metrics.exposition().latest().expect("a snapshot");
        let text = snapshot.body(Format::Text, Encoding::Identity);
        let lines = text.split(|byte| *byte == b'\n');
        let shown = lines.filter(|line| line.first().is_some_and(|first| *first != b'#'));
        if shown.count() >= series {
            break;
        }
        let id = ServiceId(number);
        let container = format!("{:012x}", u64::from(number + 1) * 0x9e37_79b9 % (1 << 48));
        metrics.describe_service(id, &container, Some("meta-llama/Llama-3.1-8B-Instruct"));
        serve(&mut metrics, id);
    }
    metrics
}

/// Requests on two routes, some of which end early, and what the service's threads did.
fn serve(metrics: &mut Metrics, id: ServiceId) {
    let now = Timestamp::now();
    let earlier = |millis| now.minus(Duration::from_millis(millis));
    let share = ServiceShare {
        service: id,
        requests: Microjoules(123_456_789),
        overhead: Microjoules(1_234_567),
        phases: None,
    };
    let accounts = Accounts {
        requests: share.requests,
        overhead: share.overhead,
        ..Accounts::default()
    };
    metrics.book(&Booked::Interval(BookedInterval {
        meter: MeterId(0),
        from: earlier(1_000),
        to: now,
        energy: accounts.total(),
        accounts,
        services: vec![share],
        holders: Some(1),
    }));
    for number in 0..40_u64 {
        let route = match number % 2 {
            0 => Route::ChatCompletions,
            _ => Route::Completions,
        };
        let outcome = if number % 7 == 0 {
            Outcome::Aborted
        } else {
            Outcome::Done
        };
        let request = Request {
            id: RequestId(1_000_000 + number),
            service: id,
            route,
            start: earlier(400 + number * 311),
            first_data: Some(earlier(300 + number * 97)),
            last_data: Some(now),
            input: Input::Bytes(4_000),
            chunks: 140,
            streamed: true,
            status: 200,
            end: Some(End { at: now, outcome }),
        };
        metrics.book(&Booked::Request(BookedRequest {
            request,
            gpu: Some(Microjoules(200_000 + number * number * 91_237)),
            phases: None,
            cpu: Some(Microjoules(700_001)),
            dram: None,
            class: Class::A,
            errors: Some(ErrorRatios {
                own: 0.0,
                common: 0.04,
            }),
            tokens: None,
        }));
    }
    metrics.record_cpu(&CpuTime {
        owner: Owner::Service(id),
        from: earlier(1_000),
        to: now,
        package: 0,
        on_cpu: 123_456_789,
        cycles: None,
    });
    let mut waits = Waits::default();
    waits.run_queue = 3_000_001;
    (waits.voluntary, waits.involuntary, waits.migrations) = (300, 20, 5);
    waits.histogram[13] = 300;
    waits.disk_histogram[20] = 4;
    waits.add_off_cpu(Reason::Disk, 6_000_001);
    waits.add_off_cpu(Reason::Poll, 150_000_003);
    metrics.record_waits(id, &waits);
}
