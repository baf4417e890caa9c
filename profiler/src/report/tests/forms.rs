//! What each form shows.

use super::*;
use crate::durations::Durations;

/// All keys with their paths; an array's first element stands for all.
pub(super) fn keys(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let path = format!("{path}.{key}");
                found.push(path.clone());
                keys(inner, &path, found);
            }
        }
        Value::Array(items) => {
            if let Some(first) = items.first() {
                keys(first, &format!("{path}[]"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn json_has_exactly_the_keys_of_schema_1() {
    let json = with([request(10.0)])
        .report(FullEnergy::default())
        .to_json()
        .unwrap();
    assert!(!json.contains('\n'), "one compact line");
    let value: Value = serde_json::from_str(&json).unwrap();
    let mut found = Vec::new();
    keys(&value, "", &mut found);
    found.sort();
    let mut expected: Vec<String> = [
        "schema",
        "simulated",
        "duration_s",
        "idle_policy",
        "pue",
        "services",
        "meters",
        "ledger",
        "losses",
        "ledger.residual_microjoules",
        "losses.events",
        "losses.requests",
    ]
    .map(|key| format!(".{key}"))
    .to_vec();
    for key in [
        "service",
        "model",
        "requests",
        "requests.total",
        "requests.aborted",
        "requests.incomplete",
        "requests.health",
        "requests.by_code",
        "requests.by_code.2xx",
        "chunks",
        "tokens",
        "tokens.input",
        "tokens.output",
        "tokens.source",
        "tokens.calibrated",
        "tokens.by_source",
        "tokens.by_source.chunks",
        "tokens.by_source.chunks.requests",
        "tokens.by_source.chunks.input",
        "tokens.by_source.chunks.output",
        "ttft_s",
        "ttft_s.p50",
        "ttft_s.p99",
        "duration_s",
        "duration_s.p50",
        "duration_s.p99",
        "energy_j",
        "energy_j.gpu",
        "energy_j.cpu",
        "energy_j.dram",
        "energy_j.total",
        "energy_full_j",
        "j_per_request",
        "j_per_request.mean",
        "j_per_request.p50",
        "j_per_request.p95",
        "j_per_output_token",
        "j_per_token",
        "class",
        "error_ratio",
        "cpu_s",
        "run_queue_s",
        "cuda",
        "pmc",
        "run_queue_wait_s",
        "run_queue_wait_s.p50",
        "run_queue_wait_s.p99",
        "off_cpu_s",
        "switches",
        "migrations",
        "gpu_starved_s",
    ] {
        expected.push(format!(".services[].{key}"));
    }
    for key in [
        "component",
        "device",
        "source",
        "energy_j",
        "above_idle_j",
        "idle_w",
        "idle_source",
        "accounts_j",
    ] {
        expected.push(format!(".meters[].{key}"));
    }
    for account in Accounts::NAMES {
        expected.push(format!(".meters[].accounts_j.{account}"));
    }
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn json_reads_back_and_all_forms_show_the_same_figures() {
    let report = busy();
    let read: Report = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(read.to_table(), report.to_table());
    assert_eq!(read.to_markdown("x"), report.to_markdown("x"));
}

#[test]
fn what_is_unknown_is_null_and_never_zero() {
    let mut summary = Summary::new(false);
    summary.describe_service(ServiceId(0), "nginx", None);
    let mut plain = request(0.0);
    plain.gpu = None;
    plain.cpu = None;
    plain.errors = None;
    plain.request.streamed = false;
    plain.request.chunks = 0;
    summary.add(&Booked::Request(plain));
    let json: Value =
        serde_json::from_str(&summary.report(FullEnergy::default()).to_json().unwrap()).unwrap();
    assert_eq!(
        json["services"][0],
        json!({
            "service": "nginx",
            "model": null,
            "requests": {"total": 1, "aborted": 0, "incomplete": 0, "health": 0,
                "by_code": {"2xx": 1}},
            "chunks": 0,
            "tokens": {"input": null, "output": null, "source": null, "calibrated": null,
                "by_source": {}},
            "ttft_s": {"p50": null, "p99": null},
            "duration_s": {"p50": 2.0, "p99": 2.0},
            "energy_j": {"gpu": null, "cpu": null, "dram": null, "total": null},
            "energy_full_j": null,
            "j_per_request": {"mean": null, "p50": null, "p95": null},
            "j_per_output_token": null,
            "j_per_token": null,
            "class": null,
            "error_ratio": null,
            "cpu_s": null,
            "run_queue_s": null,
            "cuda": null,
            "pmc": null,
            "run_queue_wait_s": {"p50": null, "p99": null},
            "off_cpu_s": null,
            "switches": null,
            "migrations": null,
            "gpu_starved_s": null,
        })
    );
    assert_eq!(json["duration_s"], Value::Null);
    assert_eq!(json["losses"], json!({"events": null, "requests": null}));
}

fn busy() -> Report {
    let mut summary = with((1..=250).map(|joules| request(f64::from(joules))));
    let accounts = Accounts {
        idle: Microjoules(830_000_000),
        context: Microjoules(260_000_000),
        requests: Microjoules(31_375_000_000),
        unattributed: Microjoules(12_000_000),
        ..Accounts::default()
    };
    let all = share(0, 31_375_000_000, 0);
    summary.add(&held_by(1, interval(accounts, vec![all])));
    summary.add_cpu(&CpuTime {
        owner: Owner::Service(ServiceId(0)),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        package: 0,
        on_cpu: 12 * SECOND,
        cycles: None,
    });
    summary.set_losses(0, 2);
    summary.report(FullEnergy::default())
}

#[test]
fn the_table_is_aligned_and_says_what_is_not_supported() {
    let table = busy().to_table();
    let expected = "
 Energy over 10.00 s   SIMULATED GPU

 service vllm, model llama-3-8b

               250    requests                # 25.00 /s
                                              # 250 2xx
            25,000    output tokens           # 2,500 /s, from chunks
                                              # a chunk is taken for a token
            31,375 J  energy, active          # ± 4.0 %, class A
            31,375 J    gpu
                 0 J    cpu
   <not supported>      dram
            31,635 J  with overhead, context
             125.5 J  per request             # p50 125.4, p95 237.2
             1.255 J  per output token
            0.2500 s  to first token, p50     # p99 0.2500
             2.000 s  request duration, p50   # p99 2.000
             12.00 s  on CPU                  # 1.200 CPUs used
   <not supported>    in run queue

 meter gpu GPU-1 (counter)

            32,477 J  energy                  # 3,248 W, gross, from counter
            31,647 J  energy above idle
             830.0 J    idle                  # 2.6 %
             260.0 J    context               # 0.8 %
            31,375 J    requests              # 96.6 %
             12.00 J    unattributed          # 0.0 %

 meter cpu package-0 (counter)

     <not counted>    energy                  # gross, from counter
     <not counted>    energy above idle

                 0 µJ ledger residual
                 2    requests lost
                 0    events lost
";
    assert_eq!(table.trim_end(), expected.trim_end(), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn the_planners_summary_carries_the_same_figures_and_lets_no_name_become_markup() {
    let mut report = busy();
    let markdown = report.to_markdown("Energy report");
    for shown in [
        "# Energy report",
        "**Simulated:",
        "| vllm | 31,375 | not known | 4.0 % | A | 125.5 | 125.4 | 237.2 | 1.255 |",
        "| gpu GPU-1 | counter | 32,477 | 3,248 | 830.0 | 260.0 | 31,375 |",
    ] {
        assert!(markdown.contains(shown), "{shown}\n{markdown}");
    }
    assert!(!markdown.contains("<not supported>"), "reads as a tag");
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let lines: Vec<&str> = markdown.lines().collect();
    for pair in lines.windows(2) {
        if pair.iter().all(|line| line.starts_with('|')) {
            assert_eq!(columns(pair[0]), columns(pair[1]), "{pair:?}");
        }
    }
    report.services[0].service = "a|b<script>".to_owned();
    let markdown = report.to_markdown("x");
    assert!(markdown.contains("a\\|b&lt;script>"), "{markdown}");
}

#[test]
fn what_the_host_did_is_in_the_json_and_in_the_table_once_it_is_asked_for() {
    let mut summary = with([request(10.0)]);
    let mut timed = Durations {
        nanos: 2_000_000,
        ..Durations::default()
    };
    // Between 8.2 and 16.4 µs.
    timed.counts[7] = 100;
    summary.add_syscalls(ServiceId(0), "gpu_ioctl", 6_400, &timed);
    summary.add_syscalls(ServiceId(0), "poll", 0, &Durations::default());
    summary.add_page_faults(ServiceId(0), "minor", 12);
    summary.add_tracepoint(ServiceId(0), "sched:sched_migrate_task", 3);
    let report = summary.report(FullEnergy::default());
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    let host = &json["services"][0]["host"];
    let calls = &host["syscalls"]["gpu_ioctl"];
    assert_eq!(
        (&calls["calls"], &calls["timed"]),
        (&json!(6_400), &json!(100))
    );
    assert_eq!(calls["time_s"], 0.002);
    let p99 = calls["p99_s"].as_f64().unwrap();
    assert!((8.192e-6..=16.384e-6).contains(&p99), "{p99}");
    assert!(
        host["syscalls"].get("poll").is_none(),
        "never called: {host}"
    );
    assert_eq!(host["page_faults"], json!({"minor": 12}));
    assert_eq!(host["tracepoints"], json!({"sched:sched_migrate_task": 3}));
    let table = report.to_table();
    for words in [
        "6,400",
        "gpu_ioctl calls",
        "100 timed",
        "p99 16",
        "minor page faults",
        "sched:sched_migrate_task",
    ] {
        assert!(table.contains(words), "no {words} in {table}");
    }
}
