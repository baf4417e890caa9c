//! `perjoule stat` against plain servers.

use std::thread;

use end_to_end::agent::{Ended, perjoule};
use end_to_end::server::{Server, free_port};
use end_to_end::{http, is_root};
use serde_json::Value;

/// Counts for five seconds while `load` runs, and returns the one service.
fn counted(server: &Server, load: impl Fn(u16) + Sync) -> Value {
    let port = server.port().to_string();
    let ended = thread::scope(|scope| {
        let stat =
            scope.spawn(|| perjoule(&["stat", "--port", &port, "--json", "--", "sleep", "5"]));
        thread::sleep(std::time::Duration::from_secs(2));
        load(server.port());
        stat.join().expect("stat ends")
    });
    assert!(ended.status.success(), "{ended:?}");
    let report = ended.json();
    assert_eq!(report["ledger"]["residual_microjoules"], 0, "{ended:?}");
    assert_eq!(report["losses"]["requests"], 0, "{ended:?}");
    report["services"][0].clone()
}

#[test]
fn it_counts_exactly_what_a_load_sent_to_python() {
    if !is_root("stat") {
        return;
    }
    let server = Server::python();
    let service = counted(&server, |port| {
        for _ in 0..150 {
            assert!(http::get(port, "/file.txt").starts_with("HTTP/1.0 200"));
        }
        for _ in 0..7 {
            assert!(http::get(port, "/nothing").starts_with("HTTP/1.0 404"));
        }
    });
    assert_eq!(service["requests"]["total"], 157, "{service}");
    assert_eq!(service["requests"]["by_code"]["2xx"], 150, "{service}");
    assert_eq!(service["requests"]["by_code"]["4xx"], 7, "{service}");
    assert_eq!(service["requests"]["aborted"], 0, "{service}");
}

#[test]
fn tokens_are_those_the_server_names_at_its_streams_ends_and_that_event_is_no_chunk() {
    if !is_root("stat") {
        return;
    }
    let server = Server::stream_with_usage();
    let service = counted(&server, |port| {
        for _ in 0..20 {
            assert!(http::get(port, "/v1/completions").contains("[DONE]"));
        }
    });
    assert_eq!(service["requests"]["total"], 20, "{service}");
    assert_eq!(service["chunks"], 80, "{service}");
    let tokens = &service["tokens"];
    assert_eq!(tokens["input"], 140, "{service}");
    assert_eq!(tokens["output"], 180, "{service}");
    assert_eq!(tokens["source"], "usage", "{service}");
}

#[test]
fn it_counts_exactly_what_a_load_sent_to_nginx_on_kept_connections() {
    if !is_root("stat") {
        return;
    }
    let Some(server) = Server::nginx() else {
        return;
    };
    let service = counted(&server, |port| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| http::keep_alive(port, "/file.txt", 500));
            }
        });
    });
    assert_eq!(service["requests"]["total"], 2000, "{service}");
    assert_eq!(service["requests"]["by_code"]["2xx"], 2000, "{service}");
    assert_eq!(service["requests"]["incomplete"], 0, "{service}");
}

#[test]
fn the_commands_exit_code_is_kept_and_its_output_comes_before_the_table() {
    if !is_root("stat") {
        return;
    }
    let server = Server::python();
    let port = server.port().to_string();
    let ended = perjoule(&[
        "stat",
        "--port",
        &port,
        "--",
        "sh",
        "-c",
        "echo said; exit 7",
    ]);
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    let said = ended.out.find("said").expect("the command's own output");
    let table = ended.out.find("requests").expect("the table");
    assert!(said < table);
}

#[test]
fn a_command_alone_is_what_is_counted() {
    if !is_root("stat") {
        return;
    }
    let port = free_port();
    let script = format!(
        "python3 -m http.server --bind 127.0.0.1 {port} >/dev/null 2>&1 & \
         sleep 2; for i in 1 2 3; do \
         python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:{port}/\").read()'; \
         done; kill $!; wait"
    );
    let ended: Ended = perjoule(&["stat", "--json", "--", "sh", "-c", &script]);
    let report = ended.json();
    assert_eq!(report["services"][0]["requests"]["total"], 3, "{ended:?}");
    assert!(
        report["services"][0]["cpu_s"]
            .as_f64()
            .is_some_and(|cpu| cpu > 0.01),
        "{ended:?}"
    );
}

#[test]
fn a_command_that_ends_at_once_is_counted_whole() {
    if !is_root("stat") {
        return;
    }
    let work = "exec python3 -c 'sum(range(3_000_000)); raise SystemExit(5)'";
    let ended = perjoule(&["stat", "--json", "--", "sh", "-c", work]);
    assert_eq!(ended.status.code(), Some(5), "{ended:?}");
    let service = &ended.json()["services"][0];
    assert_eq!(service["service"], "sh", "{ended:?}");
    assert!(
        service["cpu_s"].as_f64().is_some_and(|cpu| cpu > 0.02),
        "{ended:?}"
    );
    let ended = perjoule(&["stat", "--", "true"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn a_command_that_still_runs_is_ended_before_the_result_and_says_so_itself() {
    if !is_root("stat") {
        return;
    }
    let server = Server::python();
    let port = server.port().to_string();
    let trap = "trap 'echo said; exit 3' TERM; kill -INT $PPID; while :; do sleep 0.05; done";
    let ended = perjoule(&["stat", "--port", &port, "--json", "--", "sh", "-c", trap]);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert!(ended.out.starts_with("said\n"), "{ended:?}");
    assert_eq!(ended.json()["schema"], 1, "{ended:?}");
    let ended = perjoule(&[
        "stat",
        "--port",
        &port,
        "--json",
        "--duration",
        "1",
        "--",
        "sleep",
        "60",
    ]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.json()["schema"], 1, "{ended:?}");
}

#[test]
fn it_ends_with_the_process_it_was_given() {
    if !is_root("stat") {
        return;
    }
    let mut process = std::process::Command::new("sleep")
        .arg("2")
        .spawn()
        .expect("it starts");
    let pid = process.id().to_string();
    let reaped = thread::spawn(move || process.wait());
    let ended = perjoule(&["stat", "--pid", &pid, "--json"]);
    assert!(reaped.join().is_ok_and(|waited| waited.is_ok()));
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.json()["services"][0]["service"], "sleep", "{ended:?}");
}

/// What a run of a command that counts for itself used of the CPU.
const WORK: &str = "exec python3 -c 'sum(range(3_000_000))'";

#[test]
fn repeats_are_measured_each_by_itself_and_told_with_their_spread() {
    if !is_root("stat") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let ran = folder.path().join("ran");
    let work = format!("echo run >> {}; {WORK}", ran.display());
    let ended = perjoule(&["stat", "-r", "3", "--json", "--", "sh", "-c", &work]);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(
        std::fs::read_to_string(&ran).expect("runs"),
        "run\n".repeat(3)
    );
    let repeats = ended.json();
    assert_eq!(repeats["repeats"], 3, "{ended:?}");
    let figures = repeats["figures"].as_array().expect("figures");
    let cpu = figures
        .iter()
        .find(|one| one["event"] == "cpu" && one["subject"] == "sh")
        .unwrap_or_else(|| panic!("no CPU time: {ended:?}"));
    let values = cpu["values"].as_array().expect("a value a run");
    let values: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
    assert_eq!(values.len(), 3, "{cpu}");
    assert!(values.iter().all(|cpu| *cpu > 0.02), "{cpu}");
    let mean = values.iter().sum::<f64>() / 3.0;
    assert!((cpu["mean"].as_f64().unwrap() - mean).abs() < 1e-9, "{cpu}");
    assert!(
        cpu["half_width"].as_f64().is_some_and(|half| half > 0.0),
        "{cpu}"
    );
}

#[test]
fn a_run_that_fails_does_not_end_the_series_and_the_last_ones_code_is_told() {
    if !is_root("stat") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let ran = folder.path().join("ran");
    let file = ran.display();
    let count = format!("echo run >> {file}; exit $((4 - $(wc -l < {file})))");
    let ended = perjoule(&["stat", "-r", "2", "--", "sh", "-c", &count]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.out.contains("Mean of 2 runs"), "{ended:?}");
    assert!(
        ended.log.contains("the command failed in 2 of 2 runs"),
        "{ended:?}"
    );
}

#[test]
fn intervals_come_while_it_counts_and_add_up_to_all_requests() {
    if !is_root("stat") {
        return;
    }
    let server = Server::python();
    let port = server.port().to_string();
    let arguments = [
        "stat", "--port", &port, "--json", "-I", "500", "--", "sleep", "4",
    ];
    let ended = thread::scope(|scope| {
        let stat = scope.spawn(|| perjoule(&arguments));
        thread::sleep(std::time::Duration::from_secs(2));
        for _ in 0..60 {
            assert!(http::get(server.port(), "/file.txt").starts_with("HTTP/1.0 200"));
        }
        stat.join().expect("stat ends")
    });
    assert!(ended.status.success(), "{ended:?}");
    let lines: Vec<Value> = ended
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON an interval"))
        .collect();
    assert!((8..=15).contains(&lines.len()), "{ended:?}");
    let times: Vec<f64> = lines
        .iter()
        .filter_map(|line| line["time_s"].as_f64())
        .collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    assert!((times[0] - 0.5).abs() < 0.3, "{times:?}");
    let requests = |line: &Value| line["services"][0]["requests"]["total"].as_u64();
    assert_eq!(
        lines.iter().filter_map(requests).sum::<u64>(),
        60,
        "{ended:?}"
    );
    assert!(
        lines.iter().any(|line| requests(line) == Some(0)),
        "{ended:?}"
    );
    for line in &lines {
        assert_eq!(line["ledger"]["residual_microjoules"], 0, "{line}");
    }

    let table = perjoule(&["stat", "--port", &port, "-I", "500", "--duration", "2"]);
    let mut lines = table.out.lines();
    assert!(
        lines.next().is_some_and(|line| line.starts_with('#')),
        "{table:?}"
    );
    assert!(
        lines.all(|line| line
            .split_whitespace()
            .next()
            .is_some_and(|time| time.parse::<f64>().is_ok())),
        "{table:?}"
    );
}

#[test]
fn separated_fields_stand_where_perf_has_them() {
    if !is_root("stat") {
        return;
    }
    let ended = perjoule(&["stat", "-x", ";", "--", "sh", "-c", WORK]);
    let line = ended
        .out
        .lines()
        .find(|line| line.contains(";cpu;"))
        .unwrap_or_else(|| panic!("no CPU time: {ended:?}"));
    let fields: Vec<&str> = line.split(';').collect();
    assert_eq!(
        (fields[0], fields[2], fields[3]),
        ("sh", "s", "cpu"),
        "{line}"
    );
    assert!(fields[1].parse().is_ok_and(|cpu: f64| cpu > 0.02), "{line}");
    assert_eq!((fields[5], fields[7]), ("100.00", "CPUs used"), "{line}");
}

#[test]
fn a_series_ends_at_a_signal_with_the_runs_it_has() {
    if !is_root("stat") {
        return;
    }
    // Its parent measures, and that one's parent repeats.
    let script =
        "echo run; kill -INT $(awk '/^PPid:/ {print $2}' /proc/$PPID/status); exec sleep 30";
    let ended = perjoule(&["stat", "-r", "50", "--json", "--", "sh", "-c", script]);
    assert_eq!(ended.out.matches("run\n").count(), 1, "{ended:?}");
    assert_eq!(ended.json()["repeats"], 1, "{ended:?}");
}
