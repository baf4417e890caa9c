//! Boards that are split into instances (MIG), what their parts do (GPM), and MPS.

use std::process::{Child, Command};
use std::time::Duration;

use gpu_state::{Process, ProcessSlot, Segment, boottime_ns};
use profiler::ledger::{Busy, Event, Shares};
use profiler::meters::{GpuProcess, News};

use crate::driver::{Driver, Source, readings};

const SECOND: Duration = Duration::from_secs(1);
const SPLIT: &str = "tick_ms = 20\n[[device]]\nuuid = \"GPU-a\"\nmig = true\ngpm = true\n";
/// Two instances, of one slice and of three, each with an engine.
const INSTANCES: &str = "[[device.instance]]\nid = 7\nuuid = \"MIG-x\"\nengines = [0]\n\
                         [[device.instance]]\nid = 2\nslices = 3\nengines = [1]\n";

/// What was told of the instances, in order: id, slices, activity.
fn told(news: &[News]) -> Vec<Vec<(u32, u32, Option<f64>)>> {
    let of = |news: &News| match news {
        News::Event(Event::Shares(Shares {
            busy: Busy::Instances { from, instances },
            at,
            ..
        })) => {
            assert!(instances.iter().all(|of| of.activity.is_none()) || from < at);
            let told = instances.iter().map(|of| (of.id, of.slices, of.activity));
            Some(told.collect())
        }
        _ => None,
    };
    news.iter().filter_map(of).collect()
}

fn holders(source: &Source) -> Vec<GpuProcess> {
    let of = |news: &News| match news {
        News::Processes(told) => Some(told.processes.clone()),
        _ => None,
    };
    source.news.iter().rev().find_map(of).expect("holders")
}

fn hold(driver: &Driver, engine: usize, pid: u32) -> ProcessSlot {
    let process = Process {
        pid,
        memory_bytes: 1 << 30,
    };
    driver.state.open_context(engine, process).expect("room")
}

/// An engine decodes for half of the time, from now on.
fn decode_half_of_the_time(driver: &Driver, engine: usize) {
    let mut writer = driver.state.writer(engine).expect("a writer");
    let begin = boottime_ns() + 1_000_000;
    for step in 0..500 {
        let start_ns = begin + step * 20_000_000;
        let segment = Segment {
            start_ns,
            end_ns: start_ns + 10_000_000,
            energy_uj: 2_000_000,
        };
        writer.publish(segment).expect("in order");
    }
}

#[test]
fn instances_are_told_with_what_each_did_and_processes_with_where_they_are() {
    let driver = Driver::play(&format!("{SPLIT}{INSTANCES}"));
    let me = std::process::id();
    let _context = hold(&driver, 1, me);
    decode_half_of_the_time(&driver, 1);
    let mut source = driver.start();
    source.listen_for(4 * SECOND);
    assert_eq!(source.meters.len(), 1, "an instance has no meter");
    let all = told(&source.news);
    assert_eq!(
        all[0],
        [(7, 1, None), (2, 3, None)],
        "one sample says nothing"
    );
    assert!((3..=5).contains(&all.len()), "{all:?}");
    for told in &all[2..] {
        assert_eq!(told[0], (7, 1, Some(0.0)));
        let (_, _, activity) = told[1];
        // Half of the time: multiprocessors, a tenth of the tensor cores, 0.8 of the memory.
        let expected = 0.5 * (1.0 + 0.1 + 0.8) / 3.0;
        let activity = activity.expect("told");
        assert!((activity - expected).abs() < 0.02, "{activity}");
    }
    let on = GpuProcess {
        pid: me,
        instance: Some(2),
    };
    assert_eq!(holders(&source), [on]);
    let seen = source.telemetry("GPU-a").expect("a look");
    assert_eq!(seen.activity, None, "of its parts alone");
    let uuids: Vec<&str> = seen.instances.iter().map(|of| of.uuid.as_str()).collect();
    assert_eq!(uuids[0], "MIG-x");
    assert!(uuids[1].starts_with("MIG-"), "{uuids:?}");
    // Samples are given back.
    let [made, freed] = ["nvmlGpmSampleAlloc", "nvmlGpmSampleFree"].map(|call| driver.calls(call));
    assert!(made >= 6 && made - freed <= 2, "{made} {freed}");
    source.end();
}

#[test]
fn a_board_that_is_joined_again_has_no_instances_and_shows_what_its_parts_do() {
    let driver = Driver::play(&format!("{SPLIT}mig_changes_at_s = 2.5\n{INSTANCES}"));
    let mut source = driver.start();
    source.listen_for(5 * SECOND);
    let all = told(&source.news);
    assert_eq!(all.first().map(Vec::len), Some(2));
    assert_eq!(
        all.iter().filter(|told| told.is_empty()).count(),
        1,
        "told once"
    );
    assert_eq!(all.last().map(Vec::len), Some(0));
    let whole = source.telemetry("GPU-a").expect("a look");
    assert!(whole.instances.is_empty());
    assert_eq!(
        whole.activity.and_then(|parts| parts.sm).map(|sm| sm.0),
        Some(0.0)
    );
    source.end();
}

#[test]
fn a_board_that_is_split_while_it_is_watched_tells_its_instances() {
    let driver = Driver::play(
        &format!("{SPLIT}mig_changes_at_s = 2.5\n{INSTANCES}").replace("mig = true", "mig = false"),
    );
    let mut source = driver.start();
    source.listen_for(5 * SECOND);
    let all = told(&source.news);
    assert!(
        all.len() >= 2 && all.iter().all(|told| told.len() == 2),
        "{all:?}"
    );
    source.end();
}

#[test]
fn a_board_without_monitors_tells_its_instances_and_not_what_they_did() {
    let driver = Driver::play(&format!("{SPLIT}{INSTANCES}").replace("gpm = true\n", ""));
    let mut source = driver.start();
    source.listen_for(3 * SECOND);
    let all = told(&source.news);
    assert!(all.len() >= 2, "{all:?}");
    assert!(all.iter().all(|told| *told == [(7, 1, None), (2, 3, None)]));
    assert_eq!(driver.calls("nvmlGpmQueryDeviceSupport"), 1, "asked once");
    assert_eq!(driver.calls("nvmlGpmSampleAlloc"), 0);
    source.end();
}

#[test]
fn with_every_function_of_instances_and_monitors_unsupported_in_turn_all_else_goes_on() {
    let calls = nvml_sim::FUNCTIONS.iter().filter(|call| {
        call.contains("Gpm")
            || call.contains("Mig")
            || call.ends_with("GpuInstanceId")
            || call.contains("Attributes")
    });
    let mut tried = 0;
    for call in calls {
        for answer in ["not_supported", "unknown", "not_found"] {
            let driver = Driver::play(&format!(
                "{SPLIT}{INSTANCES}[[fault]]\ncall = \"{call}\"\nanswer = \"{answer}\"\n"
            ));
            let mut source = driver.start();
            let looked = source.listen(4 * SECOND, |news| {
                let looks = news
                    .iter()
                    .filter(|news| matches!(news, News::Telemetry(_)));
                readings(news, 0).len() >= 3 && looks.count() >= 2
            });
            assert!(looked, "{call} {answer}");
            let split = source.telemetry("GPU-a").expect("a look").modes.mig;
            let known = (*call != "nvmlDeviceGetMigMode").then_some(true);
            assert_eq!(split, known, "{call} {answer}");
            source.end();
            tried += 1;
        }
    }
    assert!(tried >= 39, "{tried}");
}

#[test]
fn a_driver_whose_samples_take_long_is_sampled_less_often() {
    let slow = "[[fault]]\ncall = \"nvmlGpmMigSampleGet\"\ndelay_ms = 15\n";
    let driver = Driver::play(&format!("{SPLIT}{INSTANCES}{slow}"));
    let mut source = driver.start();
    source.listen_for(5 * SECOND);
    // Two of 15 ms are 1 % of 3 s.
    let samples = driver.calls("nvmlGpmMigSampleGet");
    assert!((2..=4).contains(&samples), "{samples}");
    assert!(source.telemetry("GPU-a").is_some());
    source.end();
}

/// A process that calls itself as MPS's server does; the kernel keeps 15 bytes.
struct Server(Child);

impl Server {
    fn start() -> Self {
        let script = "printf nvidia-cuda-mps-server > /proc/self/comm; read wait";
        let mut server = Command::new("bash");
        let server = server
            .args(["-c", script])
            .stdin(std::process::Stdio::piped());
        Self(server.spawn().expect("a process"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn under_mps_the_clients_hold_the_board_and_their_server_does_not() {
    let driver = Driver::play("[[device]]\nuuid = \"GPU-a\"\n");
    let server = Server::start();
    std::thread::sleep(SECOND / 2);
    let me = std::process::id();
    let _contexts = (hold(&driver, 0, server.0.id()), hold(&driver, 0, me));
    let mut source = driver.start();
    source.listen_for(2 * SECOND + SECOND / 2);
    let on = GpuProcess {
        pid: me,
        instance: None,
    };
    assert_eq!(holders(&source), [on]);
    let busy = source.news.iter().filter_map(|news| match news {
        News::Utilization(told) => Some(told),
        _ => None,
    });
    for told in busy {
        assert!(told.processes.iter().all(|process| process.pid == me));
    }
    source.end();
}
