//! A GPU that waits because its engine does not get a CPU: found, and as long as the engine truly
//! waited. Root, real kernel, simulated GPU.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root};

/// The idle floor, and then the power of a GPU that is fed, are learned in it.
const LEARNING: Duration = Duration::from_secs(8);
const HOGGED: Duration = Duration::from_secs(12);
/// Intervals close and are published.
const SETTLE: Duration = Duration::from_secs(3);

/// Keep one CPU busy; end with this value.
struct Hogs(Vec<Child>);

impl Hogs {
    fn on(cpu: usize, count: usize) -> Self {
        let hog = |_| {
            let child = Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .stdin(Stdio::null())
                .spawn()
                .expect("sh");
            pin(child.id(), cpu);
            child
        };
        Self((0..count).map(hog).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

fn pin(tid: u32, cpu: usize) {
    // SAFETY: a cpu_set_t is plain bits, for which zero is valid; the set has the size that is told.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(tid as i32, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

/// The process that holds the stack's GPU: it has the state file mapped and is no front.
fn engine_of(stack: &Stack) -> u32 {
    let state = stack.gpu_state().display().to_string();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let maps = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("inference-sim")
            && fs::read_to_string(format!("/proc/{pid}/maps"))
                .is_ok_and(|maps| maps.contains(&state))
    };
    let found: Vec<u32> = pids.filter(maps).collect();
    assert_eq!(found.len(), 1, "one engine: {found:?}");
    found[0]
}

/// Seconds that the engine's thread waited for a CPU, as the kernel counts them.
fn waited(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).expect("schedstat");
    let delay = text.split_whitespace().nth(1).expect("a run delay");
    delay.parse::<f64>().expect("a number") * 1e-9
}

fn starved(agent: &Agent) -> BTreeMap<String, f64> {
    let answer = http::get(agent.port(), "/metrics");
    let lines = http::body(&answer).lines();
    lines
        .filter_map(|line| {
            let rest = line.strip_prefix("perjoule_gpu_starved_seconds_total{")?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let (_, reason) = labels.split_once("reason=\"")?;
            let reason = reason.split('"').next()?;
            Some((reason.to_owned(), value.parse().ok()?))
        })
        .collect()
}

#[test]
fn a_gpu_starves_for_as_long_as_its_engine_waits_for_a_cpu() {
    if !is_root("starvation") {
        return;
    }
    let stack = Stack::start();
    let mut agent = Agent::start_with(stack.perjoule(), &[]);
    sleep(Duration::from_secs(3));
    // Short prompts: a prefill draws more than the base, and hides a wait beside it.
    let mut load = stack.load_of(
        "--rate 2 --seconds 26 --median-in 40 --sigma-in 0.3 --median-out 400 --sigma-out 0.3",
    );
    sleep(LEARNING);
    let engine = engine_of(&stack);
    let quiet = starved(&agent);
    println!("before: {quiet:?}, waited {:.3} s", waited(engine));
    // The load, the front and the agent have the other CPUs.
    pin(engine, 0);
    // As a batch job beside it that somebody has started with too high a priority: else the
    // scheduler serves a thread that sleeps most of the time nearly at once.
    // SAFETY: no memory is passed.
    let lowered = unsafe { libc::setpriority(libc::PRIO_PROCESS, engine, 19) };
    assert_eq!(lowered, 0);
    let before = waited(engine);
    let hogs = Hogs::on(0, 4);
    sleep(HOGGED);
    drop(hogs);
    let truth = waited(engine) - before;
    sleep(SETTLE);
    let after = starved(&agent);
    let reason = |of: &BTreeMap<String, f64>| of.get("run_queue").copied().unwrap_or(0.0);
    let told = reason(&after) - reason(&quiet);
    println!("after: {after:?}; {told:.3} s told, {truth:.3} s waited");
    let _ = load.kill();
    let _ = load.wait();
    agent.end_with(libc::SIGTERM);
    assert!(truth > 3.0, "the hogs hold it up: {truth}");
    assert!(
        (told / truth - 1.0).abs() <= 0.10,
        "{told} told, {truth} true"
    );
    assert!(reason(&quiet) < 0.5, "{quiet:?}");
}
