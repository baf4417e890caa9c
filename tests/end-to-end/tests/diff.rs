//! Two recordings of the same load, compared: what has changed is found, and nothing else is. Root, real kernel,
//! simulated GPU.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::{Agent, Ended, perjoule};
use end_to_end::is_root;
use end_to_end::stack::Stack;
use serde_json::Value;

/// How long the agent sees an idle GPU before the load.
const QUIET: Duration = Duration::from_millis(2_500);
/// Intervals wait up to 2 s for late facts.
const BOOKING: Duration = Duration::from_secs(5);
/// The same requests at the same times in every run: some 100. On a machine of two CPUs, engine included, each run
/// batches them a little differently.
const LOAD: &str = "--rate 5 --seconds 20 --median-out 110 --sigma-out 0.6";
/// All that the GPU draws is so much more.
const DEARER: &str = "gain = 1.2";

/// Records the load on a GPU of this scenario.
fn record(folder: &Path, name: &str, scenario: &str) -> PathBuf {
    let stack = Stack::start_with_scenario(scenario);
    let mut agent = Agent::start_with(stack.perjoule(), &[]);
    sleep(QUIET);
    let mut load = stack.load_of(LOAD);
    assert!(load.wait().expect("a load").success());
    let ended = Instant::now();
    let booked = |agent: &Agent| {
        let requests = agent.requests();
        requests
            .iter()
            .filter(|one| one["route"] != "health")
            .count()
    };
    while booked(&agent) < stack.served() && ended.elapsed() < BOOKING {
        sleep(Duration::from_millis(100));
    }
    agent.end_with(libc::SIGTERM);
    let kept = folder.join(name);
    std::fs::copy(agent.recording_path(), &kept).expect("a recording");
    kept
}

fn diff(a: &Path, b: &Path) -> Ended {
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    perjoule(&[
        "diff",
        &path(a),
        &path(b),
        "--format",
        "json",
        "--fail-if",
        "j_per_request>+5%",
    ])
}

/// What is said of J/request.
fn j_per_request(ended: &Ended) -> Value {
    let said: Value =
        serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let service = &said["services"][0];
    assert_eq!(service["load"], "same", "{said:#}");
    let mut figures = service["figures"].as_array().expect("figures").iter();
    let found = figures.find(|figure| figure["figure"] == "j_per_request");
    found.expect("J/request is judged").clone()
}

#[test]
fn a_request_that_costs_a_fifth_more_is_found_and_one_that_costs_the_same_is_not() {
    if !is_root("diff") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let before = record(folder.path(), "before.pj", "");
    let again = record(folder.path(), "again.pj", "");
    let dearer = record(folder.path(), "dearer.pj", DEARER);

    let equal = diff(&before, &again);
    let figure = j_per_request(&equal);
    assert_eq!(figure["verdict"], "not_shown", "{equal:?}");
    assert_eq!(equal.status.code(), Some(0), "{equal:?}");
    println!("two equal runs: {figure}");

    let changed = diff(&before, &dearer);
    let figure = j_per_request(&changed);
    assert_eq!(figure["verdict"], "higher", "{changed:?}");
    let bound = |name: &str| figure[name].as_f64().expect("a bound");
    assert!((0.15..0.25).contains(&bound("change")), "{changed:?}");
    assert!(bound("low") <= 0.2 && 0.2 <= bound("high"), "{changed:?}");
    assert_eq!(changed.status.code(), Some(1), "{changed:?}");
    assert!(changed.log.contains("j_per_request"), "{changed:?}");
    println!("one that costs 20 % more: {figure}");
}
