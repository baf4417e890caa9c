use std::fs;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};

use rusqlite::Connection;

use super::*;
use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, Booked, BookedInterval, Class, Component, Counts, End, EngineInfo, ErrorRatios,
    Floor, FloorSource, GpuPhases, Input, Meter, MeterId, Outcome, Request, RequestId, Route,
    ServiceId, ServiceShare, Source, TokenCount, TokenDelta, TokenSource, TraceId,
};
use crate::units::{Microjoules, Watts};
use crate::waits::Waits;

pub(super) fn booked_request() -> BookedRequest {
    BookedRequest {
        request: Request {
            id: RequestId(u64::MAX - 7),
            service: ServiceId(1),
            route: Route::ChatCompletions,
            start: Timestamp(1_500_000_001),
            first_data: Some(Timestamp(1_700_000_002)),
            last_data: Some(Timestamp(2_500_000_003)),
            input: Input::Bytes(4_000),
            chunks: 12,
            streamed: true,
            status: 200,
            end: Some(End {
                at: Timestamp(2_500_000_004),
                outcome: Outcome::Done,
            }),
        },
        gpu: Some(Microjoules(123_456_789)),
        phases: Some(GpuPhases {
            prefill: Microjoules(23_456_000),
            decode: Microjoules(100_000_000),
            wait: Microjoules(789),
        }),
        cpu: Some(Microjoules(0)),
        dram: None,
        class: Class::A,
        errors: Some(ErrorRatios {
            own: 0.03,
            common: 0.04,
        }),
        tokens: Some(TokenCount {
            source: TokenSource::Usage,
            input: Some(900),
            output: None,
            calibrated: true,
        }),
    }
}

pub(super) fn meter() -> Meter {
    Meter {
        component: Component::Gpu,
        device: "GPU-0".into(),
        source: Source::Counter,
        limit: Some(Watts(700.0)),
        tick: 100_000_000,
        stale_after: 2_000_000_000,
        gain_error_ratio: 0.05,
        idle: Some(Watts(83.25)),
    }
}

pub(super) fn interval() -> BookedInterval {
    let accounts = [1, 2, 3, 4, 5, 6, 7, 8].map(Microjoules);
    let [
        idle,
        context,
        requests,
        overhead,
        other,
        agent,
        unattributed,
        gap,
    ] = accounts;
    BookedInterval {
        meter: MeterId(0),
        from: Timestamp(1),
        to: Timestamp(2),
        energy: Microjoules(36),
        accounts: Accounts {
            idle,
            context,
            requests,
            overhead,
            other,
            agent,
            unattributed,
            gap,
        },
        services: vec![
            ServiceShare {
                service: ServiceId(1),
                requests: Microjoules(3),
                overhead: Microjoules(0),
                phases: Some(GpuPhases {
                    prefill: Microjoules(1),
                    decode: Microjoules(2),
                    wait: Microjoules(0),
                }),
            },
            ServiceShare {
                service: ServiceId(2),
                requests: Microjoules(0),
                overhead: Microjoules(4),
                phases: None,
            },
        ],
        holders: Some(3),
    }
}

pub(super) fn requests(recorded: &Recorded) -> Vec<RecordedRequest> {
    let mut all = Vec::new();
    let _: ControlFlow<()> = recorded
        .requests(|request| {
            all.push(request.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    all
}

#[test]
fn every_value_that_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", true).unwrap();
    recording.meter(MeterId(0), &meter()).unwrap();
    recording
        .service(ServiceId(1), "vllm", Some("given"))
        .unwrap();
    recording.service(ServiceId(2), "other", None).unwrap();
    let request = Booked::Request(booked_request());
    recording.book(&request).unwrap();
    let mut unknown = booked_request();
    unknown.request = Request {
        id: RequestId(3),
        route: Route::Other,
        first_data: None,
        last_data: None,
        input: Input::Tokens(17),
        streamed: false,
        chunks: 0,
        status: 0,
        end: None,
        ..unknown.request
    };
    (unknown.gpu, unknown.tokens, unknown.errors) = (None, None, None);
    unknown.class = Class::C;
    recording
        .request(&RecordedRequest {
            booked: unknown,
            name: Some("réq \"7\"".into()),
            chunks_seen: false,
        })
        .unwrap();
    recording.book(&Booked::Interval(interval())).unwrap();
    let lone = BookedInterval {
        from: Timestamp(2),
        to: Timestamp(5),
        services: Vec::new(),
        holders: None,
        ..interval()
    };
    recording.book(&Booked::Interval(lone)).unwrap();
    let hole = Booked::Hole {
        meter: MeterId(0),
        from: Timestamp(5),
        to: Timestamp(9),
        reason: "reset",
    };
    recording.book(&hole).unwrap();
    let info = EngineInfo {
        service: ServiceId(1),
        engine: "vllm",
        counts: Counts::Step,
        version: None,
        model: Some("llama".into()),
    };
    let told = RecordedEngine::new(&info, Timestamp(987_654_321_000_000_001));
    recording.engine(&told).unwrap();
    let learned = Some(Floor {
        watts: Watts(84.5),
        source: FloorSource::Learned,
    });
    for floor in [None, learned] {
        recording.floor(MeterId(0), floor).unwrap();
    }
    recording.floor(MeterId(1), None).unwrap();
    let delta = TokenDelta {
        service: ServiceId(1),
        from: Timestamp(987_654_321_000_000_001),
        to: Timestamp(987_654_322_000_000_002),
        input: Some(12),
        output: None,
    };
    recording.tokens(&delta).unwrap();
    recording.trace(RequestId(3), TraceId([0xAB; 16])).unwrap();
    recording.close().unwrap();

    let recorded = Recorded::open(&path).unwrap();
    assert!(recorded.simulated);
    let mut meters = Vec::new();
    recorded
        .meters(|id, meter| meters.push((id, meter)))
        .unwrap();
    assert_eq!(
        format!("{meters:?}"),
        format!("{:?}", [(MeterId(0), meter())])
    );
    let mut floors = Vec::new();
    recorded
        .floors(|id, floor| floors.push((id, floor)))
        .unwrap();
    assert_eq!(floors, [(MeterId(0), learned), (MeterId(1), None)]);
    let mut services = Vec::new();
    recorded
        .services(|id, name, model| {
            services.push((id.0, name.to_owned(), model.map(str::to_owned)))
        })
        .unwrap();
    let models = [
        (1, "vllm".to_owned(), Some("llama".to_owned())),
        (2, "other".into(), None),
    ];
    assert_eq!(services, models);
    let mut engines = Vec::new();
    recorded.engines(|told| engines.push(told)).unwrap();
    assert_eq!(engines, [told]);
    let mut tokens = Vec::new();
    recorded.tokens(|delta| tokens.push(delta)).unwrap();
    assert_eq!(tokens, [delta]);
    let mut booked = Vec::new();
    recorded
        .intervals(|interval| booked.push(interval))
        .unwrap();
    recorded.holes(|hole| booked.push(hole)).unwrap();
    let written = [
        Booked::Interval(interval()),
        Booked::Interval(lone_copy()),
        hole,
    ];
    assert_eq!(format!("{booked:?}"), format!("{written:?}"));
    assert_eq!(
        recorded.window().unwrap(),
        Some((Timestamp(1), Timestamp(5)))
    );
    let read = requests(&recorded);
    assert_eq!(read.len(), 2);
    for read in read {
        if read.name.is_none() {
            assert_eq!(
                format!("{:?}", read.booked),
                format!("{:?}", booked_request())
            );
            assert!(read.chunks_seen);
        } else {
            assert_eq!(read.name.as_deref(), Some("réq \"7\""));
            assert_eq!(format!("{:?}", read.booked), format!("{unknown:?}"));
            assert!(!read.chunks_seen);
        }
    }
    let plain = Connection::open(&path).unwrap();
    let trace: String = plain
        .query_row("SELECT trace FROM traces WHERE request = 3", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(trace, "ab".repeat(16));
}

fn lone_copy() -> BookedInterval {
    BookedInterval {
        from: Timestamp(2),
        to: Timestamp(5),
        services: Vec::new(),
        holders: None,
        ..interval()
    }
}

#[test]
fn a_recording_says_what_it_is_and_is_read_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", false).unwrap();
    recording.service(ServiceId(1), "vllm", None).unwrap();
    recording.book(&Booked::Request(booked_request())).unwrap();
    recording.commit().unwrap();

    let recorded = Recorded::open(&path).unwrap();
    assert_eq!(requests(&recorded).len(), 1);
    let plain = Connection::open(&path).unwrap();
    let pragma = |name: &str| {
        plain
            .pragma_query_value(None, name, |row| row.get::<_, i32>(0))
            .unwrap()
    };
    assert_eq!(pragma("application_id"), 0x706A_6F75);
    assert_eq!(pragma("user_version"), 1);
    let mode: String = plain
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
    let schema: String = plain
        .query_row("SELECT value FROM meta WHERE key = 'schema'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(schema, "1");
    let documented = include_str!("../../../docs/recording.md");
    let mut tables = plain
        .prepare("SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type IN ('table', 'view')")
        .unwrap();
    let columns = tables
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    for column in columns {
        let (table, column): (String, String) = column.unwrap();
        assert!(
            documented.contains(&format!("`{table}`")),
            "{table} is not documented"
        );
        assert!(
            documented.contains(&column),
            "{table}.{column} is not documented"
        );
    }
}

#[test]
fn what_is_no_recording_is_neither_read_nor_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    fs::write(&path, "not to be lost").unwrap();
    let error = Recorded::open(&path).unwrap_err().to_string();
    assert!(error.contains("no SQLite file"), "{error}");
    let error = Recording::create(&path, "run", false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("choose another name"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "not to be lost");

    let foreign = folder.path().join("foreign.db");
    let connection = Connection::open(&foreign).unwrap();
    connection.execute_batch("CREATE TABLE a (b)").unwrap();
    let error = Recorded::open(&foreign).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");

    let newer = folder.path().join("newer.pj");
    Recording::create(&newer, "run", false)
        .unwrap()
        .close()
        .unwrap();
    Connection::open(&newer)
        .unwrap()
        .pragma_update(None, "user_version", 2)
        .unwrap();
    let error = Recorded::open(&newer).unwrap_err().to_string();
    assert!(error.contains("newer"), "{error}");
    assert!(Recorded::open(&folder.path().join("absent.pj")).is_err());

    let empty = folder.path().join("empty.pj");
    fs::write(&empty, "").unwrap();
    let error = Recorded::open(&empty).unwrap_err().to_string();
    assert!(error.contains("it is empty"), "{error}");
}

#[test]
fn a_damaged_recording_is_named_as_one_with_what_can_be_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", false).unwrap();
    recording.meter(MeterId(0), &meter()).unwrap();
    for _ in 0..10_000 {
        recording.book(&Booked::Interval(interval())).unwrap();
    }
    recording.close().unwrap();
    let whole = fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let recorded = Recorded::open(&path)?;
        recorded.intervals(|_| ()).map(|()| recorded)
    };
    read(&whole).unwrap();
    // Cut off, as by a copy that ended early; and written over.
    let cut = &whole[..whole.len() / 2];
    let mut over = whole.clone();
    over[whole.len() / 4..whole.len() / 2].fill(0xA5);
    for damaged in [cut, &over] {
        let error = read(damaged).unwrap_err();
        assert!(matches!(error, RecordingError::Damaged { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(".recover"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// Not a test of its own: the process that the next one kills.
#[test]
fn writer_for_the_next_test() {
    let Some(path) = std::env::var_os("PERJOULE_TEST_RECORDING") else {
        return;
    };
    let mut recording = Recording::create(Path::new(&path), "run", false).unwrap();
    recording.meter(MeterId(0), &meter()).unwrap();
    recording.service(ServiceId(1), "vllm", None).unwrap();
    for id in 0.. {
        let mut booked = booked_request();
        booked.request.id = RequestId(id);
        recording.book(&Booked::Request(booked)).unwrap();
        recording.book(&Booked::Interval(interval())).unwrap();
        if id % 100 == 99 {
            recording.commit().unwrap();
        }
    }
}

#[test]
fn a_killed_writer_leaves_a_file_with_whole_commits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("killed.pj");
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "recording::tests::writer_for_the_next_test"])
        .env("PERJOULE_TEST_RECORDING", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let count = Recorded::open(&path).map_or(0, |recorded| requests(&recorded).len());
        if count >= 1_000 {
            break;
        }
        assert!(began.elapsed().as_secs() < 60, "nothing is written");
    }
    writer.kill().unwrap();
    writer.wait().unwrap();

    let recorded = Recorded::open(&path).unwrap();
    let count = requests(&recorded).len();
    assert!(count >= 1_000 && count.is_multiple_of(100), "{count}");
    let mut intervals = 0;
    recorded.intervals(|_| intervals += 1).unwrap();
    assert_eq!(intervals, count);
    let check: String = Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    // A new one with this name has nothing of the old one.
    drop(recorded);
    Recording::create(&path, "run", false)
        .unwrap()
        .close()
        .unwrap();
    assert_eq!(requests(&Recorded::open(&path).unwrap()).len(), 0);
}

#[test]
fn the_view_of_requests_shows_what_the_documentation_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", false).unwrap();
    let whole = booked_request();
    let open = BookedRequest {
        request: Request {
            id: RequestId(3),
            status: 0,
            end: None,
            ..whole.request
        },
        errors: Some(ErrorRatios {
            own: 2.0,
            common: f64::NAN,
        }),
        ..whole
    };
    for booked in [whole, open] {
        recording.book(&Booked::Request(booked)).unwrap();
    }
    recording.close().unwrap();

    let plain = Connection::open(&path).unwrap();
    let shown: Vec<String> = plain
        .prepare(
            "SELECT concat_ws(' ', request, service, route, ifnull(status, '-'), ifnull(outcome, '-'),
                start_ns, first_token_ns, last_data_ns, ifnull(end_ns, '-'), streamed, chunks,
                prompt_bytes, tokens_in, tokens_source, tokens_calibrated, gpu_uj, cpu_uj, class,
                ifnull(error_ratio, '-'), own_error_ratio, ifnull(common_error_ratio, '-'),
                prefill_uj, decode_uj, wait_uj)
            FROM requests",
        )
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    let times = "1500000001 1700000002 2500000003";
    let counts = "1 12 4000 900 usage 1 123456789 0 A";
    let phases = "23456000 100000000 789";
    assert_eq!(
        shown,
        [
            format!(
                "-8 1 chat_completions 200 done {times} 2500000004 {counts} 0.05 0.03 0.04 {phases}"
            ),
            format!("3 1 chat_completions - - {times} - {counts} - 2.0 - {phases}"),
        ]
    );
}

#[test]
fn requests_lie_as_they_were_booked_and_come_by_number_where_that_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", false).unwrap();
    for id in [7, 3, 5] {
        let mut booked = booked_request();
        booked.request.id = RequestId(id);
        booked.request.service = ServiceId(id as u32);
        recording.book(&Booked::Request(booked)).unwrap();
    }
    recording.close().unwrap();
    let recorded = Recorded::open(&path).unwrap();
    let ids = |requests: &[RecordedRequest]| -> Vec<(u64, u32)> {
        let of = |read: &RecordedRequest| (read.booked.request.id.0, read.booked.request.service.0);
        requests.iter().map(of).collect()
    };
    assert_eq!(ids(&requests(&recorded)), [(7, 7), (3, 3), (5, 5)]);
    let mut sorted = Vec::new();
    let _: ControlFlow<()> = recorded
        .requests_by_number(|request| {
            sorted.push(request.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(ids(&sorted), [(3, 3), (5, 5), (7, 7)]);
    assert_eq!(recorded.latest_booking().unwrap(), Some(3));
    let mut late = Vec::new();
    recorded
        .requests_booked(2..=3, |request| late.push(request.clone()))
        .unwrap();
    assert_eq!(ids(&late), [(3, 3), (5, 5)]);
}

#[test]
fn kinds_that_were_forgotten_are_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", false).unwrap();
    let services = 3_000;
    for service in (0..services).chain(0..services) {
        let mut booked = booked_request();
        booked.request.service = ServiceId(service);
        recording.book(&Booked::Request(booked)).unwrap();
    }
    recording.close().unwrap();
    let read = requests(&Recorded::open(&path).unwrap());
    let services_read = read.iter().map(|read| read.booked.request.service.0);
    assert!(services_read.eq((0..services).chain(0..services)));
}

#[test]
fn samples_are_read_back_by_service_time_and_package() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", false).unwrap();
    recording.fact("stacks_hertz", "49").unwrap();
    for (stack, frames) in [(-7, "a\nmain"), (8, "a\nread\nvfs_read_[k]"), (8, "again")] {
        recording.stack(StackId(stack), frames).unwrap();
    }
    for (service, at, package, stack) in [
        (1, 10, Some(0), -7),
        (1, 20, Some(1), 8),
        (1, 30, None, 8),
        (2, 20, Some(0), 8),
    ] {
        let sample = RecordedSample {
            service: ServiceId(service),
            at: Timestamp(at),
            package,
            stack: StackId(stack),
        };
        recording.sample(&sample).unwrap();
    }
    recording.close().unwrap();

    let recorded = Recorded::open(&path).unwrap();
    assert!(recorded.has_samples().unwrap());
    assert_eq!(
        recorded.fact("stacks_hertz").unwrap().as_deref(),
        Some("49")
    );
    assert_eq!(recorded.fact("nothing").unwrap(), None);
    let mut stacks = Vec::new();
    recorded
        .stacks(|id, frames| stacks.push((id.0, frames.to_owned())))
        .unwrap();
    stacks.sort();
    let expected = [(-7, "a\nmain"), (8, "a\nread\nvfs_read_[k]")];
    assert_eq!(stacks, expected.map(|(id, frames)| (id, frames.to_owned())));
    let seen = |from, to, package| {
        let mut seen = Vec::new();
        let window = (Timestamp(from), Timestamp(to));
        recorded
            .samples(ServiceId(1), window, package, |at, stack| {
                seen.push((at.0, stack.0));
            })
            .unwrap();
        seen
    };
    assert_eq!(seen(10, 30, None), [(20, 8), (30, 8)]);
    assert_eq!(seen(0, 30, Some(0)), [(10, -7), (30, 8)]);
    let mut counts = Vec::new();
    recorded
        .sample_counts(|service, stack, count| counts.push((service.0, stack.0, count)))
        .unwrap();
    assert_eq!(counts, [(1, -7, 1), (1, 8, 2), (2, 8, 1)]);
}

/// The file as it was before requests had kinds: one table with all columns.
pub(crate) fn with_one_table(path: &Path) -> Connection {
    let plain = Connection::open(path).unwrap();
    plain
        .execute_batch(
            "CREATE TABLE whole AS SELECT * FROM requests;
            DROP VIEW requests; DROP TABLE request_rows; DROP TABLE request_kinds;
            ALTER TABLE whole DROP COLUMN kind; ALTER TABLE whole DROP COLUMN booking;
            ALTER TABLE whole RENAME TO requests;",
        )
        .unwrap();
    plain
}

fn write_one(path: &Path) {
    let mut recording = Recording::create(path, "run", false).unwrap();
    recording.meter(MeterId(0), &meter()).unwrap();
    recording.book(&Booked::Interval(interval())).unwrap();
    recording.book(&Booked::Request(booked_request())).unwrap();
    recording.close().unwrap();
}

#[test]
fn what_the_host_did_is_read_back_and_older_files_have_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    let mut recording = Recording::create(&path, "run", false).unwrap();
    let mut waits = Waits {
        run_queue: 5,
        voluntary: 6,
        involuntary: 7,
        ..Waits::default()
    };
    for (nanos, reason) in (10..).zip(Reason::ALL) {
        waits.add_off_cpu(reason, nanos);
    }
    let host = RecordedHost {
        service: ServiceId(1),
        from: Timestamp(100),
        to: Timestamp(200),
        on_cpu: Some(4),
        waits: Some(waits),
    };
    let bare = RecordedHost {
        on_cpu: None,
        waits: None,
        ..host.clone()
    };
    recording.host(&host).unwrap();
    recording.host(&bare).unwrap();
    recording
        .starved(ServiceId(1), Timestamp(200), "run_queue", 8)
        .unwrap();
    recording
        .throttled(MeterId(3), Timestamp(200), "sw_power_cap", 9)
        .unwrap();
    recording.close().unwrap();

    let told = |path: &Path| {
        let recorded = Recorded::open(path).unwrap();
        let mut rows = Vec::new();
        recorded.host(|host| rows.push(host)).unwrap();
        let mut others = Vec::new();
        recorded
            .starved(|service, at, reason, nanos| {
                others.push(format!("{service:?} {at:?} {reason} {nanos}"))
            })
            .unwrap();
        recorded
            .throttled(|meter, at, reason, nanos| {
                others.push(format!("{meter:?} {at:?} {reason} {nanos}"))
            })
            .unwrap();
        (rows, others)
    };
    let (rows, others) = told(&path);
    assert_eq!(rows, [host, bare]);
    assert_eq!(
        others,
        [
            "ServiceId(1) Timestamp(200) run_queue 8",
            "MeterId(3) Timestamp(200) sw_power_cap 9"
        ]
    );
    Connection::open(&path)
        .unwrap()
        .execute_batch("DROP TABLE host; DROP TABLE starved; DROP TABLE throttled")
        .unwrap();
    assert_eq!(told(&path), (Vec::new(), Vec::new()));
}

#[test]
fn a_file_of_the_version_before_kinds_is_still_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    write_one(&path);
    drop(with_one_table(&path));
    let recorded = Recorded::open(&path).unwrap();
    let [read] = requests(&recorded).try_into().unwrap();
    assert_eq!(
        format!("{:?}", read.booked),
        format!("{:?}", booked_request())
    );
    let found = recorded.costliest(1, &[ServiceId(1)]).unwrap();
    assert_eq!(format!("{found:?}"), format!("{:?}", [read]));
}

#[test]
fn a_file_of_the_version_before_stacks_is_still_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pj");
    write_one(&path);
    with_one_table(&path)
        .execute_batch(
            "DROP TABLE samples; DROP TABLE stacks;
            ALTER TABLE requests DROP COLUMN prefill_uj;
            ALTER TABLE requests DROP COLUMN decode_uj;
            ALTER TABLE requests DROP COLUMN wait_uj;
            ALTER TABLE interval_services DROP COLUMN prefill_uj;
            ALTER TABLE interval_services DROP COLUMN decode_uj;
            ALTER TABLE interval_services DROP COLUMN wait_uj;",
        )
        .unwrap();
    let recorded = Recorded::open(&path).unwrap();
    let mut intervals = Vec::new();
    recorded.intervals(|booked| intervals.push(booked)).unwrap();
    let [Booked::Interval(read)] = intervals.as_slice() else {
        panic!("one interval, not {intervals:?}")
    };
    assert_eq!(read.accounts, interval().accounts);
    assert!(read.services.iter().all(|share| share.phases.is_none()));
    let read = requests(&recorded);
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].booked.gpu, booked_request().gpu);
    assert!(read[0].booked.phases.is_none());
    assert!(!recorded.has_samples().unwrap());
    recorded.stacks(|_, _| panic!("it has none")).unwrap();
}
