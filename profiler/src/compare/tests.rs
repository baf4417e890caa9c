use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::clock::Timestamp;
use crate::ledger::{
    Booked, BookedInterval, BookedRequest, Class, End, ErrorRatios, GpuPhases, Input, Meter,
    MeterId, Outcome, Request, RequestId, Route, ServiceId, ServiceShare, Source, TokenCount,
    TokenSource,
};
use crate::profiles::folded::Weight;
use crate::recording::tests::with_one_table;
use crate::recording::{RecordedRequest, RecordedWait, Recording, StackId};
use crate::units::Microjoules;
use crate::waits::Reason;

const SECOND: u64 = 1_000_000_000;

/// What a recording of the tests is like: 60 s, three requests a second.
#[derive(Clone, Copy)]
struct Made {
    service: &'static str,
    requests: u64,
    /// Millijoules of a decode.
    decode: u64,
    device: &'static str,
    waits: bool,
}

const BASE: Made = Made {
    service: "vllm",
    requests: 180,
    decode: 40_000,
    device: "GPU-1",
    waits: true,
};

impl Made {
    fn write(self, path: &Path) {
        let mut recording = Recording::create(path, "run", false).unwrap();
        let meter = Meter {
            component: Component::Gpu,
            device: self.device.to_owned(),
            source: Source::Counter,
            limit: None,
            tick: SECOND / 10,
            stale_after: 2 * SECOND,
            gain_error_ratio: 0.05,
            idle: None,
        };
        recording.meter(MeterId(0), &meter).unwrap();
        recording.service(ServiceId(1), self.service, None).unwrap();
        let mut phases = GpuPhases::default();
        for number in 0..self.requests {
            let booked = self.request(number);
            let own = booked.phases.unwrap();
            phases.prefill += own.prefill;
            phases.decode += own.decode;
            recording.request(&RecordedRequest::from(booked)).unwrap();
        }
        let requests = phases.prefill + phases.decode;
        let idle = Microjoules(4_800_000_000);
        let overhead = Microjoules(90_000_000);
        recording
            .book(&Booked::Interval(BookedInterval {
                meter: MeterId(0),
                from: Timestamp(0),
                to: Timestamp(60 * SECOND),
                energy: idle + requests + overhead,
                accounts: Accounts {
                    idle,
                    requests,
                    overhead,
                    ..Accounts::default()
                },
                services: vec![ServiceShare {
                    service: ServiceId(1),
                    requests,
                    overhead,
                    phases: Some(phases),
                }],
                holders: Some(1),
            }))
            .unwrap();
        if self.waits {
            recording.stack(StackId(1), "main\n[futex]").unwrap();
            recording
                .wait(&RecordedWait {
                    service: ServiceId(1),
                    at: Timestamp(50 * SECOND),
                    nanos: self.decode * 1_000_000,
                    reason: Reason::Futex,
                    stack: StackId(1),
                })
                .unwrap();
        }
        recording.close().unwrap();
    }

    /// Uneven, and the same in each recording.
    fn request(self, number: u64) -> BookedRequest {
        let uneven = 60 + number * 7_919 % 80;
        let start = number * SECOND / 3;
        let prefill = Microjoules(10_000_000 * uneven / 100);
        let decode = Microjoules(self.decode * 1_000 * uneven / 100);
        BookedRequest {
            request: Request {
                id: RequestId(number),
                service: ServiceId(1),
                route: Route::ChatCompletions,
                start: Timestamp(start),
                first_data: Some(Timestamp(start + SECOND / 5)),
                last_data: Some(Timestamp(start + SECOND * uneven / 100)),
                input: Input::Bytes(40 * uneven),
                chunks: uneven,
                streamed: true,
                status: 200,
                end: Some(End {
                    at: Timestamp(start + SECOND * uneven / 100),
                    outcome: Outcome::Done,
                }),
            },
            gpu: Some(prefill + decode),
            phases: Some(GpuPhases {
                prefill,
                decode,
                wait: Microjoules::ZERO,
            }),
            cpu: None,
            dram: None,
            class: Class::A,
            errors: Some(ErrorRatios {
                own: 0.03,
                common: 0.03,
            }),
            tokens: Some(TokenCount {
                source: TokenSource::Usage,
                input: Some(10 * uneven),
                output: Some(uneven),
                calibrated: true,
            }),
        }
    }
}

fn stacks(microjoules: u64) -> Stacks {
    let mut stacks = Stacks::default();
    for (stack, microjoules) in [
        ("vllm\nserver\nmain\ntokenize", microjoules),
        ("vllm\nserver\nmain\nsend", 20_000_000 - microjoules / 2),
        ("vllm\nserver\nmain", 9_000_000),
        ("other\nserver\nmain", 5_000_000),
    ] {
        let weight = Weight {
            microjoules,
            ..Weight::default()
        };
        stacks.add(stack, weight);
    }
    stacks
}

fn compared(a: Made, b: Made, with_stacks: bool) -> Comparison {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let [a, b] = [("a.pj", a), ("b.pj", b)].map(|(name, made)| {
        let path = folder.path().join(name);
        made.write(&path);
        Recorded::open(&path).unwrap()
    });
    let (of_a, of_b) = (stacks(18_000_000), stacks(36_000_000));
    let side = |name, recorded, stacks| Side {
        name,
        recorded,
        stacks: Some(stacks).filter(|_| with_stacks),
    };
    let condition: Condition = "j_per_request>+5%".parse().unwrap();
    let options = Options {
        alpha: 0.01,
        service: None,
        conditions: &[condition],
        regardless: false,
    };
    compare(side("a.pj", &a, &of_a), side("b.pj", &b, &of_b), options).unwrap()
}

fn dearer() -> Made {
    Made {
        decode: 50_000,
        ..BASE
    }
}

#[test]
fn a_comparison_reads_like_this() {
    let comparison = compared(BASE, dearer(), true);
    let golden = [
        include_str!("tests/table.txt"),
        include_str!("tests/comparison.md"),
    ];
    assert_eq!([comparison.to_table(), comparison.to_markdown()], golden);
}

#[test]
fn parts_sum_to_j_per_request_and_show_what_moved() {
    let comparison = compared(BASE, dearer(), true);
    let service = &comparison.services[0];
    assert_eq!(service.load, Some(Load::Same));
    let deciding = &service.figures[0];
    assert_eq!(deciding.verdict, Verdict::Higher);
    let sum = |of: fn(&Pair<f64>) -> Option<f64>| {
        service
            .parts
            .iter()
            .filter_map(|part| of(&part.values))
            .sum::<f64>()
    };
    assert!((sum(|pair| pair.a) - deciding.values.a.unwrap()).abs() < 1e-9);
    assert!((sum(|pair| pair.b) - deciding.values.b.unwrap()).abs() < 1e-9);
    let of = |name: &str| {
        let part = service.parts.iter().find(|part| part.part == name).unwrap();
        part.values.difference().unwrap()
    };
    assert_eq!(of("gpu_prefill"), 0.0);
    assert!((of("gpu_decode") - deciding.values.difference().unwrap()).abs() < 1e-9);
    assert_eq!(comparison.conditions[0].outcome, ConditionOutcome::Met);
    let stacks = service.stacks.as_ref().unwrap();
    assert_eq!(stacks[0].part, "server;main;tokenize");
    assert!((stacks[0].values.difference().unwrap() - 0.1).abs() < 1e-9);
    assert_eq!(
        stacks.len(),
        2,
        "those that moved, and another service's are not its own"
    );
    assert!(
        service.off_cpu.as_ref().unwrap()[0]
            .values
            .difference()
            .unwrap()
            > 0.0
    );
}

#[test]
fn a_run_beside_itself_has_not_changed() {
    let comparison = compared(BASE, BASE, false);
    let service = &comparison.services[0];
    for change in &service.figures {
        assert_eq!(change.verdict, Verdict::NotShown, "{change:?}");
        assert_eq!(change.change, Some(0.0));
    }
    assert_eq!(comparison.conditions[0].outcome, ConditionOutcome::NotMet);
    assert_eq!(service.stacks, None);
}

#[test]
fn few_requests_and_one_sided_services_get_no_verdict() {
    let few = Made {
        requests: 40,
        ..dearer()
    };
    let comparison = compared(BASE, few, false);
    let service = &comparison.services[0];
    assert!(service.figures.iter().all(|change| change.p.is_none()));
    assert_eq!(service.figures[0].verdict, Verdict::NotEnoughData);
    let why = service.not_enough_data.as_ref().unwrap();
    assert_eq!(why, "B: 40 requests; 50 are needed in each run");
    assert_eq!(
        comparison.conditions[0].outcome,
        ConditionOutcome::Undecided
    );

    let elsewhere = Made {
        service: "tgi",
        waits: false,
        ..BASE
    };
    let comparison = compared(BASE, elsewhere, false);
    let seen: Vec<_> = comparison
        .services
        .iter()
        .map(|service| (service.service.as_str(), service.seen_in))
        .collect();
    assert_eq!(seen, [("tgi", SeenIn::B), ("vllm", SeenIn::A)]);
    assert!(comparison.conditions.is_empty());
    let table = comparison.to_table();
    assert!(table.contains("tgi is in B only"), "{table}");
}

#[test]
fn other_meters_are_named_with_their_gain() {
    let same = compared(BASE, dearer(), false).to_table();
    assert!(same.contains("gain error cancels"), "{same}");
    let moved = Made {
        device: "GPU-2",
        ..BASE
    };
    let table = compared(BASE, moved, false).to_table();
    assert!(table.contains("gains may differ by 5 % and 5 %"), "{table}");
}

#[test]
fn a_recording_without_phases_shows_the_gpu_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    BASE.write(&path);
    with_one_table(&path)
        .execute_batch(
            "ALTER TABLE requests DROP COLUMN prefill_uj;
            ALTER TABLE requests DROP COLUMN decode_uj;
            ALTER TABLE requests DROP COLUMN wait_uj;",
        )
        .unwrap();
    let recorded = Recorded::open(&path).unwrap();
    let side = Side {
        name: "a.pj",
        recorded: &recorded,
        stacks: None,
    };
    let options = Options {
        alpha: 0.01,
        service: Some("vllm"),
        conditions: &[],
        regardless: false,
    };
    let comparison = compare(side, side, options).unwrap();
    let parts: Vec<&str> = comparison.services[0]
        .parts
        .iter()
        .map(|part| part.part.as_str())
        .collect();
    assert_eq!(parts, ["gpu"]);
}

#[test]
fn the_keys_of_schema_1_stay() {
    let comparison = compared(BASE, dearer(), true);
    let json: serde_json::Value = serde_json::from_str(&comparison.to_json().unwrap()).unwrap();
    let keys = |value: &serde_json::Value| {
        let keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.join(" ")
    };
    assert_eq!(
        keys(&json),
        "a alpha b conditions same_meters schema services watts"
    );
    assert_eq!(
        keys(&json["a"]),
        "duration_s file gain_error_ratio simulated"
    );
    let service = &json["services"][0];
    assert_eq!(
        keys(service),
        "block_s figures load not_enough_data off_cpu overhead_and_context parts requests seen_in \
         service stacks"
    );
    assert_eq!(
        keys(&service["figures"][0]),
        "a b change figure high low p verdict"
    );
    assert_eq!(keys(&service["parts"][0]), "a b part");
    assert_eq!(keys(&json["watts"][0]), "a account b component");
    assert_eq!(keys(&json["conditions"][0]), "condition outcome service");
}
