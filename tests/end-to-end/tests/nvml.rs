//! GPUs as users meet them: what is shown beside energy, calls that hang, boards that come later.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root};

const SECOND: Duration = Duration::from_secs(1);

/// All series of a scrape, which must not have to wait.
fn scrape(agent: &Agent) -> HashMap<String, f64> {
    let begun = Instant::now();
    let answer = http::get(agent.port(), "/metrics");
    let took = begun.elapsed();
    assert!(took < SECOND / 2, "a scrape waited for {took:?}");
    http::body(&answer)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

fn wait_for(agent: &Agent, limit: Duration, is: impl Fn(&HashMap<String, f64>) -> bool) {
    let begun = Instant::now();
    loop {
        let seen = scrape(agent);
        if is(&seen) {
            return;
        }
        assert!(begun.elapsed() < limit, "{}\n{seen:#?}", agent.log());
        sleep(SECOND / 5);
    }
}

#[test]
fn a_call_that_hangs_shows_as_a_source_that_is_down_while_energy_goes_on_and_the_end_is_quick() {
    if !is_root("a driver that hangs") {
        return;
    }
    let stack = Stack::start_with_scenario(
        "[[device]]\nuuid = \"GPU-a\"\ntemperature_c = 55\n\
         [[device.throttle]]\nreasons = 4\nfrom_s = 0\n\
         [[fault]]\ncall = \"nvmlDeviceGetMemoryInfo_v2\"\nhangs = true\nfrom_s = 8\n",
    );
    let mut agent = Agent::start_with(stack.perjoule(), &[]);
    let up = "perjoule_source_up{source=\"nvml-telemetry\"}";
    let temperature = "perjoule_gpu_temperature_celsius{device=\"GPU-a\"}";
    let throttled = "perjoule_gpu_throttle_seconds_total{device=\"GPU-a\",reason=\"sw_power_cap\"}";
    wait_for(&agent, 6 * SECOND, |seen| {
        seen.get(up) == Some(&1.0)
            && seen.get(temperature) == Some(&55.0)
            && seen.get(throttled).is_some_and(|seconds| *seconds > 0.5)
            && seen.contains_key("perjoule_gpu_power_limit_watts{device=\"GPU-a\",limit=\"max\"}")
            && seen.contains_key(
                "perjoule_source_call_latency_seconds{source=\"nvml-telemetry\",percentile=\"99\"}",
            )
    });
    wait_for(&agent, 20 * SECOND, |seen| seen.get(up) == Some(&0.0));
    let before = scrape(&agent);
    assert!(!before.contains_key(temperature), "an old reading is none");
    assert!(before.contains_key(throttled), "a counter stays");
    assert_eq!(before["perjoule_source_up{source=\"nvml\"}"], 1.0);
    let energy =
        "perjoule_meter_energy_joules_total{component=\"gpu\",device=\"GPU-a\",source=\"counter\"}";
    wait_for(&agent, 10 * SECOND, |seen| {
        seen[energy] > before[energy] + 100.0
    });
    let after = scrape(&agent);
    assert_eq!(after["perjoule_ledger_residual_joules"], 0.0);
    let took = agent.end_with(libc::SIGTERM);
    assert!(took < 2 * SECOND, "{took:?}");
    let log = agent.log();
    assert!(log.contains("nvml-telemetry thread hangs"), "{log}");
}

#[test]
fn a_board_that_comes_later_is_metered_and_one_that_is_lost_leaves_the_rest_alone() {
    if !is_root("boards that come and go") {
        return;
    }
    let stack = Stack::start_with_scenario(
        "[[device]]\nuuid = \"GPU-a\"\n[[device]]\nuuid = \"GPU-late\"\nappears_at_s = 5\n\
         [[device.xid]]\nat_s = 18\ncode = 79\n\
         [[fault]]\ncall = \"*\"\ndevice = 1\nanswer = \"gpu_is_lost\"\nfrom_s = 18\n",
    );
    let mut agent = Agent::start_with(stack.perjoule(), &[]);
    let energy = |device: &str| {
        format!(
            "perjoule_meter_energy_joules_total{{component=\"gpu\",device=\"{device}\",source=\"counter\"}}"
        )
    };
    let late = energy("GPU-late");
    assert!(!scrape(&agent).contains_key(&late));
    wait_for(&agent, 16 * SECOND, |seen| {
        seen.get(&late).is_some_and(|joules| *joules > 100.0)
    });
    let xid = "perjoule_gpu_xid_errors_total{device=\"GPU-late\",xid=\"79\"}";
    wait_for(&agent, 16 * SECOND, |seen| seen.get(xid) == Some(&1.0));
    sleep(4 * SECOND);
    let before = scrape(&agent);
    let other = energy("GPU-a");
    wait_for(&agent, 10 * SECOND, |seen| {
        seen[&other] > before[&other] + 100.0
    });
    let after = scrape(&agent);
    assert_eq!(after[&late], before[&late], "no sum falls, none is made up");
    let power = "perjoule_gpu_power_watts{device=\"GPU-late\"}";
    assert!(!after.contains_key(power), "an old reading is none");
    assert_eq!(after["perjoule_ledger_residual_joules"], 0.0);
    agent.end_with(libc::SIGTERM);
}
