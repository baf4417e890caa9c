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
