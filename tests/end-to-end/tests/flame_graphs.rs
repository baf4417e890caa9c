//! Energy by stack, of a recording that a real agent made on the real kernel with a simulated GPU: each
//! format holds every microjoule of the ledger. Root.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::{Agent, Ended, perjoule};
use end_to_end::is_root;
use end_to_end::stack::Stack;
use flate2::read::GzDecoder;
use rusqlite::Connection;
use serde_json::Value;

/// How long the agent sees an idle GPU before the load.
const QUIET: Duration = Duration::from_millis(2_500);
/// Often enough that a service that computes little is seen in every part of a second.
const HERTZ: u64 = 499;
/// Prompts are long and answers short, so that both phases take energy.
const LOAD: &str = "--rate 4 --seconds 6 --median-in 800 --median-out 60 --sigma-out 0.5";

/// Records a load; the file in a folder that outlives the agent.
fn record(stack: &Stack, load: &str, into: &Path) {
    let hertz = HERTZ.to_string();
    let mut agent = Agent::start_with(
        stack.perjoule(),
        &["--stacks", &hertz, "--off-cpu", "--cpu-budget", "none"],
    );
    sleep(QUIET);
    assert!(stack.load_of(load).wait().expect("a load").success());
    sleep(Duration::from_millis(500));
    agent.end_with(libc::SIGTERM);
    std::fs::copy(agent.recording_path(), into).expect("closed, it is one file");
}

fn sum(file: &Path, sql: &str) -> u64 {
    let file = Connection::open(file).expect("a recording");
    let sum: i64 = file.query_row(sql, [], |row| row.get(0)).expect("a sum");
    sum.cast_unsigned()
}

fn energy(file: &Path, component: &str) -> u64 {
    sum(
        file,
        &format!(
            "SELECT coalesce(sum(energy_uj), 0) FROM intervals JOIN meters USING (meter)
            WHERE component LIKE '{component}'"
        ),
    )
}

fn script(file: &Path, more: &[&str]) -> Ended {
    let mut arguments = vec!["script", file.to_str().expect("a plain path")];
    arguments.extend(more);
    let ended = perjoule(&arguments);
    assert!(ended.status.success(), "{more:?}: {}", ended.log);
    ended
}

/// What `perjoule` writes that is no text.
fn script_bytes(file: &Path, format: &str) -> Vec<u8> {
    let output = std::process::Command::new(end_to_end::binary("perjoule"))
        .arg("script")
        .arg(file)
        .args(["--format", format])
        .output()
        .expect("it can be started");
    assert!(output.status.success());
    output.stdout
}

/// Lines of stacks with `columns` figures each.
fn lines(text: &str, columns: usize) -> Vec<(Vec<&str>, Vec<u64>)> {
    text.lines()
        .map(|line| {
            let mut words: Vec<&str> = line.rsplitn(columns + 1, ' ').collect();
            let stack = words.pop().expect("a stack");
            let figures = words
                .iter()
                .rev()
                .map(|word| word.parse().expect("a number"));
            (stack.split(';').collect(), figures.collect())
        })
        .collect()
}

/// The fields of a protobuf message: number, and value or bytes. Written from the encoding's
/// description, so that the agent's own types are not held against themselves.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (first, rest) = bytes.split_first().expect("a whole number");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => fields.push((key >> 3, varint(&mut bytes), &[][..])),
            2 => {
                let length = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                fields.push((key >> 3, 0, value));
                bytes = rest;
            }
            kind => panic!("wire type {kind} is not in a profile"),
        }
    }
    fields
}

/// A packed list of numbers.
fn packed(bytes: &[u8]) -> Vec<u64> {
    let mut value = 0;
    let mut shift = 0;
    let mut all = Vec::new();
    for byte in bytes {
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            all.push(value);
            (value, shift) = (0, 0);
        }
    }
    all
}

#[test]
fn every_format_holds_every_microjoule_of_the_ledger_on_named_stacks() {
    if !is_root("energy by stack") {
        return;
    }
    let stack = Stack::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file: PathBuf = folder.path().join("a.pj");
    record(&stack, LOAD, &file);
    let all = energy(&file, "%");
    assert!(all > 0);

    let folded = script(&file, &["--format", "folded"]).out;
    let stacks = lines(&folded, 1);
    assert_eq!(
        stacks.iter().map(|(_, figures)| figures[0]).sum::<u64>(),
        all
    );
    for component in ["gpu", "cpu", "dram"] {
        let part = script(&file, &["--format", "folded", "--component", component]).out;
        let part: u64 = lines(&part, 1).iter().map(|(_, figures)| figures[0]).sum();
        assert_eq!(part, energy(&file, component), "{component}");
    }
    let on = |frame: &str| -> u64 {
        let with = stacks.iter().filter(|(frames, _)| frames.contains(&frame));
        with.map(|(_, figures)| figures[0]).sum()
    };
    for (frame, column) in [
        ("[GPU prefill]", "prefill_uj"),
        ("[GPU decode]", "decode_uj"),
    ] {
        let told = sum(
            &file,
            &format!("SELECT sum({column}) FROM interval_services"),
        );
        println!("{frame}: {} J", told / 1_000_000);
        assert!(told > 0, "{frame}");
        assert_eq!(on(frame), told, "{frame}");
    }
    let idle = sum(&file, "SELECT sum(idle_uj) FROM intervals");
    assert_eq!(on("[idle]"), idle);
    // The stack's own code, under its name and its program's.
    let own = |(frames, _): &&(Vec<&str>, Vec<u64>)| {
        frames.len() > 2 && frames[1].starts_with("inference-sim")
    };
    let own: u64 = stacks
        .iter()
        .filter(own)
        .map(|(_, figures)| figures[0])
        .sum();
    let service_cpu = sum(
        &file,
        "SELECT sum(interval_services.requests_uj + interval_services.overhead_uj)
        FROM interval_services JOIN intervals USING (interval) JOIN meters USING (meter)
        WHERE component = 'cpu'",
    );
    println!("{own} of {service_cpu} uJ of the service's CPU energy on stacks");
    // While it does next to nothing the timer may not find it for seconds.
    assert_eq!(own + on("[CPU, no sample]"), service_cpu);
    assert!(
        own * 4 > service_cpu * 3,
        "{own} of {service_cpu} on stacks"
    );
    let unknown = |(frames, _): &&(Vec<&str>, Vec<u64>)| frames.last() == Some(&"[unknown]");
    let unknown: u64 = stacks
        .iter()
        .filter(unknown)
        .map(|(_, figures)| figures[0])
        .sum();
    assert!(unknown * 4 < own, "{unknown} of {own} without a name");

    let svg = script(&file, &["--format", "svg"]).out;
    assert!(svg.contains(&format!("total_samples=\"{all}\"")));
    assert!(svg.contains("SIMULATED GPU") && svg.trim_end().ends_with("</svg>"));
    for outside in ["href=\"http", "src=", "@import", "url(http"] {
        assert!(!svg.contains(outside), "{outside}");
    }
    assert_pprof(&file, all);
    assert_firefox(&file, all);
    assert_waits(&file);
}

/// Every wait that was recorded stands on its stack, below its reason.
fn assert_waits(file: &Path) {
    let folded = script(file, &["--off-cpu", "--format", "folded"]).out;
    let stacks = lines(&folded, 1);
    let told: u64 = stacks.iter().map(|(_, figures)| figures[0]).sum();
    let recorded = sum(file, "SELECT sum(waited_ns) FROM off_cpu") / 1_000;
    assert!(recorded > 1_000_000, "a server waits: {recorded} us");
    // Each line is cut to whole microseconds.
    assert!(told <= recorded && told + stacks.len() as u64 >= recorded);
    let least = sum(file, "SELECT min(waited_ns) FROM off_cpu");
    assert!(least >= 1_000_000, "{least}");
    let reasons = [
        "[poll]", "[futex]", "[sleep]", "[socket]", "[disk]", "[other]",
    ];
    let below = |(frames, _): &(Vec<&str>, Vec<u64>)| {
        frames.last().is_some_and(|frame| reasons.contains(frame))
    };
    assert!(stacks.iter().all(below), "{folded}");
    let of_server = |(frames, _): &(Vec<&str>, Vec<u64>)| {
        frames.len() > 3 && frames[1].starts_with("inference-sim")
    };
    assert!(stacks.iter().any(of_server), "{folded}");
    assert!(
        !folded.contains("bpf_prog"),
        "the probe's own code: {folded}"
    );
    let svg = script(file, &["--off-cpu", "--format", "svg"]).out;
    assert!(svg.contains("Waiting of threads") && svg.contains(" ms"));
}

fn assert_pprof(file: &Path, all: u64) {
    let mut bytes = Vec::new();
    let zipped = script_bytes(file, "pprof");
    GzDecoder::new(zipped.as_slice())
        .read_to_end(&mut bytes)
        .expect("gzip");
    let profile = fields(&bytes);
    let texts: Vec<&str> = profile
        .iter()
        .filter(|(field, ..)| *field == 6)
        .map(|(_, _, text)| std::str::from_utf8(text).expect("text"))
        .collect();
    assert_eq!(texts[0], "");
    let types: Vec<Vec<&str>> = profile
        .iter()
        .filter(|(field, ..)| *field == 1)
        .map(|(_, _, of)| {
            fields(of)
                .iter()
                .map(|(_, place, _)| texts[*place as usize])
                .collect()
        })
        .collect();
    assert_eq!(
        types,
        [
            ["cpu", "nanoseconds"],
            ["energy", "microjoules"],
            ["off-cpu", "nanoseconds"]
        ]
    );
    let numbers = |wanted: u64| -> Vec<u64> {
        let ids = profile.iter().filter(|(field, ..)| *field == wanted);
        ids.map(|(_, _, bytes)| fields(bytes)[0].1).collect()
    };
    let (locations, functions) = (numbers(4), numbers(5));
    assert_eq!(locations, functions);
    let (mut nanos, mut energy, mut waited) = (0, 0, 0);
    for (_, _, sample) in profile.iter().filter(|(field, ..)| *field == 2) {
        let sample: BTreeMap<u64, Vec<u64>> = fields(sample)
            .iter()
            .map(|(field, _, list)| (*field, packed(list)))
            .collect();
        assert!(sample[&1].iter().all(|id| locations.contains(id)));
        nanos += sample[&2][0];
        energy += sample[&2][1];
        waited += sample[&2][2];
    }
    assert_eq!(waited, sum(file, "SELECT sum(waited_ns) FROM off_cpu"));
    assert_eq!(energy, all);
    let samples = sum(file, "SELECT count(*) FROM samples");
    assert_eq!(nanos, samples * (1_000_000_000 / HERTZ));
}

fn assert_firefox(file: &Path, all: u64) {
    let text = script(file, &["--format", "firefox"]).out;
    let profile: Value = serde_json::from_str(&text).expect("JSON");
    let numbers = |list: &Value| -> Vec<f64> {
        let list = list.as_array().expect("a list").iter();
        list.map(|value| value.as_f64().expect("a number"))
            .collect()
    };
    let mut drawn = 0.0;
    for track in profile["counters"].as_array().expect("tracks") {
        assert_eq!(track["category"], "power");
        drawn += numbers(&track["samples"]["count"]).iter().sum::<f64>();
    }
    // Picowatt-hours.
    let joules = drawn * 3600.0 * 1e-12;
    assert!(
        (joules / (all as f64 * 1e-6) - 1.0).abs() < 1e-9,
        "{joules} J drawn"
    );
    let mut weights = 0.0;
    for thread in profile["threads"].as_array().expect("threads") {
        if thread["samples"]["weight"].is_array() {
            weights += numbers(&thread["samples"]["weight"]).iter().sum::<f64>();
        }
    }
    assert_eq!(weights as u64, all);
}

#[test]
fn beside_a_base_each_recording_keeps_its_own_sum() {
    if !is_root("energy by stack of two recordings") {
        return;
    }
    let stack = Stack::start();
    let folder = tempfile::tempdir().expect("a folder");
    let [base, now] = ["base.pj", "now.pj"].map(|name| folder.path().join(name));
    record(&stack, "--rate 2 --seconds 2 --median-out 40", &base);
    record(&stack, "--rate 6 --seconds 4 --median-out 80", &now);
    let against = ["--against", base.to_str().expect("a plain path")];
    let folded = script(&now, &[&["--format", "folded"], &against[..]].concat()).out;
    let stacks = lines(&folded, 2);
    let column = |at: usize| stacks.iter().map(|(_, figures)| figures[at]).sum::<u64>();
    assert_eq!(column(0), energy(&base, "%"));
    assert_eq!(column(1), energy(&now, "%"));
    let decode = stacks
        .iter()
        .find(|(frames, _)| frames.ends_with(&["[GPU decode]"]));
    let (_, figures) = decode.expect("both decoded");
    assert!(figures[1] > figures[0], "more was asked for: {figures:?}");
    let svg = script(&now, &[&["--format", "svg"], &against[..]].concat()).out;
    assert!(svg.contains("against base.pj") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn stacks_without_a_recording_are_refused_and_without_stacks_no_timer_runs() {
    for wanted in ["--stacks", "--off-cpu"] {
        let ended = perjoule(&["stat", wanted, "--pid", "1", "--duration", "1"]);
        assert_eq!(ended.status.code(), Some(64), "{ended:?}");
        assert!(ended.log.contains("--record FILE"), "{}", ended.log);
    }
    let unfollowed = [
        "stat",
        "--off-cpu",
        "--waits",
        "off",
        "--record",
        "/tmp/never.pj",
    ];
    let ended = perjoule(&[&unfollowed[..], &["--pid", "1", "--duration", "1"]].concat());
    assert_eq!(ended.status.code(), Some(64), "{ended:?}");
    assert!(ended.log.contains("--waits off"), "{}", ended.log);
    if !is_root("no stacks") {
        return;
    }
    let mut agent = Agent::start(&[]);
    sleep(Duration::from_millis(300));
    agent.end_with(libc::SIGTERM);
    assert!(agent.rows("SELECT * FROM samples").is_empty());
    let told = agent.rows("SELECT * FROM meta WHERE key LIKE 'stacks%'");
    assert!(told.is_empty(), "{told:?}");
    let file = agent.recording_path();
    let waits = [
        "script",
        "--off-cpu",
        "--format",
        "svg",
        file.to_str().expect("plain"),
    ];
    let ended = perjoule(&waits);
    assert!(ended.log.contains("record with --off-cpu"), "{}", ended.log);
    assert!(!ended.status.success());
    // What was booked is drawn all the same.
    let folded = script(&agent.recording_path(), &["--format", "folded"]).out;
    let drawn: u64 = lines(&folded, 1)
        .iter()
        .map(|(_, figures)| figures[0])
        .sum();
    assert_eq!(drawn, energy(&agent.recording_path(), "%"));
}
