//! What goes wrong with a GPU under load: it shows, nothing is made up, nothing that was told is
//! taken back, and when it is over energy is booked again without a restart.
//!
//! One stack serves; several agents look at the same GPU, each through a scenario in which another
//! fault strikes. Root.

#[path = "faults/story.rs"]
mod story;

use std::thread;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::is_root;
use end_to_end::stack::Stack;

use story::{
    AGE, BEGINS_S, GAP_ENERGY, LIMIT_WATTS, METER, POWER, REFUSED, SERVING_WATTS, SLOWEST, Scrape,
    Story, UP,
};

/// What goes wrong.
struct Fault {
    name: &'static str,
    /// In the scenario's words: what follows the board's own table.
    lines: &'static str,
}

/// Lets every fault strike an agent of its own, under one load, until `ends_s` after the stack's
/// start.
fn strike(faults: &[Fault], ends_s: u64) -> Vec<Story> {
    let device = format!("[[device]]\nuuid = \"GPU-a\"\nmax_limit_watts = {LIMIT_WATTS}\n");
    let stack = Stack::start_with_scenario(&device);
    let began = Instant::now();
    let stories = thread::scope(|scope| {
        let watched: Vec<_> = faults
            .iter()
            .map(|fault| {
                let lines = format!("{device}{}", fault.lines);
                let mut command = stack.perjoule_seeing(fault.name, &lines);
                command.env("PERJOULE_ENGINE_METRICS", "off");
                scope.spawn(move || {
                    let agent = Agent::start_with(command, &[]);
                    Story::watch(fault.name, agent, began, ends_s)
                })
            })
            .collect();
        // An idle GPU first, and then work until the end.
        thread::sleep(Duration::from_secs(4));
        let seconds = ends_s - began.elapsed().as_secs();
        let load = format!("--rate 3 --seconds {seconds} --median-out 60 --sigma-out 0.5");
        let mut load = stack.load_of(&load);
        let stories: Vec<Story> = watched
            .into_iter()
            .map(|watched| watched.join().expect("a story"))
            .collect();
        // What it has not sent yet is of no use.
        let _ = load.kill();
        let _ = load.wait();
        stories
    });
    stories
        .into_iter()
        .map(|mut story| {
            story.agent.end_with(libc::SIGTERM);
            story
        })
        .collect()
}

#[test]
fn a_counter_that_is_reset_or_jumps_or_ends_costs_its_own_tick_and_nothing_else() {
    if !is_root("faults of a counter") {
        return;
    }
    let begins = BEGINS_S as f64;
    let stories = strike(
        &[
            Fault {
                name: "reset",
                lines: "[faults]\nreset_at_s = 9\n",
            },
            Fault {
                name: "jump-up",
                lines: "[[device.jump]]\nat_s = 9\njoules = 1e9\n",
            },
            Fault {
                name: "jump-down",
                lines: "[[device.jump]]\nat_s = 9\njoules = -200\n",
            },
            Fault {
                name: "unsupported",
                lines: "[[fault]]\ncall = \"field:83\"\nanswer = \"not_supported\"\nfrom_s = 9\n",
            },
        ],
        18,
    );
    for story in &stories {
        story.assert_honest();
        let refused = story.scrapes.last().and_then(|scrape| scrape.get(REFUSED));
        let expected = if story.name == "jump-up" { 1.0 } else { 0.0 };
        assert_eq!(refused, Some(expected), "{}", story.name);
        if story.name == "unsupported" {
            continue;
        }
        let gap = story.gap_seconds();
        assert!((0.05..1.0).contains(&gap), "{}: {gap} s", story.name);
        story.assert_recovers(begins);
    }
    // Without its counter the board is not measured any more, and that shows to the end.
    let unsupported = &stories[3];
    unsupported.assert_down(begins + 0.5, begins + 3.0);
    let since = (begins + 3.5, f64::INFINITY);
    assert_eq!(unsupported.growth(METER, since.0, since.1), 0.0, "made up");
    assert!(unsupported.growth(AGE, since.0, since.1) > 3.0);
    let requests = unsupported.agent.rows(
        "SELECT gpu_uj, start_ns, end_ns FROM requests WHERE route <> 'health' AND start_ns > (
            SELECT max(to_ns) FROM intervals JOIN meters USING (meter) WHERE device = 'GPU-a')",
    );
    assert!(requests.len() > 5, "{requests:?}");
    assert!(
        requests.iter().all(|request| request["gpu_uj"].is_null()),
        "unknown is not 0: {requests:?}"
    );
    let last = unsupported.scrapes.last().expect("scrapes");
    assert_eq!((last.get(UP), last.get(POWER)), (Some(0.0), None));
}

#[test]
fn a_board_or_driver_that_does_not_answer_shows_as_down_and_is_metered_again_when_it_does() {
    if !is_root("faults of a driver") {
        return;
    }
    let begins = BEGINS_S as f64;
    let stories = strike(
        &[
            Fault {
                name: "lost",
                lines: "[faults]\nlost_at_s = 9\nback_at_s = 13\n",
            },
            Fault {
                name: "slow",
                lines: "[[fault]]\ncall = \"*\"\ndelay_ms = 30\nfrom_s = 9\nuntil_s = 15\n",
            },
            Fault {
                name: "hung",
                lines: "[[fault]]\ncall = \"*\"\nhangs = true\nfrom_s = 9\nuntil_s = 16\n",
            },
            Fault {
                name: "reload",
                lines: "[faults]\nreset_at_s = 11\n\
                        [[fault]]\ncall = \"*\"\nanswer = \"uninitialized\"\nfrom_s = 9\nuntil_s = 13\n\
                        [[fault]]\ncall = \"nvmlInit_v2\"\nanswer = \"driver_not_loaded\"\nfrom_s = 9\nuntil_s = 13\n",
            },
        ],
        24,
    );
    for story in &stories {
        story.assert_honest();
    }
    let [lost, slow, hung, reload] = &stories[..] else {
        panic!("four faults");
    };
    for story in [lost, reload] {
        story.assert_down(begins + 0.5, begins + 4.0);
        // The counter began anew while nobody could look.
        let gap = story.gap_seconds();
        assert!((3.5..8.0).contains(&gap), "{}: {gap} s", story.name);
        story.assert_recovers(13.0);
    }

    // It cannot say so itself: its latest answer grows old. The counter ran on.
    hung.assert_down(15.0, 16.5);
    assert!(hung.growth(AGE, begins + 1.0, 15.5) > 5.0);
    assert_eq!(hung.growth(METER, begins + 3.0, 15.5), 0.0, "made up");
    let energy = hung.growth(GAP_ENERGY, begins, f64::INFINITY);
    assert!(
        SERVING_WATTS.contains(&(energy / 7.0)),
        "{energy} J while it hung"
    );
    hung.assert_recovers(16.0);

    let up = |scrape: &Scrape| scrape.get(UP) == Some(1.0);
    assert!(slow.between(begins, 24.0).all(up), "slow is not down");
    assert!(
        slow.between(begins + 3.0, 15.0)
            .any(|s| s.get(SLOWEST).is_some_and(|p99| p99 > 0.025))
    );
    assert_eq!(slow.gap_seconds(), 0.0);
    let watts = slow.growth(METER, begins + 0.5, 15.0) / 5.5;
    assert!(
        SERVING_WATTS.contains(&watts),
        "{watts} W while calls were slow"
    );
    slow.assert_recovers(15.0);
}
