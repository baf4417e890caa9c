//! The same expressions over the whole agent beside two simulated services on eight GPUs.

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root};

use crate::{expressions, rules, rules_record_series, shipped, substituted};
use end_to_end::engine::Engine;

/// Families of which this machine and this load have nothing to tell.
const ABSENT: &[&str] = &[
    // `--cuda`, and a server with a libcuda.
    "perjoule_cuda_",
    // `--pmc`, and performance counters.
    "perjoule_cpu_instructions_total",
    // A sensor of the whole machine.
    "perjoule_node_power_watts",
    // A board that has reported an error.
    "perjoule_gpu_xid_errors_total",
    // A server that waits for its disk.
    "perjoule_disk_wait_seconds",
];

struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_expression_answers_over_the_agent_itself() {
    if !is_root("dashboards over the agent itself") {
        return;
    }
    let boards = "[[device]]\ngpm = true\n".repeat(8);
    let stack = Stack::start_on(&[0, 1, 2, 3], &boards);
    let other = stack.start_beside(&["--devices", "4,5,6,7"]);
    let agent = Agent::start_with(
        stack.perjoule(),
        &["--syscalls", "exact", "--faults", "--cpu-budget", "none"],
    );
    let address = format!("127.0.0.1:{}", agent.port()).parse().unwrap();
    let engine = Engine::prometheus(&[address], &rules());
    let _loads = [
        stack.load_of("--rate 4 --seconds 120 --abort-share 0.3"),
        other.load(2.0, 120),
    ]
    .map(Load);
    let mut asked = Vec::new();
    for (_, dashboard) in shipped() {
        for (title, expr) in expressions(&dashboard) {
            asked.push((title, substituted(&expr, &[])));
        }
    }
    let started = Instant::now();
    let silent = loop {
        // One that fails.
        http::get(stack.port(), "/v1/nothing");
        let answers = asked.iter().filter_map(|(title, expr)| {
            let series = engine.query(expr).unwrap();
            let fine = !series.is_empty() && series.iter().all(|(_, value)| value.is_finite());
            (!fine).then(|| format!("{title}: {series:?}: {expr}"))
        });
        let silent: Vec<String> = answers
            .filter(|told| !ABSENT.iter().any(|family| told.contains(family)))
            .collect();
        if silent.is_empty() || started.elapsed() > Duration::from_secs(60) {
            break silent;
        }
        thread::sleep(Duration::from_secs(1));
    };
    assert!(silent.is_empty(), "{}\n{}", silent.join("\n"), agent.log());
    rules_record_series(&engine);
}
