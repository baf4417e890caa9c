use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::clock::Timestamp;
use crate::ledger::{Accounts, Booked, Class, Outcome};
use crate::recording::Recorded;
use crate::units::{Microjoules, Watts};

struct Case {
    folder: TempDir,
    options: Options,
}

impl Case {
    fn new(power: &str, requests: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("p.csv"), power).unwrap();
        fs::write(file("r.jsonl"), requests).unwrap();
        let options = Options {
            power: file("p.csv"),
            requests: file("r.jsonl"),
            output: file("out.pj"),
            idle_watts: IdleWatts::default(),
        };
        Self { folder, options }
    }

    fn idle(mut self, watts: &str) -> Self {
        self.options.idle_watts = watts.parse().unwrap();
        self
    }

    fn replay(&self) -> Result<Booking, ReplayError> {
        let replayed = replay(&self.options)?;
        let recorded = Recorded::open(&self.options.output).unwrap();
        let (mut intervals, mut requests) = (Vec::new(), Vec::new());
        recorded
            .intervals(|booked| match booked {
                Booked::Interval(interval) => intervals.push(interval),
                other => panic!("{other:?}"),
            })
            .unwrap();
        let _: ControlFlow<()> = recorded
            .requests(|request| {
                requests.push(request.clone());
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(replayed.requests, requests.len() as u64);
        Ok(Booking {
            replayed,
            intervals,
            requests,
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.folder.path()).unwrap();
        files.map(|file| file.unwrap().path()).collect()
    }
}

struct Booking {
    replayed: Replayed,
    intervals: Vec<BookedInterval>,
    requests: Vec<RecordedRequest>,
}

impl Booking {
    fn gpu(&self, id: &str) -> u64 {
        let request = self.requests.iter().find(|r| r.name.as_deref() == Some(id));
        request.unwrap().booked.gpu.unwrap().0
    }

    fn account(&self, of: impl Fn(&Accounts) -> Microjoules) -> u64 {
        self.intervals.iter().map(|i| of(&i.accounts).0).sum()
    }

    fn measured(&self) -> u64 {
        self.intervals
            .iter()
            .map(|interval| interval.energy.0)
            .sum()
    }
}

const HEADER: &str = "time_s,device,watts\n";

/// A device that draws 100 W, and 300 W from 10 s to 20 s, told every tenth of a second.
fn square(device: &str) -> String {
    let mut power = String::from(HEADER);
    for tenth in 0..=300 {
        let watts = if (100..200).contains(&tenth) {
            300
        } else {
            100
        };
        writeln!(power, "{},{device},{watts}", f64::from(tenth) / 10.0).unwrap();
    }
    power
}

fn request(id: &str, start: f64, first: f64, end: f64, tokens: u64) -> String {
    format!(
        "{{\"id\":\"{id}\",\"service\":\"vllm\",\"start_s\":{start},\"first_token_s\":{first},\
         \"end_s\":{end},\"input_tokens\":100,\"output_tokens\":{tokens}}}\n"
    )
}

#[test]
fn a_lone_request_gets_what_was_drawn_above_the_given_floor() {
    let case = Case::new(&square("G"), &request("a", 10.0, 10.5, 20.0, 100)).idle("100");
    let booking = case.replay().unwrap();
    assert_eq!(booking.measured(), 5_000_000_000);
    assert_eq!(booking.gpu("a"), 2_000_000_000);
    assert_eq!(booking.account(|a| a.idle), 3_000_000_000);
    let floor = booking.replayed.devices[0].floor.unwrap();
    assert_eq!(
        (floor.watts, floor.source),
        (Watts(100.0), FloorSource::Fixed)
    );
}

#[test]
fn a_floor_that_shows_only_after_the_load_holds_from_the_start() {
    let power: String =
        square("G")
            .lines()
            .enumerate()
            .fold(String::new(), |mut out, (n, line)| {
                // Without the quiet time before the load.
                if n == 0 || n > 100 {
                    out += line;
                    out.push('\n');
                }
                out
            });
    let case = Case::new(&power, &request("a", 10.0, 10.5, 20.0, 100));
    let booking = case.replay().unwrap();
    let floor = booking.replayed.devices[0].floor.unwrap();
    assert_eq!(floor.source, FloorSource::Learned);
    assert!((floor.watts.0 - 100.0).abs() < 1e-6, "{floor:?}");
    assert_eq!(booking.gpu("a"), 2_000_000_000);
    assert_eq!(booking.account(|a| a.context), 0);
}

#[test]
fn energy_with_nothing_in_flight_is_unattributed() {
    let case = Case::new(&square("G"), &request("a", 25.0, 25.1, 26.0, 10)).idle("G=50");
    let booking = case.replay().unwrap();
    assert_eq!(
        booking.account(|a| a.overhead) + booking.account(|a| a.other),
        0
    );
    // 30 s at 50 W and 10 s at 200 W above the floor, but for the second of the request.
    assert_eq!(
        booking.account(|a| a.unattributed),
        3_500_000_000 - 50_000_000
    );
    assert_eq!(booking.gpu("a"), 50_000_000);
}

#[test]
fn a_request_is_charged_on_its_own_devices_alone() {
    let mut power = String::from(HEADER);
    for second in 0..=20 {
        for (device, watts) in [("G0", 200), ("G1", 500)] {
            writeln!(power, "{second},{device},{watts}").unwrap();
        }
    }
    let on =
        |line: String, devices: &str| line.replace("}\n", &format!(",\"devices\":{devices}}}\n"));
    let requests = on(request("zero", 5.0, 5.0, 10.0, 9), "[\"G0\"]")
        + &on(request("one", 5.0, 5.0, 10.0, 9), "[\"G1\"]")
        + &request("both", 12.0, 12.0, 14.0, 9);
    let booking = Case::new(&power, &requests).idle("100").replay().unwrap();
    assert_eq!(booking.gpu("zero"), 500_000_000);
    assert_eq!(booking.gpu("one"), 2_000_000_000);
    assert_eq!(booking.gpu("both"), 1_000_000_000);
    assert_eq!(
        booking.account(|a| a.overhead) + booking.account(|a| a.other),
        0
    );
}

#[test]
fn a_counter_is_booked_as_it_counted_over_a_gap_too() {
    let power =
        "time_s,device,energy_j\n0,G,1000.000001\n1,G,1100\n2,G,1200\n60,G,7000.5\n61,G,7100\n";
    let booking = Case::new(power, &request("a", 0.0, 0.5, 61.0, 100))
        .idle("0")
        .replay()
        .unwrap();
    assert_eq!(booking.measured(), 6_099_999_999);
    assert_eq!(booking.intervals.len(), 4);
    assert_eq!(booking.account(|a| a.gap), 0);
    assert_eq!(booking.gpu("a"), 6_099_999_999);
    let (usual, longest) = booking.replayed.devices[0].distances;
    assert_eq!((usual, longest), (1.0, 58.0));
}

#[test]
fn each_chunk_is_charged_in_the_interval_that_holds_its_time() {
    let mut power = String::from(HEADER);
    for second in 0..=10 {
        writeln!(power, "{second},G,100").unwrap();
    }
    let chunked = |id: &str, chunks: &str| {
        request(id, 0.0, 0.0, 10.0, 9).replace("}\n", &format!(",\"chunks_s\":{chunks}}}\n"))
    };
    let requests =
        chunked("early", "[0.0,2.1,2.2,2.3,2.4]") + &chunked("late", "[0.0,6.5,6.6,7.5]");
    let booking = Case::new(&power, &requests).idle("0").replay().unwrap();
    // The second from 2 s to 3 s is early's, those from 6 s to 8 s are late's, the rest is shared
    // by time.
    let (early, late) = (booking.gpu("early"), booking.gpu("late"));
    assert_eq!(early + late, 1_000_000_000);
    assert!(late - early >= 90_000_000, "{early} {late}");
    assert_eq!(booking.requests[0].booked.request.chunks, 5);
    assert!(booking.requests[0].chunks_seen);
}

#[test]
fn what_the_log_says_comes_out_and_what_it_does_not_is_null() {
    let requests = r#"{"id":"é \"1\"","service":null,"start_s":1760000000.1234567,"first_token_s":null,"end_s":null,"input_tokens":null,"output_tokens":null}
{"id":"2","service":"b","start_s":1760000000.2,"first_token_s":1760000000.3,"end_s":1760000001.7,"input_tokens":5,"output_tokens":0,"devices":null,"chunks_s":null,"more":1}
"#;
    let power = format!("{HEADER}1760000000,G,5\n1760000002,G,5\n");
    let booking = Case::new(&power, requests).idle("0").replay().unwrap();
    let [first, second] = booking.requests.as_slice() else {
        panic!("{:?}", booking.requests)
    };
    assert_eq!(first.name.as_deref(), Some("é \"1\""));
    let request = &first.booked.request;
    assert_eq!(request.end.unwrap().outcome, Outcome::Incomplete);
    assert_eq!((request.first_data, first.booked.tokens), (None, None));
    assert_eq!(request.start, Timestamp(1_760_000_000_123_456_717));
    assert!(!first.chunks_seen);
    let tokens = second.booked.tokens.unwrap();
    assert_eq!((tokens.input, tokens.output), (Some(5), Some(0)));
    assert!(second.booked.class >= Class::B);
    assert_eq!(second.booked.gpu.unwrap().0, 10_000_000);
}

#[test]
fn a_log_that_makes_no_sense_gives_one_error_with_line_cause_and_next_step() {
    let rows = |rows: &str| format!("{HEADER}{rows}");
    let fine = rows("0,G,1\n1,G,2\n");
    let counter = "time_s,device,energy_j\n0,G,5\n1,G,4\n";
    let good = request("a", 0.0, 0.5, 1.0, 3);
    let with = |key: &str, value: &str| {
        let mut line: serde_json::Value = serde_json::from_str(&good).unwrap();
        line[key] = serde_json::from_str(value).unwrap();
        format!("{line}\n")
    };
    let without = |key: &str| {
        let mut line: serde_json::Value = serde_json::from_str(&good).unwrap();
        line.as_object_mut().unwrap().remove(key);
        format!("{line}\n")
    };
    let power_cases = [
        (String::new(), "line 1", "missing"),
        (HEADER.to_owned(), "no row", "cut off"),
        (
            "time_s,watts\n0,1\n".into(),
            "line 1",
            "`device` is missing",
        ),
        (
            "time_s,device\n0,G\n".into(),
            "line 1",
            "neither `watts` nor `energy_j`",
        ),
        (
            "time_s,device,watts,energy_j\n0,G,1,1\n".into(),
            "line 1",
            "both",
        ),
        (
            "time_s,device,watts,watts\n0,G,1,1\n".into(),
            "line 1",
            "twice",
        ),
        (rows("0,G,1\n1,G\n"), "line 3", "2 columns"),
        (rows("0,G,1\nx,G,1\n"), "line 3", "time_s is `x`"),
        (rows("0,G,1\n-1,G,1\n"), "line 3", "time_s is -1"),
        (rows("1760000000000,G,1\n"), "line 2", "milliseconds"),
        (rows("0,G,1\n1,,1\n"), "line 3", "no name"),
        (rows("1,G,1\n0,G,1\n"), "line 3", "sort"),
        (rows("1,G,1\n0,H,1\n"), "line 3", "sort"),
        (
            rows("0,G,1\n1,G,1\n1,G,2\n"),
            "line 4",
            "already, in line 3",
        ),
        (rows("0,G,1\n1,G,\n"), "line 3", "watts is ``"),
        (rows("0,G,1\n1,G,NaN\n"), "line 3", "watts is NaN"),
        (rows("0,G,1\n1,G,-3\n"), "line 3", "watts is -3"),
        (rows("0,G,1\n1,G,inf\n"), "line 3", "milliwatts"),
        (counter.to_owned(), "line 3", "less than in line 2"),
        (
            "time_s,device,energy_j\n0,G,NaN\n".into(),
            "line 2",
            "energy_j is NaN",
        ),
    ];
    let request_cases = [
        ("{\"id\":\n".to_owned(), "line 1", "EOF"),
        (
            good.clone() + "[]\n",
            "line 2",
            "null for what is not known",
        ),
        (good.replace("\"a\"", "7"), "line 1", "expected a string"),
        (without("service"), "line 1", "missing field `service`"),
        (
            without("first_token_s"),
            "line 1",
            "missing field `first_token_s`",
        ),
        (
            without("input_tokens"),
            "line 1",
            "missing field `input_tokens`",
        ),
        (with("start_s", "null"), "line 1", "null"),
        (with("start_s", "-1"), "line 1", "start_s is -1"),
        (with("end_s", "-1"), "line 1", "end_s is -1"),
        (
            with("start_s", "0.7"),
            "line 1",
            "first_token_s of request `a`",
        ),
        (with("start_s", "3"), "line 1", "ends before it starts"),
        (
            with("first_token_s", "1.5"),
            "line 1",
            "first_token_s of request `a`",
        ),
        (with("input_tokens", "-5"), "line 1", "-5"),
        (
            with("output_tokens", "18446744073709551615"),
            "line 1",
            "beyond",
        ),
        (with("chunks_s", "[0.6,0.55]"), "line 1", "chunk 2"),
        (with("chunks_s", "[0.6,1.5]"), "line 1", "chunk 2"),
        (with("chunks_s", "[0.4]"), "line 1", "chunk 1"),
        (with("devices", "[]"), "line 1", "empty"),
        (with("devices", "[\"G\",\"X\"]"), "line 1", "device `X`"),
        (good.clone() + &good, "line 2", "in line 1 already"),
        (
            request("b", 0.2, 0.5, 1.0, 3) + "\n" + &good,
            "line 3",
            "sort",
        ),
    ];
    let power_cases = power_cases.map(|(power, line, cause)| (power, good.clone(), line, cause));
    let request_cases =
        request_cases.map(|(requests, line, cause)| (fine.clone(), requests, line, cause));
    for (power, requests, line, cause) in power_cases.into_iter().chain(request_cases) {
        let case = Case::new(&power, &requests);
        fs::write(&case.options.output, "").unwrap();
        let error = match case.replay() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("understood:\n{power}\n{requests}"),
        };
        assert!(
            error.contains(line) && error.contains(cause),
            "{error}\n for {line}, {cause}"
        );
        let (_, next) = error.rsplit_once("; ").unwrap_or_else(|| panic!("{error}"));
        assert!(next.len() > 10, "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(case.files().len(), 3, "{:?} after {error}", case.files());
        assert_eq!(fs::read(&case.options.output).unwrap(), b"");
    }
}

#[test]
fn a_floor_for_a_device_that_is_not_there_is_an_error() {
    let case = Case::new(&square("G"), "").idle("H=5");
    let Err(error) = case.replay() else {
        panic!("understood")
    };
    assert!(error.to_string().contains("`H`"), "{error}");
}

#[test]
fn without_quiet_time_there_is_no_floor_and_without_requests_no_request() {
    let case = Case::new(&square("G"), &request("a", 0.0, 0.5, 30.0, 100));
    let booking = case.replay().unwrap();
    assert_eq!(booking.replayed.devices[0].floor, None);
    assert_eq!(booking.gpu("a"), 5_000_000_000);
    assert!(booking.requests[0].booked.class >= Class::B);
    let booking = Case::new(&square("G"), "").replay().unwrap();
    assert_eq!(booking.measured(), 5_000_000_000);
    assert!(booking.requests.is_empty());
}

#[derive(Debug, Clone)]
struct Load {
    start: u32,
    wait: u32,
    length: u32,
    output: Option<u16>,
    input: Option<u16>,
    kind: u8,
    devices: u8,
    service: u8,
}

fn load() -> impl Strategy<Value = Load> {
    let times = (0..60_000_u32, 0..4_000_u32, 0..20_000_u32);
    let tokens = (any::<Option<u16>>(), any::<Option<u16>>());
    (times, tokens, 0..6_u8, 0..5_u8, 0..3_u8).prop_map(
        |((start, wait, length), (output, input), kind, devices, service)| Load {
            start,
            wait,
            length,
            output,
            input,
            kind,
            devices,
            service,
        },
    )
}

fn lines(loads: &mut [Load]) -> String {
    loads.sort_by_key(|load| load.start);
    let mut text = String::new();
    for (number, load) in loads.iter().enumerate() {
        let second = |millis: u32| f64::from(millis) / 1e3;
        let first = load.start + load.wait;
        let end = first + load.length;
        let chunks = (load.kind == 1).then(|| {
            let count = load.output.unwrap_or(1).min(20);
            let at = |n: u16| second(first + load.length * u32::from(n) / u32::from(count.max(1)));
            (0..count).map(at).collect::<Vec<_>>()
        });
        let devices = match load.devices {
            0 => Some(vec!["G0"]),
            1 => Some(vec!["G1", "G0"]),
            _ => None,
        };
        let line = serde_json::json!({
            "id": format!("r{number}"),
            "service": format!("s{}", load.service),
            "start_s": second(load.start),
            "first_token_s": (load.kind != 2).then(|| second(first)),
            "end_s": (load.kind != 3).then(|| second(end)),
            "input_tokens": load.input,
            "output_tokens": load.output,
            "chunks_s": chunks,
            "devices": devices,
        });
        writeln!(text, "{line}").unwrap();
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_microjoule_of_the_log_is_in_one_account_and_requests_have_theirs(
        rows in vec((1..3_000_u32, 0..2_u8, 0.0..900.0_f64), 2..80),
        mut loads in vec(load(), 0..40),
        counter in any::<bool>(),
        idle in proptest::option::of(0..200_u16),
    ) {
        let value = if counter { "energy_j" } else { "watts" };
        let mut power = format!("time_s,device,{value}\n0,G0,1\n0,G1,1\n");
        let mut millis = 0;
        let mut latest = [(0_u32, 1.0_f64); 2];
        let mut exact = [0.0_f64; 2];
        for (step, device, level) in &rows {
            millis += step;
            let (at, watts) = &mut latest[usize::from(*device)];
            let joules = &mut exact[usize::from(*device)];
            if counter {
                *joules += level;
                writeln!(power, "{},G{device},{}", f64::from(millis) / 1e3, *joules + 1.0).unwrap();
            } else {
                *joules += *watts * f64::from(millis - *at) / 1e3;
                writeln!(power, "{},G{device},{level}", f64::from(millis) / 1e3).unwrap();
            }
            (*at, *watts) = (millis, *level);
        }
        let mut case = Case::new(&power, &lines(&mut loads));
        if let Some(idle) = idle {
            case = case.idle(&idle.to_string());
        }
        let booking = case.replay().unwrap();
        for (interval, accounts) in booking.intervals.iter().map(|i| (i, i.accounts)) {
            prop_assert_eq!(interval.energy, accounts.total());
            let shares: u64 = interval.services.iter().map(|share| share.requests.0).sum();
            prop_assert_eq!(shares, accounts.requests.0);
        }
        let measured = booking.measured() as f64;
        let log = exact.iter().sum::<f64>() * 1e6;
        prop_assert!((measured - log).abs() <= 2.0, "{} µJ, {} in the log", measured, log);
        // What the log does not reach has no known energy.
        let known = booking.requests.iter().filter_map(|r| r.booked.gpu);
        let given: u64 = known.map(|energy| energy.0).sum();
        prop_assert_eq!(given, booking.account(|a| a.requests));
        prop_assert_eq!(booking.account(|a| a.gap), 0);
        let mut ids: Vec<_> = booking.requests.iter().map(|r| r.name.clone().unwrap()).collect();
        ids.sort();
        let mut written: Vec<_> = (0..loads.len()).map(|number| format!("r{number}")).collect();
        written.sort();
        prop_assert_eq!(ids, written);
    }
}
