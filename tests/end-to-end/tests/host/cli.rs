//! What a user of `perjoule stat` sees.

use end_to_end::agent::perjoule;
use end_to_end::is_root;

use crate::machine;

/// Copies single bytes: one read and one write each.
const COPIES: [&str; 6] = [
    "dd",
    "if=/dev/zero",
    "of=/dev/null",
    "bs=1",
    "count=64000",
    "status=none",
];

#[test]
fn stat_shows_calls_and_their_times_faults_and_named_events() {
    if !is_root("stat_shows_calls_and_their_times_faults_and_named_events") {
        return;
    }
    let _machine = machine();
    for (mode, timed) in [("exact", 64_000..64_100), ("sampled", 800..1_200)] {
        let mut arguments = vec!["stat", "--json", "--syscalls", mode, "--faults"];
        arguments.extend(["--event", "sched:sched_process_exit", "--"]);
        arguments.extend(COPIES);
        let ended = perjoule(&arguments);
        assert!(ended.status.success(), "{ended:?}");
        let report = ended.json();
        let host = &report["services"][0]["host"];
        for class in ["read", "write"] {
            let calls = &host["syscalls"][class];
            let number = |key: &str| calls[key].as_u64().expect("a number");
            // Beside the copies: the dynamic loader's few.
            assert!((64_000..64_100).contains(&number("calls")), "{host}");
            assert!(timed.contains(&number("timed")), "{mode}: {host}");
            let seconds = |key: &str| calls[key].as_f64().expect("seconds");
            assert!(seconds("time_s") > 0.0 && seconds("p99_s") < 0.1, "{host}");
        }
        let minor = host["page_faults"]["minor"].as_u64().expect("faults");
        assert!((20..5_000).contains(&minor), "{host}");
        assert_eq!(host["tracepoints"]["sched:sched_process_exit"], 1, "{host}");
    }
    let mut arguments = vec!["stat", "--syscalls", "--"];
    arguments.extend(COPIES);
    let table = perjoule(&arguments).out;
    for words in ["read calls", "write calls", "p99"] {
        assert!(table.contains(words), "no {words} in {table}");
    }
    assert!(!table.contains("page faults"), "{table}");
}

#[test]
fn a_tracepoint_that_is_not_there_is_one_line_and_nothing_runs() {
    if !is_root("a_tracepoint_that_is_not_there_is_one_line_and_nothing_runs") {
        return;
    }
    let _machine = machine();
    let wrong = [
        "stat",
        "--event",
        "sched:sched_migrat_task",
        "--",
        "echo",
        "ran",
    ];
    let ended = perjoule(&wrong);
    assert!(!ended.status.success(), "{ended:?}");
    assert!(ended.log.contains("sched_migrate_task"), "{ended:?}");
    assert!(!ended.out.contains("ran"), "{ended:?}");
    let ended = perjoule(&["stat", "--event", "sched_migrate_task", "--", "true"]);
    assert!(!ended.status.success(), "{ended:?}");
    assert!(ended.log.contains("category:name"), "{ended:?}");
}
