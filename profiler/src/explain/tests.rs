use super::*;
use crate::ledger::{
    Accounts, BookedInterval, BookedRequest, Class, End, ErrorRatios, FloorSource, GpuPhases,
    Input, Outcome, Request, RequestId, Route, ServiceShare, Source, TraceId,
};
use crate::recording::tests::with_one_table;
use crate::recording::{RecordedWait, Recording, StackId};
use crate::units::{Microjoules, Watts};
use crate::waits::Reason;

const SECOND: u64 = 1_000_000_000;

/// A streamed request of `seconds` from `start` on, with `joules` of GPU energy, a quarter of them for
/// its prompt.
fn request(id: u64, start: f64, seconds: f64, joules: u64) -> BookedRequest {
    let at = |seconds: f64| Timestamp((seconds * SECOND as f64) as u64);
    BookedRequest {
        request: Request {
            id: RequestId(id),
            service: ServiceId(1),
            route: Route::ChatCompletions,
            start: at(start),
            first_data: Some(at(start + seconds / 4.0)),
            last_data: Some(at(start + seconds)),
            input: Input::Bytes(4_000),
            chunks: 100,
            streamed: true,
            status: 200,
            end: Some(End {
                at: at(start + seconds),
                outcome: Outcome::Done,
            }),
        },
        gpu: Some(Microjoules(joules * 1_000_000 + 7)),
        phases: Some(GpuPhases {
            prefill: Microjoules(joules * 250_000),
            decode: Microjoules(joules * 740_000),
            wait: Microjoules(joules * 10_000 + 7),
        }),
        cpu: Some(Microjoules(500_000)),
        dram: None,
        class: Class::A,
        errors: Some(ErrorRatios {
            own: 0.04,
            common: 0.03,
        }),
        tokens: None,
    }
}

fn meter(component: Component, source: Source) -> Meter {
    Meter {
        component,
        device: format!("{}-0", component.name()),
        source,
        limit: None,
        tick: SECOND / 10,
        stale_after: 2 * SECOND,
        gain_error_ratio: 0.05,
        idle: None,
    }
}

/// Three requests of one service: 1 from 1 to 5 s, 2 from 2 to 4 s, 3 from 3 to 9 s.
fn recording(path: &std::path::Path) {
    let mut recording = Recording::create(path, "run", false).unwrap();
    recording
        .meter(MeterId(0), &meter(Component::Gpu, Source::Counter))
        .unwrap();
    let floor = Floor {
        watts: Watts(80.0),
        source: FloorSource::Fixed,
    };
    recording.floor(MeterId(0), Some(floor)).unwrap();
    recording.service(ServiceId(1), "vllm", None).unwrap();
    for booked in [
        request(1, 1.0, 4.0, 100),
        request(2, 2.0, 2.0, 40),
        request(3, 3.0, 6.0, 200),
    ] {
        recording.request(&RecordedRequest::from(booked)).unwrap();
    }
    recording.trace(RequestId(1), TraceId([0xab; 16])).unwrap();
    recording
        .book(&Booked::Interval(BookedInterval {
            meter: MeterId(0),
            from: Timestamp(0),
            to: Timestamp(10 * SECOND),
            energy: Microjoules(1_150_000_000),
            accounts: Accounts {
                idle: Microjoules(800_000_000),
                context: Microjoules(10_000_000),
                requests: Microjoules(340_000_000),
                ..Accounts::default()
            },
            services: vec![ServiceShare {
                service: ServiceId(1),
                requests: Microjoules(340_000_000),
                overhead: Microjoules::ZERO,
                phases: None,
            }],
            holders: Some(1),
        }))
        .unwrap();
    recording.fact("off_cpu_least_ns", "20000000").unwrap();
    recording.stack(StackId(1), "main\n[futex]").unwrap();
    // Of this wait from 0 to 2 s, one second lies in request 1.
    recording
        .wait(&RecordedWait {
            service: ServiceId(1),
            at: Timestamp(2 * SECOND),
            nanos: 2 * SECOND,
            reason: Reason::Futex,
            stack: StackId(1),
        })
        .unwrap();
    recording.close().unwrap();
}

fn explained(id: &str) -> (Explained, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    recording(&path);
    let recorded = Recorded::open(&path).unwrap();
    let requests = recorded.requests_of_id(id).unwrap();
    let explanation = explain(&recorded, &requests).unwrap();
    let text = explanation.to_text();
    (explanation.requests.into_iter().next().unwrap(), text)
}

#[test]
fn the_parts_sum_to_the_requests_energy_to_the_microjoule() {
    let (one, text) = explained("1");
    let energy = one.energy_uj;
    let phases = [
        energy.gpu_prefill,
        energy.gpu_decode,
        energy.gpu_wait,
        energy.gpu_not_streamed,
    ];
    assert_eq!(
        phases.into_iter().flatten().sum::<u64>(),
        energy.gpu.unwrap()
    );
    assert_eq!(
        energy.gpu.unwrap() + energy.cpu.unwrap(),
        energy.total.unwrap()
    );
    assert_eq!(energy.dram, None);
    for line in [
        "100.500007 J",
        "25.000000 J",
        "74.000000 J",
        "1.000007 J",
        "0.500000 J",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn company_position_base_and_waits_are_those_of_its_time() {
    let (one, _) = explained("1");
    // Alone for 1 s, then with 2, then with 2 and 3, then with 3.
    let company = one.company.unwrap();
    assert_eq!((company.met, company.least, company.most), (2, 1, 3));
    assert!((company.mean - 2.0).abs() < 1e-9, "{company:?}");
    let position = one.position;
    assert_eq!(position.requests, 3);
    assert_eq!((position.energy, position.duration), (Some(0.5), Some(0.5)));
    let base = one.base.unwrap();
    assert!((base.idle_j - 320.0).abs() < 1e-6 && (base.context_j - 4.0).abs() < 1e-6);
    assert!((base.equal_part_j.unwrap() - 162.0).abs() < 1e-6);
    let waits = one.service_threads.unwrap();
    assert_eq!(waits.off_cpu_s.unwrap().get("futex"), Some(&1.0));
    assert_eq!(waits.on_cpu_s, None);
    assert_eq!(one.trace, Some("ab".repeat(16)));
    let (alone, _) = explained("3");
    let company = alone.company.unwrap();
    assert_eq!((company.met, company.least, company.most), (2, 1, 3));
}

#[test]
fn rows_of_seconds_tell_a_requests_part_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    recording(&path);
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch(
            "INSERT INTO services VALUES (2, 'tgi', NULL);
            INSERT INTO host VALUES
                (1, 0, 2000000000, 1000000000, 500000000, 100000000, 0, 0, 2000000000, 0, 0, 0, 3, 4),
                (2, 0, 9000000000, 9000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
                (1, 2000000000, 4000000000, 50000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)",
        )
        .unwrap();
    let recorded = Recorded::open(&path).unwrap();
    let requests = recorded.requests_of_id("1").unwrap();
    let explanation = explain(&recorded, &requests).unwrap();
    let text = explanation.to_text();
    let waits = explanation.requests[0].service_threads.clone().unwrap();
    // From 1 s on: half of the first row, and the third one whole.
    assert_eq!(
        (waits.on_cpu_s, waits.run_queue_s),
        (Some(0.55), Some(0.25))
    );
    assert_eq!(waits.off_cpu_s.unwrap(), [("futex".to_owned(), 1.0)].into());
    assert_eq!(waits.source, WaitsSource::Seconds);
    assert!(
        text.contains("0.5500 s  on CPU                  # each second in proportion"),
        "{text}"
    );
}

#[test]
fn a_request_reads_like_this() {
    let (_, text) = explained("1");
    assert_eq!(text, include_str!("tests/request.txt"));
}

#[test]
fn what_older_recordings_do_not_hold_is_not_invented() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    recording(&path);
    with_one_table(&path)
        .execute_batch(
            "ALTER TABLE requests DROP COLUMN prefill_uj;
            ALTER TABLE requests DROP COLUMN decode_uj;
            ALTER TABLE requests DROP COLUMN wait_uj;
            DROP TABLE off_cpu;",
        )
        .unwrap();
    let recorded = Recorded::open(&path).unwrap();
    let requests = recorded.costliest(1, &[ServiceId(1)]).unwrap();
    assert_eq!(requests[0].booked.request.id, RequestId(3));
    let explanation = explain(&recorded, &requests).unwrap();
    let energy = &explanation.requests[0].energy_uj;
    assert_eq!((energy.gpu, energy.gpu_prefill), (Some(200_000_007), None));
    assert_eq!(explanation.requests[0].service_threads, None);
    let text = explanation.to_text();
    assert!(text.contains("<not supported>        prefill"), "{text}");
    assert!(text.contains("older recordings do not hold it"), "{text}");
    assert!(recorded.requests_of_id("4").unwrap().is_empty());
}

#[test]
fn a_class_is_explained_by_what_holds_it_back() {
    let of = |booked: &BookedRequest, meters: &[(Meter, Option<Floor>)]| {
        class::because(booked, meters.iter()).join("; ")
    };
    let floor = Some(Floor {
        watts: Watts(80.0),
        source: FloorSource::Fixed,
    });
    let counter = [(meter(Component::Gpu, Source::Counter), floor)];
    let good = request(1, 1.0, 4.0, 100);
    assert!(of(&good, &counter).contains("10 % or less"));
    let mut unstreamed = good;
    unstreamed.class = Class::B;
    unstreamed.request.streamed = false;
    assert_eq!(
        of(&unstreamed, &counter),
        "no chunks of its response were seen: its part is by time"
    );
    let estimate = [(meter(Component::Gpu, Source::Model), floor)];
    let mut estimated = good;
    estimated.class = Class::C;
    assert_eq!(
        of(&estimated, &estimate),
        "gpu gpu-0 has no meter: its energy is an estimate"
    );
    assert!(of(&estimated, &counter).contains("the recording does not hold"));
    let mut unsure = good;
    unsure.class = Class::B;
    unsure.errors = Some(ErrorRatios {
        own: 0.2,
        common: 0.0,
    });
    let floorless = [(meter(Component::Gpu, Source::Counter), None)];
    assert_eq!(
        of(&unsure, &floorless),
        "its bound is above 10 %; the idle floor of gpu gpu-0 is not known"
    );
}

#[test]
fn the_keys_of_schema_1_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    recording(&path);
    let recorded = Recorded::open(&path).unwrap();
    let requests = recorded.requests_of_id("1").unwrap();
    let json = explain(&recorded, &requests).unwrap().to_json().unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let keys = |value: &serde_json::Value| {
        let keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.join(" ")
    };
    assert_eq!(keys(&json), "requests schema simulated");
    let request = &json["requests"][0];
    assert_eq!(
        keys(request),
        "base bound class class_because code company energy_uj id moments outcome position route \
         service service_threads tokens trace"
    );
    assert_eq!(
        keys(&request["energy_uj"]),
        "cpu dram gpu gpu_decode gpu_not_streamed gpu_prefill gpu_wait total"
    );
}
