//! A load, its summary, the truth it leaves and the counter that measured it.

use std::process::Command;
use std::time::Duration;

use inference_sim::load::Summary;
use inference_sim::truth::Outcome;

use crate::running::{PROGRAM, Stack};

fn load(stack: &Stack, arguments: &str) -> Summary {
    let url = format!("http://{}", stack.address);
    let output = Command::new(PROGRAM)
        .args(["load", "--url", &url])
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn counter_mj(stack: &Stack, at_ns: u64) -> f64 {
    let scenario = stack.folder.path().join("scenario.toml");
    std::fs::write(&scenario, "gpu_state = \"gpu\"\n").unwrap();
    let output = Command::new(PROGRAM)
        .arg("counter")
        .arg("--scenario")
        .arg(scenario)
        .args(["--at", &at_ns.to_string(), "--device", "0"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn what_the_load_saw_is_what_the_engine_did_and_what_the_counter_measured() {
    let mut stack = Stack::start(&[]);
    std::thread::sleep(Duration::from_millis(200));
    let before_ns = gpu_state::boottime_ns();
    let arguments = "--rate 12 --seconds 3 --seed 5 --stream-share 0.7 --abort-share 0.3 \
                     --routes chat,completions --median-out 20 --median-in 300 --include-usage";
    let summary = load(&stack, arguments);
    assert_eq!(summary.failed, 0, "{:?}", summary.first_failure);
    assert_eq!(summary.sent, summary.completed + summary.aborted);
    assert!(summary.sent >= 20 && summary.aborted > 0 && summary.in_flight_max > 1);
    let records = stack.truth_of(summary.sent as usize);
    let done: Vec<_> = records
        .iter()
        .filter(|r| r.outcome == Outcome::Done)
        .collect();
    // A client that leaves at the very end may have left too late.
    assert!((summary.completed..=summary.sent).contains(&(done.len() as u64)));
    let seen = |key: &str| {
        records
            .iter()
            .filter(move |r| r.x_request_id.as_deref() == Some(key))
            .count()
    };
    assert!((0..summary.sent).all(|number| seen(&format!("load-5-{number}")) == 1));
    assert!(records.iter().map(|r| r.output_tokens).sum::<u64>() >= summary.tokens_out);

    assert!(stack.stop().success());
    let sum: u64 = stack.truth().iter().map(|record| record.energy_uj[0]).sum();
    assert_eq!(stack.published_uj(0), sum);
    // Wait for the last tick; then counter = idle + truth, but for its noise.
    std::thread::sleep(Duration::from_millis(300));
    let after_ns = gpu_state::boottime_ns();
    let tick = 100_000_000;
    let (first, last) = (before_ns / tick * tick, after_ns / tick * tick);
    let delta_j = (counter_mj(&stack, last) - counter_mj(&stack, first)) * 1e-3;
    let idle_j = 83.0 * (last - first) as f64 * 1e-9;
    let true_j = sum as f64 * 1e-6;
    assert!(
        (delta_j - idle_j - true_j).abs() < 4.0,
        "{delta_j} - {idle_j} is not {true_j}"
    );
}

#[test]
fn a_seed_sends_the_same_requests_again() {
    let sizes = || {
        let mut stack = Stack::start(&[]);
        let arguments = "--rate 10 --seconds 1.5 --seed 9 --median-out 5 --median-in 100";
        let summary = load(&stack, arguments);
        assert!(stack.stop().success());
        let mut sizes: Vec<_> = stack
            .truth()
            .into_iter()
            .map(|record| {
                (
                    record.x_request_id,
                    record.prompt_tokens,
                    record.output_tokens,
                )
            })
            .collect();
        sizes.sort();
        assert_eq!(sizes.len() as u64, summary.sent);
        assert!(sizes.len() > 5);
        sizes
    };
    assert_eq!(sizes(), sizes());
}

#[test]
fn a_load_against_nothing_or_of_nothing_says_so() {
    let output = Command::new(PROGRAM)
        .args(["load", "--url", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no server at 127.0.0.1:1"));
    let output = Command::new(PROGRAM)
        .args(["load", "--url", "http://127.0.0.1:1", "--rate=-1"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("--rate -1 makes no sense"));
}
