//! What the agent makes of it: its metrics, its table, and the guard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use end_to_end::agent::{Agent, perjoule};
use end_to_end::http::get;

use crate::alone;
use crate::programs::{Built, Program};

fn until(agent: &Agent, said: &str) {
    let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(20));
    while !agent.log().contains(said) {
        assert!(Instant::now() < give_up, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The value of the one series that begins so.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(series));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("{series}: {text}"))
}

#[test]
fn with_the_switch_launches_and_waits_are_metrics_and_without_it_nothing_is_attached() {
    let _alone = alone();
    if !end_to_end::is_root("CUDA on and off") {
        return;
    }
    let Some(built) = Built::get() else { return };
    let mut program = Program::start(built);
    program.load();
    let pid = program.pid().to_string();
    let mut agent = Agent::start(&["--pid", &pid]);
    program.call("cuLaunchKernel", 1, 50);
    std::thread::sleep(Duration::from_millis(1_500));
    let text = get(agent.port(), "/metrics");
    assert!(text.contains("perjoule_probe_up"), "{text}");
    for absent in ["perjoule_cuda", "program=\"cuda", "reason=\"cuda"] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
    agent.end_with(libc::SIGTERM);

    let mut agent = Agent::start(&["--pid", &pid, "--cuda"]);
    until(&agent, "CUDA launches are counted");
    // Few: where CPUs are emulated a stop takes so long that the guard would act.
    program.call("cuLaunchKernel", 1, 120);
    program.call("cuGraphLaunch", 1, 34);
    let waited = program.call("cuStreamSynchronize", 50_000_000, 6);
    std::thread::sleep(Duration::from_millis(2_500));
    let text = get(agent.port(), "/metrics");
    for (kind, count) in [("kernel", 120.0), ("graph", 34.0)] {
        let of_kind = |line: &&str| line.contains(&format!("kind=\"{kind}\""));
        let lines = text
            .lines()
            .filter(|line| line.starts_with("perjoule_cuda_launches_total{"));
        let line = lines
            .clone()
            .find(of_kind)
            .unwrap_or_else(|| panic!("{text}"));
        assert_eq!(
            line.rsplit(' ').next(),
            Some(count.to_string().as_str()),
            "{line}"
        );
    }
    assert_eq!(value(&text, "perjoule_cuda_sync_total{"), 6.0);
    let seen = value(&text, "perjoule_cuda_sync_seconds_total{");
    let waited = waited.as_secs_f64();
    assert!(
        seen <= waited && seen >= 0.95 * waited,
        "{seen} of {waited} s"
    );
    let up = "perjoule_probe_up{program=\"cuda_launch\",tier=\"uprobe\"} 1";
    assert!(text.contains(up), "{text}");
    agent.end_with(libc::SIGTERM);
}

#[test]
fn the_table_shows_launches_by_the_second_and_time_in_waits() {
    let _alone = alone();
    if !end_to_end::is_root("CUDA in stat") {
        return;
    }
    let Some(built) = Built::get() else { return };
    let mut program = Program::start(built);
    program.load();
    let pid = program.pid().to_string();
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let calls = std::thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            program.call("cuLaunchKernel", 1, 5);
            program.call("cuStreamSynchronize", 300_000_000, 1);
        }
        program
    });
    let ended = perjoule(&["stat", "--cuda", "--json", "--duration", "3", "--pid", &pid]);
    over.store(true, Ordering::Relaxed);
    let cuda = &ended.json()["services"][0]["cuda"];
    // It waits nearly all the time, and launches five kernels a wait.
    let watched = cuda["watched_s"].as_f64().expect("it was counted");
    assert!(watched > 1.0, "{cuda}");
    let waited = cuda["sync_s"].as_f64().expect("it waited");
    assert!(waited <= watched + 0.4 && waited > 0.5 * watched, "{cuda}");
    let syncs = cuda["syncs"].as_u64().expect("counted");
    let launches = cuda["kernel_launches"].as_u64().expect("counted");
    assert!(launches.abs_diff(5 * syncs) <= 10, "{cuda}");
    assert_eq!(cuda["graph_launches"], 0);
    // Where CPUs are emulated a stop takes so long that the guard may act, and says so.
    if end_to_end::slowness() == 1 {
        assert_eq!(cuda["complete"], true);
    }
    drop(calls.join().expect("no panic"));
}

#[test]
fn probes_that_cost_more_than_they_may_are_taken_off() {
    let _alone = alone();
    if !end_to_end::is_root("the CUDA guard") {
        return;
    }
    let Some(built) = Built::get() else { return };
    let mut program = Program::start(built);
    program.load();
    let pid = program.pid().to_string();
    let mut agent = Agent::start(&["--pid", &pid, "--cuda"]);
    until(&agent, "CUDA launches are counted");
    program.tell("cuLaunchKernel", 1, -1);
    until(&agent, "CUDA launches are no longer counted");
    let log = agent.log();
    assert!(log.contains("1 % is the most"), "{log}");
    std::thread::sleep(Duration::from_millis(1_200));
    let text = get(agent.port(), "/metrics");
    for program in ["cuda_launch", "cuda_sync", "cuda_sync_return"] {
        let down = format!("perjoule_probe_up{{program=\"{program}\",tier=\"uprobe\"}} 0");
        assert!(text.contains(&down), "{text}");
    }
    let runs = || {
        let text = get(agent.port(), "/metrics");
        value(&text, "perjoule_probe_runs_total{program=\"cuda_launch\"")
    };
    let before = runs();
    assert!(before > 1_000.0);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(runs(), before, "nothing runs any more");
    agent.end_with(libc::SIGTERM);
}
