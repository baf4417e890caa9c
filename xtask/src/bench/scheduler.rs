//! What the programs at the scheduler's hooks cost per context switch, beside a peer in the same
//! run.
//!
//! An empty program, attached last to the same hook, reads some tens of nanoseconds: the
//! measurement itself. It is subtracted from everybody. The first program at a hook pays for cold
//! caches, so either tool is attached first in turn.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::bpf::{Empty, Program, Runs, Statistics, programs_of};
use super::pairs::Pairs;
use super::peers::Peer;
use super::servers::{Agent, Inference};
use super::table::{Budget, Row};
use super::{Lengths, step};
use crate::project::find_on_path;

const SWITCH: &str = "sched_switch";

/// What is held against what.
struct Contest {
    name: &'static str,
    /// What the agent tells of waits.
    detail: &'static str,
    /// Whether the threads that switch are a service's; else they are foreign.
    served: bool,
    peer: fn(&Path) -> Result<Option<Peer>>,
    peers: &'static str,
    budget: Option<f64>,
}

const CONTESTS: &[Contest] = &[
    Contest {
        name: "context switch of a service: on-CPU time and run queue",
        detail: "run-queue",
        served: true,
        peer: Peer::scheduler,
        peers: "runqlat and cpudist together",
        budget: Some(0.3),
    },
    Contest {
        name: "context switch of a service: off-CPU reasons too",
        detail: "reasons",
        served: true,
        peer: Peer::scheduler,
        peers: "runqlat and cpudist together",
        budget: Some(0.5),
    },
    Contest {
        name: "context switch of a service: off-CPU reasons too, beside off-CPU stacks",
        detail: "reasons",
        served: true,
        peer: Peer::off_cpu,
        peers: "offcputime",
        budget: None,
    },
    Contest {
        name: "context switch of a foreign process",
        detail: "reasons",
        served: false,
        peer: Peer::scheduler,
        peers: "runqlat and cpudist together",
        budget: Some(0.3),
    },
];

/// Under `perf bench sched pipe`.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    step("nanoseconds per context switch");
    let Some(perf) = find_on_path("perf") else {
        let rows = CONTESTS.iter().map(|contest| {
            budgeted(Row::new(contest.name, "ns", []), contest)
                .remark("no perf here (Debian: linux-perf)")
        });
        return Ok(rows.collect());
    };
    let server = Inference::start(folder)?;
    let mut floor = Vec::new();
    let mut rows = Vec::new();
    for contest in CONTESTS {
        rows.push(hold(contest, &perf, &server, folder, lengths, &mut floor)?);
    }
    rows.insert(
        0,
        Row::new("context switch: empty program (floor)", "ns", floor),
    );
    rows.push(switches_lost(&perf, &server, folder, lengths)?);
    Ok(rows)
}

fn budgeted(row: Row, contest: &Contest) -> Row {
    match contest.budget {
        Some(budget) => row.budget(Budget::Ratio(budget)),
        None => row,
    }
}

fn hold(
    contest: &Contest,
    perf: &Path,
    server: &Inference,
    folder: &Path,
    lengths: Lengths,
    floor: &mut Vec<f64>,
) -> Result<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..lengths.switch_pairs {
        let load = Pipe::held(perf, lengths.switches, folder)?;
        let watched = contest.served.then(|| load.id());
        let start = || server.agent_of_waits(contest.detail, watched);
        let (agent, peer) = if round % 2 == 0 {
            let agent = start()?;
            (agent, (contest.peer)(folder)?)
        } else {
            let peer = (contest.peer)(folder)?;
            (start()?, peer)
        };
        let empty = [Empty::at(SWITCH)?];
        sleep(lengths.settle);
        let _statistics = Statistics::on()?;
        let before = Reading::now(&agent, peer.as_ref(), &empty);
        load.run()?;
        let after = Reading::now(&agent, peer.as_ref(), &empty);
        agent.stop()?;

        let empty = Reading::of(&after.empty, SWITCH).since(Reading::of(&before.empty, SWITCH));
        let each = empty.mean().context("no context switch was seen")?;
        floor.push(each);
        // Everything a tool did, its wake-ups' programs included, per context switch.
        let cost = |after: &[Program], before: &[Program]| {
            let runs = Reading::all(after).since(Reading::all(before));
            (runs.nanoseconds as f64 - runs.runs as f64 * each) / empty.runs as f64
        };
        let switch = |programs: &[Program]| -> Vec<Program> {
            programs
                .iter()
                .filter(|program| program.name.starts_with("sched_"))
                .cloned()
                .collect()
        };
        ours.push(cost(&switch(&after.ours), &switch(&before.ours)));
        if peer.is_some() {
            theirs.push(cost(&after.peer, &before.peer));
        }
    }
    let row = budgeted(Row::new(contest.name, "ns", ours), contest);
    Ok(if theirs.is_empty() {
        row.remark(format!("no {} here (Debian: libbpf-tools)", contest.peers))
    } else {
        row.peer(theirs)
            .remark(format!("the peer is libbpf-tools' {}", contest.peers))
    })
}

/// Switches a second that two threads of a service lose to the agent.
fn switches_lost(perf: &Path, server: &Inference, folder: &Path, lengths: Lengths) -> Result<Row> {
    let mut pairs = Pairs::default();
    for round in 0..lengths.switch_pairs {
        // Off, on, on, off.
        for on in [round % 2 == 1, round % 2 == 0] {
            let load = Pipe::held(perf, lengths.switches, folder)?;
            let agent = if on {
                Some(server.agent_of_waits("reasons", Some(load.id()))?)
            } else {
                None
            };
            sleep(lengths.settle);
            let begun = Instant::now();
            load.run()?;
            pairs.add(
                on,
                f64::from(lengths.switches) / begun.elapsed().as_secs_f64(),
            );
            if let Some(agent) = agent {
                agent.stop()?;
            }
        }
    }
    Ok(Row::new(
        "perf bench sched pipe as a service: switches/s lost",
        "%",
        pairs.lost_percent(),
    ))
}

/// `perf bench sched pipe`, held until it is let go, so that its process is known before.
#[derive(Debug)]
struct Pipe(Child);

impl Pipe {
    fn held(perf: &Path, switches: u32, folder: &Path) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", "read go; exec \"$0\" bench sched pipe -l \"$1\""])
            .arg(perf)
            .arg(switches.to_string())
            .stdin(Stdio::piped())
            .stdout(File::create(folder.join("perf.out"))?)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start perf")?;
        Ok(Self(child))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// Lets it go and waits for its end.
    fn run(mut self) -> Result<()> {
        let stdin = self.0.stdin.take();
        stdin.context("no pipe")?.write_all(b"go\n")?;
        let status = self.0.wait()?;
        ensure!(status.success(), "perf bench sched pipe failed");
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The programs' totals at one moment.
struct Reading {
    ours: Vec<Program>,
    peer: Vec<Program>,
    empty: Vec<Program>,
}

impl Reading {
    fn now(agent: &Agent, peer: Option<&Peer>, empty: &[Empty]) -> Self {
        Self {
            ours: programs_of(agent.id()),
            peer: peer.map(Peer::programs).unwrap_or_default(),
            empty: empty
                .iter()
                .map(|empty| Program {
                    id: 0,
                    name: empty.hook().to_owned(),
                    total: empty.total(),
                })
                .collect(),
        }
    }

    /// The programs at `hook`: they bear its name, cut off by the kernel.
    fn of(programs: &[Program], hook: &str) -> Runs {
        programs
            .iter()
            .filter(|program| !program.name.is_empty() && hook.starts_with(&program.name))
            .fold(Runs::default(), |sum, program| sum.plus(program.total))
    }

    fn all(programs: &[Program]) -> Runs {
        programs
            .iter()
            .fold(Runs::default(), |sum, program| sum.plus(program.total))
    }
}
