use std::thread::sleep;

use super::super::tests::{booked_request, interval, meter, requests};
use super::*;
use crate::ledger::{BookedInterval, BookedRequest, End, RequestId, TraceId};
use crate::recording::{RecordedSample, RecordedWait, StackId};
use crate::waits::Reason;

const SECOND: u64 = 1_000_000_000;
const WINDOW: Duration = Duration::from_secs(10);

/// An interval that ends at this second, and a request that does, in service for three.
fn second(at: u64) -> [Booked; 2] {
    let interval = BookedInterval {
        from: Timestamp((at - 1) * SECOND),
        to: Timestamp(at * SECOND),
        ..interval()
    };
    let mut booked: BookedRequest = booked_request();
    let request = &mut booked.request;
    request.id = RequestId(at);
    request.start = Timestamp((at - 3) * SECOND);
    request.end = request.end.map(|end| End {
        at: Timestamp(at * SECOND),
        ..end
    });
    [Booked::Interval(interval), Booked::Request(booked)]
}

fn described(path: &Path) -> Hindsight {
    let mut hindsight = Hindsight::create(path.to_owned(), WINDOW, true).unwrap();
    hindsight.began = Timestamp(100 * SECOND);
    hindsight.meter(MeterId(0), &meter()).unwrap();
    hindsight.service(ServiceId(1), "vllm", Some("m")).unwrap();
    hindsight
}

/// Keeps what happens in these seconds.
fn keep(hindsight: &mut Hindsight, seconds: std::ops::Range<u64>) {
    for at in seconds {
        for booked in second(at) {
            hindsight
                .write(|recording| recording.book(&booked))
                .unwrap();
        }
        hindsight.write(Recording::commit).unwrap();
        hindsight.take_turns(Timestamp(at * SECOND)).unwrap();
    }
}

fn ids(recorded: &Recorded) -> Vec<u64> {
    let mut ids: Vec<u64> = requests(recorded)
        .iter()
        .map(|request| request.booked.request.id.0)
        .collect();
    ids.sort_unstable();
    ids
}

fn intervals(recorded: &Recorded) -> Vec<BookedInterval> {
    let mut intervals = Vec::new();
    recorded
        .intervals(|booked| {
            if let Booked::Interval(interval) = booked {
                intervals.push(interval);
            }
        })
        .unwrap();
    intervals
}

#[test]
fn the_last_window_of_both_files_is_saved_as_one_recording_that_adds_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut hindsight = described(&folder.path().join("hindsight.pj"));
    keep(&mut hindsight, 101..145);
    let trace = TraceId([7; 16]);
    hindsight
        .write(|recording| recording.trace(RequestId(141), trace))
        .unwrap();
    let now = Timestamp(144 * SECOND);
    let path = hindsight.save(now).unwrap().write().unwrap();

    let recorded = Recorded::open(&path).unwrap();
    assert!(recorded.simulated);
    let fact = |key| recorded.fact(key).unwrap();
    assert_eq!(fact("source").as_deref(), Some("hindsight"));
    // All that ended in the last ten seconds; two of the requests began before.
    assert_eq!(ids(&recorded), (135..145).collect::<Vec<u64>>());
    assert_eq!(fact("requests_cut").as_deref(), Some("2"));
    let intervals = intervals(&recorded);
    assert_eq!(intervals.len(), 10);
    for interval in &intervals {
        assert_eq!(interval.accounts.total(), interval.energy);
        assert_eq!(interval.services.len(), 2);
    }
    assert_eq!(intervals[0].from, Timestamp(134 * SECOND));
    assert_eq!(intervals[9].to, now);
    let found = recorded.trace(RequestId(141)).unwrap();
    assert_eq!(found, Some(trace.to_string()));
    let mut services = Vec::new();
    recorded
        .services(|id, name, model| {
            services.push((id, name.to_owned(), model.map(str::to_owned)));
        })
        .unwrap();
    let named = (ServiceId(1), "vllm".to_owned(), Some("m".to_owned()));
    assert_eq!(services, [named]);
    let mut meters = 0;
    recorded.meters(|_, _| meters += 1).unwrap();
    assert_eq!(meters, 1);

    // It goes on, and what was saved stays as it is.
    keep(&mut hindsight, 145..150);
    let again = Recorded::open(&path).unwrap();
    assert_eq!(ids(&again), (135..145).collect::<Vec<u64>>());
}

#[test]
fn what_was_saved_says_since_when_each_engine_serves_and_says_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut hindsight = described(&folder.path().join("hindsight.pj"));
    let engine = |at: u64, version: &str| RecordedEngine {
        service: ServiceId(1),
        at: Timestamp(at * SECOND),
        engine: "vllm".to_owned(),
        version: Some(version.to_owned()),
        model: Some("m".to_owned()),
    };
    hindsight.engine(&engine(101, "0.11")).unwrap();
    keep(&mut hindsight, 101..106);
    hindsight.engine(&engine(106, "0.12")).unwrap();
    // The other file's turn comes at 110 s; it is told again what serves.
    keep(&mut hindsight, 106..115);
    let saving = hindsight.save(Timestamp(114 * SECOND)).unwrap();
    let recorded = Recorded::open(&saving.write().unwrap()).unwrap();
    let mut engines = Vec::new();
    recorded.engines(|told| engines.push(told)).unwrap();
    assert_eq!(engines, [engine(101, "0.11"), engine(106, "0.12")]);
}

#[test]
fn stacks_of_the_window_are_saved_with_their_names_across_a_turn_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut hindsight = described(&folder.path().join("hindsight.pj"));
    let counts = [
        "stacks_taken",
        "stacks_lost",
        "stacks_cut",
        "off_cpu_waits",
        "off_cpu_lost",
    ];
    let settings = ["stacks_hertz", "off_cpu_least_ns"];
    for key in counts.iter().chain(&settings) {
        hindsight.fact(key, "49").unwrap();
    }
    let sample = |at, stack| RecordedSample {
        service: ServiceId(1),
        at: Timestamp(at * SECOND),
        package: Some(1),
        stack: StackId(stack),
    };
    let wait = |at, stack| RecordedWait {
        service: ServiceId(1),
        at: Timestamp(at * SECOND),
        nanos: 3 * SECOND,
        reason: Reason::Futex,
        stack: StackId(stack),
    };
    let (often, early, blocked, early_blocked) = (-5, 6, 7, 8);
    let write = |hindsight: &mut Hindsight, stack: i64, wait: Option<RecordedWait>, at| {
        let write = |recording: &mut Recording| {
            recording.stack(StackId(stack), &format!("p\nmain\n{stack}"))?;
            match &wait {
                Some(wait) => recording.wait(wait),
                None => recording.sample(&sample(at, stack)),
            }
        };
        hindsight.write(write).unwrap();
    };
    // Turns come at 110, 120, 130 and 140 s; the window begins at 134 s.
    for at in 101..145 {
        write(&mut hindsight, often, None, at);
        match at {
            132 => write(&mut hindsight, early, None, at),
            133 => write(
                &mut hindsight,
                early_blocked,
                Some(wait(at, early_blocked)),
                at,
            ),
            136 => write(&mut hindsight, blocked, Some(wait(at, blocked)), at),
            _ => {}
        }
        keep(&mut hindsight, at..at + 1);
    }
    let saving = hindsight.save(Timestamp(144 * SECOND)).unwrap();
    let recorded = Recorded::open(&saving.write().unwrap()).unwrap();

    let mut stacks = Vec::new();
    let text = |stack: i64| (StackId(stack), format!("p\nmain\n{stack}"));
    recorded
        .stacks(|id, frames| stacks.push((id, frames.to_owned())))
        .unwrap();
    stacks.sort();
    assert_eq!(stacks, [text(often), text(blocked)]);
    let (mut samples, mut waits) = (Vec::new(), Vec::new());
    recorded
        .samples_since(Timestamp(0), |sample| samples.push(*sample))
        .unwrap();
    let expected: Vec<RecordedSample> = (135..145).map(|at| sample(at, often)).collect();
    assert_eq!(samples, expected);
    recorded
        .waits_since(Timestamp(0), |wait| waits.push(*wait))
        .unwrap();
    assert_eq!(waits, [wait(136, blocked)]);
    // Counts are the agent's since its start, and not the window's.
    for key in counts {
        assert_eq!(recorded.fact(key).unwrap(), None, "{key}");
    }
    for key in settings {
        assert_eq!(recorded.fact(key).unwrap().as_deref(), Some("49"), "{key}");
    }
}

#[test]
fn two_files_hold_two_windows_at_most_and_one_at_least() {
    let folder = tempfile::tempdir().unwrap();
    let mut hindsight = described(&folder.path().join("hindsight.pj"));
    for at in (101..160).step_by(3) {
        keep(&mut hindsight, at..at + 3);
        let held: Vec<u64> = [0, 1]
            .into_iter()
            .filter(|turn| hindsight.holds[*turn])
            .flat_map(|turn| ids(&Recorded::open(&part(&hindsight.path, turn)).unwrap()))
            .collect();
        let (latest, window) = (at + 2, WINDOW.as_secs());
        let needed = latest.saturating_sub(window - 1).max(101)..latest + 1;
        for id in needed {
            assert!(held.contains(&id), "{id} is missing at {latest}: {held:?}");
        }
        assert!(held.len() as u64 <= 2 * window, "{held:?}");
    }
    let files = fs::read_dir(folder.path()).unwrap().count();
    // The file that is written has its log beside it.
    assert!(files <= 2 + 4, "{files}");
}

#[test]
fn a_service_that_was_forgotten_is_named_where_it_was_booked_and_not_in_files_to_come() {
    let folder = tempfile::tempdir().unwrap();
    let mut hindsight = described(&folder.path().join("hindsight.pj"));
    keep(&mut hindsight, 101..105);
    hindsight.forget_service(ServiceId(1));
    let names = |hindsight: &mut Hindsight, now| {
        let saved = hindsight.save(Timestamp(now * SECOND)).unwrap();
        let recorded = Recorded::open(&saved.write().unwrap()).unwrap();
        let mut names = 0;
        recorded.services(|_, _, _| names += 1).unwrap();
        names
    };
    keep(&mut hindsight, 105..115);
    assert_eq!(names(&mut hindsight, 114), 1);
    keep(&mut hindsight, 115..125);
    assert_eq!(names(&mut hindsight, 124), 0);
}

#[test]
fn what_a_killed_agent_left_stays_for_a_window() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hindsight.pj");
    let mut first = described(&path);
    keep(&mut first, 101..125);
    let newer = part(&path, first.turn);
    first.close().unwrap();
    // Of one clock's tick two files may be.
    sleep(Duration::from_millis(20));
    fs::File::options()
        .append(true)
        .open(&newer)
        .unwrap()
        .set_modified(SystemTime::now())
        .unwrap();

    let mut second = described(&path);
    assert_eq!(
        ids(&Recorded::open(&newer).unwrap()),
        (121..125).collect::<Vec<u64>>()
    );
    keep(&mut second, 101..104);
    let saved = second
        .save(Timestamp(103 * SECOND))
        .unwrap()
        .write()
        .unwrap();
    let saved = ids(&Recorded::open(&saved).unwrap());
    assert_eq!(saved, [101, 102, 103], "nothing of the first one");
    keep(&mut second, 104..115);
    assert_eq!(ids(&Recorded::open(&newer).unwrap()).first(), Some(&111));
}

#[test]
fn nothing_but_a_recording_is_replaced_and_no_more_is_saved_than_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hindsight.pj");
    fs::write(part(&path, 0), "notes").unwrap();
    let error = Hindsight::create(path.clone(), WINDOW, false).unwrap_err();
    assert!(error.to_string().contains("choose another name"), "{error}");
    fs::remove_file(part(&path, 0)).unwrap();

    let mut hindsight = described(&path);
    for number in 0..MOST_SAVED {
        fs::write(named(&path, &format!("{number}Z")), "").unwrap();
    }
    let error = hindsight.save(Timestamp(101 * SECOND)).unwrap_err();
    assert!(error.to_string().contains("move some away"), "{error}");
    fs::remove_file(named(&path, "0Z")).unwrap();
    hindsight
        .save(Timestamp(101 * SECOND))
        .unwrap()
        .write()
        .unwrap();
}
