//! An agent without a kernel: services of a /proc that is written here, and what probes and meters
//! would tell of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc;

use super::*;
use crate::export::{Encoding, Format, SERIES_BUDGET};
use crate::ledger::{End, Input, Outcome, Reading, Request, RequestId, Source, TokenDelta, Usage};
use crate::meters::GpuProcess;
use crate::probes::requests::Client;
use crate::services::{Selection, Services};
use crate::units::{Microjoules, Watts};
use gpus::Registry;

const SECOND: u64 = 1_000_000_000;
/// Far from the beginning of the clock.
const START: u64 = 1_000_000 * SECOND;
/// Between two rounds, in each of which all containers are new.
const ROUND: u64 = 5 * SECOND;
/// Containers alive at once.
const ALIVE: u32 = 50;
const FIRST_PID: u32 = 100;
const FIRST_PORT: u16 = 8_000;

/// A machine whose containers live for one round, each with a server of one process.
struct Node {
    proc: tempfile::TempDir,
    services: Services,
    agent: Agent,
    meters: [MeterId; 2],
    gpus: BTreeMap<MeterId, Vec<GpuProcess>>,
    round: u32,
}

impl Node {
    fn new() -> Self {
        // In memory: a million files are read.
        let proc = tempfile::tempdir_in("/dev/shm").unwrap();
        for number in 0..ALIVE {
            write_process(proc.path(), number);
        }
        let selection = Selection {
            targets: Vec::new(),
            on_gpus: true,
        };
        let services = Services::new(selection, proc.path(), Path::new("/nonexistent"));
        let mut agent = agent();
        let meters = [Component::Gpu, Component::Cpu].map(|component| {
            let meter = Meter {
                component,
                device: format!("{component:?}-0"),
                source: Source::Counter,
                limit: None,
                tick: SECOND / 10,
                stale_after: 2 * ROUND,
                gain_error_ratio: 0.05,
                idle: Some(Watts(30.0)),
            };
            let mut registry = Registry {
                config: &agent.config,
                left: None,
                ledger: &mut agent.ledger,
                sinks: &mut agent.sinks,
                meters: &mut agent.meters,
                calibrated: &mut agent.calibrated,
            };
            registry.add(meter, None)
        });
        let on_gpu = (0..ALIVE).map(|number| GpuProcess {
            pid: FIRST_PID + number,
            instance: None,
        });
        Self {
            proc,
            services,
            agent,
            meters,
            gpus: BTreeMap::from([(meters[0], on_gpu.collect())]),
            round: 0,
        }
    }

    fn now(&self) -> u64 {
        START + u64::from(self.round) * ROUND
    }

    /// All containers are replaced; each of the new ones serves a request.
    fn round(&mut self) {
        self.round += 1;
        let now = self.now();
        for number in 0..ALIVE {
            let container = u64::from(self.round * ALIVE + number);
            put_into(self.proc.path(), number, container, now);
        }
        self.look();
        let services: Vec<(u32, ServiceId)> = (0..ALIVE)
            .map(|number| {
                let pid = FIRST_PID + number;
                (pid, self.services.service_of(pid).expect("a service"))
            })
            .collect();
        let mut early = Vec::new();
        let mut ended = Vec::new();
        for &(pid, service) in &services {
            early.push(seen(pid, service, now, false));
            ended.push(seen(pid, service, now, true));
            let times = CpuTime {
                owner: Owner::Service(service),
                from: Timestamp(now),
                to: Timestamp(now + SECOND),
                package: 0,
                on_cpu: 3_000_000,
                cycles: None,
            };
            self.agent.take_cpu([times], Timestamp(now));
            // Its engine counts tokens too, once.
            let delta = TokenDelta {
                service,
                from: Timestamp(now),
                to: Timestamp(now + SECOND),
                input: None,
                output: Some(100),
            };
            if pid % 2 == 0 {
                self.agent.sinks.count_tokens(&delta);
            }
        }
        for (observed, at) in [(early, SECOND / 2), (ended, SECOND)] {
            let until = Timestamp(now + at);
            self.agent.take_requests(&observed);
            self.agent.ledger.apply(Event::RequestsUntil(until));
            self.agent.book(until);
        }
        self.end_round();
    }

    /// Everything has ended.
    fn quiet_round(&mut self) {
        self.round += 1;
        for number in 0..ALIVE {
            let stat = self.process(number).join("stat");
            fs::write(stat, "").unwrap();
        }
        self.gpus.insert(self.meters[0], Vec::new());
        self.look();
        self.end_round();
    }

    fn process(&self, number: u32) -> std::path::PathBuf {
        self.proc.path().join((FIRST_PID + number).to_string())
    }

    fn look(&mut self) {
        let now = Timestamp(self.now());
        let update = watch::look(&mut self.services, &self.gpus, now).unwrap();
        self.agent.take_services(update, now);
    }

    fn end_round(&mut self) {
        for at in [self.now() + 2 * SECOND, self.now() + ROUND] {
            let until = Timestamp(at);
            let agent = &mut self.agent;
            agent.ledger.apply(Event::RequestsUntil(until));
            agent.take_cpu([], until);
            for meter in self.meters {
                agent.ledger.apply(Event::Reading(Reading {
                    meter,
                    after: until,
                    until,
                    // 100 W.
                    energy: Microjoules((at - START) / 10),
                }));
            }
            agent.book(until);
        }
    }

    /// As a scrape sees it: value by series.
    fn scrape(&mut self) -> BTreeMap<String, f64> {
        self.agent.publish(Timestamp(self.now() + ROUND));
        let snapshot = self.agent.exposition().scrape().unwrap();
        let text = snapshot.body(Format::Text, Encoding::Identity);
        let text = std::str::from_utf8(&text).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                (series.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    /// How much there is to say of everything that is kept.
    fn size(&self) -> usize {
        format!("{:?}{:?}", self.agent, self.services).len()
    }
}

/// The parts of a process that stay the same.
fn write_process(proc: &Path, number: u32) {
    let directory = proc.join((FIRST_PID + number).to_string());
    for folder in ["net", "fd", "ns"] {
        fs::create_dir_all(directory.join(folder)).unwrap();
    }
    let (inode, port) = (5_000 + number, u32::from(FIRST_PORT) + number);
    let row = format!(
        "  sl  local_address rem_address   st\n   0: 00000000:{port:04X} 00000000:0000 0A \
         00000000:00000000 00:00000000 00000000     0 0 {inode} 1 0 100 0 0 10 0\n"
    );
    fs::write(directory.join("net/tcp"), row).unwrap();
    let link = |to: String, name: &str| std::os::unix::fs::symlink(to, directory.join(name));
    link(format!("socket:[{inode}]"), "fd/3").unwrap();
    link(format!("net:[{}]", 9_000 + number), "ns/net").unwrap();
}

/// From now on the process with this number is another one, in a container of its own.
fn put_into(proc: &Path, number: u32, container: u64, now: u64) {
    let pid = FIRST_PID + number;
    let directory = proc.join(pid.to_string());
    let ticks = now / (SECOND / 100);
    let stat = format!("{pid} (server) S 0 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 9");
    fs::write(directory.join("stat"), stat).unwrap();
    let cgroup = format!("0::/docker/{container:012x}{:052x}\n", 0);
    fs::write(directory.join("cgroup"), cgroup).unwrap();
}

/// A streamed request of two chunks that begins at `now` and takes 600 ms.
fn seen(pid: u32, service: ServiceId, now: u64, is_over: bool) -> Observed {
    let start = Timestamp(now + u64::from(pid) * 1_000);
    let first = Timestamp(start.0 + SECOND / 10);
    let end = Timestamp(start.0 + SECOND * 6 / 10);
    let at = if is_over { end } else { first };
    Observed {
        at,
        request: Request {
            id: RequestId(start.0),
            service,
            route: Route::ChatCompletions,
            start,
            first_data: Some(first),
            last_data: Some(at),
            input: Input::Bytes(500),
            chunks: if is_over { 2 } else { 1 },
            streamed: true,
            status: 200,
            end: is_over.then_some(End {
                at: end,
                outcome: Outcome::Done,
            }),
        },
        port: FIRST_PORT,
        peer_port: 40_000,
        network: 7,
        client: Client::Outside,
        family: 2,
        tgid: pid,
        response_bytes: 300,
        first_chunks: 1,
        truncated: false,
        usage: is_over.then_some(Usage {
            input: Some(7),
            output: Some(2),
        }),
        trace: None,
    }
}

fn agent() -> Agent {
    let now = Timestamp(START);
    Agent {
        config: Config::default(),
        probes: None,
        watch: Watch::of_nobody(),
        tokens: Tokens::default(),
        stacks: None,
        services: Vec::new(),
        pods: Pods::new(Path::new("/nonexistent")),
        running: None,
        news: mpsc::channel().1,
        ledger: Ledger::new(crate::ledger::Config::default()),
        sinks: Sinks::new(None, None, None, None),
        meters: HashMap::new(),
        calibrated: HashMap::new(),
        power_read: HashMap::new(),
        broken: HashSet::new(),
        observed: Vec::new(),
        crowded: false,
        served: now,
        hops: Hops::default(),
        lost_requests: 0,
        budget: None,
        state: None,
        host: Host::default(),
        engines: Engines::default(),
        threads: None,
        swept: now,
        began: now,
        cpu_read: now,
        published: now,
    }
}

/// What `sum()` over each counter gives.
fn sums(seen: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (series, value) in seen {
        let name = series.split('{').next().unwrap();
        if name.starts_with("perjoule_") && name.ends_with("_total") {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
    sums
}

#[test]
fn a_hundred_thousand_containers_come_and_go_and_what_is_kept_of_them_is_bounded() {
    const CONTAINERS: u32 = 100_000;
    const SCRAPED_EVERY: u32 = 10;
    let mut node = Node::new();
    let mut before = BTreeMap::new();
    let (mut most, mut early) = (0, None);
    while node.round * ALIVE < CONTAINERS {
        node.round();
        if !node.round.is_multiple_of(SCRAPED_EVERY) {
            continue;
        }
        let seen = node.scrape();
        let after = sums(&seen);
        for (name, sum) in &before {
            assert!(
                after[name] >= sum - 1e-6,
                "{name} fell from {sum} to {}",
                after[name]
            );
        }
        (before, most) = (after, most.max(seen.len()));
        if node.round * ALIVE == CONTAINERS / 10 {
            early = Some(node.size());
        }
    }
    let (early, late) = (early.unwrap(), node.size());
    println!("{most} series; {early} bytes to say after a tenth, {late} at the end");
    assert!(most <= SERIES_BUDGET, "{most} series");
    // Numbers get longer.
    assert!(
        (late as f64) < 1.05 * early as f64,
        "{early} bytes, {late} bytes"
    );

    node.quiet_round();
    let seen = node.scrape();
    assert_eq!(
        sums(&seen)["perjoule_requests_total"],
        f64::from(CONTAINERS)
    );
    assert_eq!(node.agent.ledger.total_residual_microjoules(), 0);
    let of = |name: &str, label: &str| -> f64 {
        let series = seen.iter().filter(|(series, _)| {
            series.starts_with(name) && series.contains(&format!("=\"{label}\""))
        });
        series.map(|(_, joules)| joules).sum()
    };
    for part in ["requests", "overhead"] {
        let account = of("perjoule_energy_account_joules_total", part);
        let services = of("perjoule_service_energy_joules_total", part);
        assert!(
            (account - services).abs() < 1e-6 * account,
            "{part}: {account} J, {services} J"
        );
    }
    assert!(of("perjoule_energy_account_joules_total", "requests") > 0.0);
}
