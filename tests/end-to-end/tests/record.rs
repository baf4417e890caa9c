//! `perjoule record` and `run --hindsight` on the simulated stack: what a file holds when its writer is killed, when
//! the disk is full, and when the last minutes are saved.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use end_to_end::agent::{Ended, perjoule};
use end_to_end::stack::Stack;
use end_to_end::{http, is_root, scaled};
use rusqlite::Connection;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
/// At this many moments a recording is killed.
const KILLS: u32 = 20;

/// An agent that serves `/metrics` on a port of its own choice.
struct Recorder {
    child: Child,
    log: PathBuf,
    port: u16,
}

impl Recorder {
    /// Starts it and waits until it serves. `arguments` tell the verb, and end where `--listen` may stand.
    fn start(mut command: Command, log: &Path, arguments: &[&str]) -> Self {
        let child = command
            .args(arguments)
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log).expect("a log"))
            .spawn()
            .expect("it can be started");
        let mut recorder = Self {
            child,
            log: log.to_owned(),
            port: 0,
        };
        recorder.wait_for("://127.0.0.1:");
        let text = recorder.log();
        recorder.port = text
            .split_once("://127.0.0.1:")
            .and_then(|(_, rest)| rest.split('/').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no port: {text}"));
        recorder
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(
                start.elapsed() < scaled(30 * SECOND),
                "no {text}: {}",
                self.log()
            );
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("ended with {status}: {}", self.log());
            }
            sleep(Duration::from_millis(10));
        }
    }

    fn shown(&self) -> Shown {
        let scrape = http::get(self.port, "/metrics");
        let sum = |name: &str| {
            let series = http::body(&scrape)
                .lines()
                .filter(|line| line.starts_with(name));
            let values = series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            values.sum()
        };
        Shown {
            joules: sum("perjoule_meter_energy_joules_total{"),
            requests: sum("perjoule_requests_total{"),
            cpu: sum("perjoule_cpu_seconds_total{"),
        }
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `/metrics` said.
#[derive(Debug, Default, Clone, Copy)]
struct Shown {
    joules: f64,
    requests: f64,
    /// Seconds that services were on a CPU.
    cpu: f64,
}

/// The report of a recording, as JSON.
fn report(file: &Path) -> Value {
    let ended = perjoule(&["report", &file.display().to_string(), "--format", "json"]);
    assert!(ended.status.success(), "{ended:?}");
    ended.json()
}

fn numbers(report: &Value, list: &str, figure: &[&str]) -> f64 {
    let rows = report[list].as_array().expect("a list").iter();
    let value = |row: &Value| {
        figure
            .iter()
            .fold(row.clone(), |row, key| row[*key].clone())
    };
    rows.filter_map(|row| value(row).as_f64()).sum()
}

/// The file is whole, and holds at least what was shown before its writer ended.
fn check(file: &Path, shown: Shown) -> Value {
    // The first reader finds what the writer left; it folds nothing in.
    let report = report(file);
    assert_eq!(report["ledger"]["residual_microjoules"], 0, "{report}");
    let joules = numbers(&report, "meters", &["energy_j"]);
    let requests = numbers(&report, "services", &["requests", "total"]);
    // Of a sum of floats.
    assert!(joules + 1e-3 >= shown.joules, "{joules} J of {shown:?}");
    assert!(requests >= shown.requests, "{requests} of {shown:?}");
    let plain = Connection::open(file).expect("a file");
    let text: String = plain
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("a check");
    assert_eq!(text, "ok");
    // No interval is missing between two others.
    let torn: i64 = plain
        .query_row(
            "SELECT count(*) FROM (SELECT from_ns, lag(to_ns) OVER (PARTITION BY meter ORDER BY from_ns) AS before
                FROM intervals) WHERE before IS NOT NULL AND before <> from_ns",
            [],
            |row| row.get(0),
        )
        .expect("a count");
    assert_eq!(torn, 0, "intervals are missing");
    report
}

/// Stacks have names, and are drawn: where the CPU's energy went, and where threads waited.
fn check_stacks(file: &Path) {
    let plain = Connection::open(file).expect("a file");
    let nameless: i64 = plain
        .query_row(
            "SELECT count(*) FROM (SELECT stack FROM samples UNION ALL SELECT stack FROM off_cpu)
                WHERE stack NOT IN (SELECT stack FROM stacks)",
            [],
            |row| row.get(0),
        )
        .expect("a count");
    assert_eq!(nameless, 0, "texts of stacks are missing");
    let name = file.display().to_string();
    let drawn = |form: &[&str]| {
        let ended = perjoule(&[&["script", &name, "--format"], form].concat());
        assert!(ended.status.success(), "{ended:?}");
        ended.out
    };
    assert!(drawn(&["svg"]).trim_end().ends_with("</svg>"));
    assert!(!drawn(&["pprof"]).is_empty());
    let energy = drawn(&["folded"]);
    let sampled = |line: &str| line.starts_with("inference-sim;") && !line.contains(";[");
    assert!(energy.lines().any(sampled), "{energy}");
    let waits = drawn(&["folded", "--off-cpu"]);
    assert!(waits.starts_with("inference-sim;"), "{waits}");
}

fn ended(command: &mut Command) -> Ended {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    Ended {
        status: output.status,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Ends a load that has served its turn.
fn end(mut load: Child) {
    let _ = load.kill();
    let _ = load.wait();
}

#[test]
fn it_records_while_a_command_runs_keeps_its_exit_code_and_says_what_to_type_next() {
    if !is_root("record") {
        return;
    }
    let stack = Stack::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.pj");
    let load = stack.load(6.0, 4);
    let ended = ended(
        stack
            .perjoule()
            .args(["record", "--all", "-o"])
            .arg(&file)
            .args(["--", "sh", "-c", "sleep 5; exit 7"]),
    );
    end(load);
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    assert_eq!(ended.out, "", "its result is the file");
    let report = check(&file, Shown::default());
    let requests = numbers(&report, "services", &["requests", "total"]);
    assert!(requests > 5.0, "{report}");
    let last = ended.log.lines().last().unwrap_or_default();
    let named = file.display();
    assert!(last.starts_with("[ perjoule record: "), "{ended:?}");
    assert!(
        last.ends_with(&format!("; next: perjoule report {named} ]")),
        "{ended:?}"
    );
    for told in [
        format!("{requests} requests"),
        "SIMULATED GPU".into(),
        "0 requests lost".into(),
        "residual 0 µJ".into(),
    ] {
        assert!(last.contains(&told), "{told}: {ended:?}");
    }
}

#[test]
fn a_command_alone_is_what_is_recorded_and_the_time_ends_what_has_no_end() {
    if !is_root("record") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("perjoule.pj");
    let work = "python3 -c 'sum(range(3_000_000))'; exit 3";
    let mut command = Command::new(end_to_end::binary("perjoule"));
    command.current_dir(folder.path());
    let alone = ended(command.args(["record", "--", "sh", "-c", work]));
    assert_eq!(alone.status.code(), Some(3), "{alone:?}");
    let services = report(&file)["services"].clone();
    assert_eq!(services.as_array().map(Vec::len), Some(1), "{services}");
    assert_eq!(services[0]["service"], "sh", "{services}");

    let began = Instant::now();
    let named = file.display().to_string();
    let timed = perjoule(&["record", "-o", &named, "--duration", "2s"]);
    assert_eq!(timed.status.code(), Some(0), "{timed:?}");
    assert!(began.elapsed() < scaled(12 * SECOND), "{timed:?}");
    report(&file);
    let wrong = perjoule(&["record", "--duration", "soon"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(wrong.log.contains("10s, 5m or 1h"), "{wrong:?}");
}

#[test]
fn the_report_in_its_forms_the_ledger_and_metrics_have_the_same_totals() {
    if !is_root("record") {
        return;
    }
    let stack = Stack::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.pj");
    let name = file.display().to_string();
    let arguments = ["record", "--all", "-o", &name];
    let mut recorder = Recorder::start(stack.perjoule(), &folder.path().join("log"), &arguments);
    sleep(2 * SECOND);
    stack.load_whole(5.0, 4);
    sleep(4 * SECOND);
    let shown = recorder.shown();
    // Nothing is told any more.
    recorder.child.kill().expect("it runs");
    recorder.child.wait().expect("it ends");

    let report = check(&file, shown);
    let near = |told: f64, what: &str| {
        let shown = match what {
            "joules" => shown.joules,
            "requests" => shown.requests,
            _ => shown.cpu,
        };
        assert!(
            (told / shown - 1.0).abs() < 1e-6,
            "{what}: {told}, /metrics {shown}"
        );
    };
    near(numbers(&report, "meters", &["energy_j"]), "joules");
    near(
        numbers(&report, "services", &["requests", "total"]),
        "requests",
    );
    near(numbers(&report, "services", &["cpu_s"]), "cpu");
    assert_eq!(report["losses"]["requests"], 0, "{report}");
    let environment = &report["planner"]["environment"];
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert_eq!(environment["kernel"], kernel.trim(), "{environment}");
    assert!(environment["gpu_driver"].is_string(), "{environment}");

    let plain = Connection::open(&file).expect("a file");
    let booked: i64 = plain
        .query_row("SELECT sum(energy_uj) FROM intervals", [], |row| row.get(0))
        .expect("a sum");
    near(booked as f64 * 1e-6, "joules");
    let csv = perjoule(&["report", &name, "--format", "csv"]).out;
    let told = csv.lines().find_map(|line| {
        let (_, value) = line.split_once(",measured_energy,")?;
        value.split(',').next()?.parse().ok()
    });
    near(told.unwrap_or_else(|| panic!("{csv}")), "joules");
}

#[test]
fn a_recording_that_is_killed_at_any_moment_holds_all_that_was_shown() {
    if !is_root("record") {
        return;
    }
    let began = Instant::now();
    let stack = Stack::start();
    // Short answers: many requests end within the seconds that a recording lives.
    let load = stack.load_of("--rate 20 --seconds 120 --median-in 100 --median-out 10");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut random = since.expect("a time").as_nanos() as u64;
    println!("moments from {random}");
    let (mut most, mut some) = (Shown::default(), 0);
    for turn in 0..KILLS {
        let file = folder.path().join(format!("{turn}.pj"));
        let name = file.display().to_string();
        let arguments = ["record", "--all", "-o", &name];
        let mut recorder = Recorder::start(stack.perjoule(), &log, &arguments);
        // Knuth's; the upper bits are random enough.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        sleep(Duration::from_millis(200 + (random >> 33) % 3_000));
        let shown = recorder.shown();
        recorder.child.kill().expect("it runs");
        recorder.child.wait().expect("it ends");
        check(&file, shown);
        some += u32::from(shown.joules > 0.0);
        if shown.joules > most.joules {
            most = shown;
        }
    }
    end(load);
    println!(
        "{KILLS} kills in {:?}; most had been shown by {most:?}",
        began.elapsed()
    );
    assert!(
        some >= KILLS / 2,
        "most kills came before anything was shown"
    );
    assert!(most.requests > 0.0, "no request was shown");
    assert!(
        began.elapsed() < scaled(90 * SECOND),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_full_disk_is_told_once_the_agent_measures_on_and_what_was_committed_stays() {
    if !is_root("mount namespace") {
        return;
    }
    let stack = Stack::start();
    let load = stack.load(8.0, 60);
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).expect("a folder");
    let inside = disk.join("a.pj").display().to_string();
    let log = folder.path().join("log");
    // A disk that nobody else sees.
    let own = stack.perjoule();
    let mut command = Command::new("unshare");
    let mount = format!(
        "mount -t tmpfs -o size=512k none {} && exec \"$0\" \"$@\"",
        disk.display()
    );
    command.args(["--mount", "sh", "-c", &mount]);
    command.arg(own.get_program());
    for (name, value) in own.get_envs() {
        command.env(name, value.expect("a value"));
    }
    let mut recorder = Recorder::start(command, &log, &["run", "--record", &inside]);
    let told = "nothing more is written to it";
    let (start, mut shown) = (Instant::now(), Shown::default());
    loop {
        let next = recorder.shown();
        // What is shown before the error was committed before it.
        if recorder.log().contains(told) {
            break;
        }
        shown = next;
        assert!(
            start.elapsed() < scaled(60 * SECOND),
            "the disk is not full: {}",
            recorder.log()
        );
        sleep(Duration::from_millis(100));
    }
    println!("full after {:?}; {shown:?}", start.elapsed());
    assert!(shown.joules > 0.0, "{}", recorder.log());
    let before = recorder.shown();
    sleep(3 * SECOND);
    let after = recorder.shown();
    assert!(
        after.joules > before.joules && after.requests > before.requests,
        "{after:?}"
    );

    let copy = folder.path().join("copy.pj");
    let there = format!("/proc/{}/root{inside}", recorder.child.id());
    for end in ["", "-wal"] {
        let from = format!("{there}{end}");
        if Path::new(&from).exists() {
            fs::copy(from, format!("{}{end}", copy.display())).expect("a copy");
        }
    }
    check(&copy, shown);
    end(load);

    recorder.signal(libc::SIGTERM);
    let status = recorder.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", recorder.log());
    let text = recorder.log();
    let errors: Vec<&str> = text.lines().filter(|line| line.contains("a.pj")).collect();
    let [error] = errors.as_slice() else {
        panic!("one error: {text}");
    };
    assert!(
        error.contains("full") && error.contains("make room"),
        "{error}"
    );
}

#[test]
fn the_last_seconds_are_saved_after_the_event_as_a_recording_that_every_verb_reads() {
    if !is_root("hindsight") {
        return;
    }
    let stack = Stack::start();
    let load = stack.load(6.0, 30);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("h.pj").display().to_string();
    let log = folder.path().join("log");
    let minutes = ["run", "--hindsight", "5s", "--hindsight-file", &file];
    let stacks = ["--stacks", "99", "--off-cpu", "--cpu-budget", "none"];
    let arguments = [&minutes[..], &stacks[..]].concat();
    let mut recorder = Recorder::start(stack.perjoule(), &log, &arguments);
    sleep(13 * SECOND);
    let refused = http::get(recorder.port, "/hindsight/save");
    assert!(refused.starts_with("HTTP/1.1 405"), "{refused}");
    let answer = http::post(recorder.port, "/hindsight/save");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let saved = PathBuf::from(http::body(&answer).trim());
    assert_eq!(saved.parent(), Some(folder.path()), "{answer}");
    assert!(
        recorder.log().contains(&saved.display().to_string()),
        "{}",
        recorder.log()
    );

    let report = check(&saved, Shown::default());
    let seconds = report["duration_s"].as_f64().expect("a window");
    assert!((3.0..6.5).contains(&seconds), "{seconds} s");
    let requests = numbers(&report, "services", &["requests", "total"]);
    assert!(requests >= 5.0, "{report}");
    assert_eq!(
        report["services"][0]["service"], "inference-sim",
        "{report}"
    );
    let name = saved.display().to_string();
    let lines = perjoule(&["script", &name]);
    assert_eq!(lines.out.lines().count() as f64, requests, "{lines:?}");
    let explained = perjoule(&["explain", &name, "--costliest", "1"]);
    assert!(explained.status.success(), "{explained:?}");
    check_stacks(&saved);

    // By signal, a second or more later: another file.
    sleep(2 * SECOND);
    let before = recorder.log();
    recorder.signal(libc::SIGUSR2);
    let start = Instant::now();
    let second = loop {
        let text = recorder.log();
        let told = text.strip_prefix(&before).unwrap_or_default();
        let named = told
            .lines()
            .find_map(|line| line.split_once("are saved in "));
        if let Some((_, path)) = named {
            break PathBuf::from(path.trim());
        }
        assert!(start.elapsed() < scaled(10 * SECOND), "{text}");
        sleep(Duration::from_millis(20));
    };
    assert_ne!(second, saved);
    check(&second, Shown::default());
    // It measures on, and ends as ever.
    assert!(recorder.shown().joules > 0.0);
    end(load);
    recorder.signal(libc::SIGTERM);
    let status = recorder.child.wait().expect("it ends");
    assert!(status.success(), "{}", recorder.log());
}

#[test]
fn minutes_without_a_place_a_place_without_minutes_and_stacks_that_nothing_keeps_are_named() {
    for (arguments, fix) in [
        (&["run", "--hindsight", "10m"][..], "--hindsight-file"),
        // Stacks are kept there: it is the place that is missing.
        (
            &["run", "--hindsight", "10m", "--stacks"],
            "--hindsight-file",
        ),
        (&["run", "--hindsight-file", "/tmp/h.pj"], "--hindsight 10m"),
        (&["run", "--stacks"], "--hindsight 10m"),
        (&["run", "--off-cpu"], "--record FILE"),
    ] {
        let ended = perjoule(arguments);
        assert_eq!(ended.status.code(), Some(64), "{ended:?}");
        assert!(ended.log.contains(fix), "{ended:?}");
        assert_eq!(ended.log.lines().count(), 1, "{ended:?}");
    }
}
