//! What the program at the scheduler's hook costs per context switch, beside a peer in the same
//! run.
//!
//! An empty program, attached last to the same hook, reads some tens of nanoseconds: the
//! measurement itself. It is subtracted from everybody. The first program at a hook pays for cold
//! caches, so either tool is attached first in turn.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;

use anyhow::{Context as _, Result, ensure};

use super::bpf::{Empty, Program, Runs, Statistics, programs_of};
use super::peers::Peer;
use super::servers::{Agent, Inference, Server as _};
use super::table::{Budget, Row};
use super::{Lengths, step};
use crate::project::find_on_path;

const SWITCH: &str = "sched_switch";

/// Under `perf bench sched pipe`.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    step("nanoseconds per context switch");
    let name = "context switch, on-CPU time and run queue";
    let Some(perf) = find_on_path("perf") else {
        return Ok(vec![
            Row::new(name, "ns", [])
                .budget(Budget::Ratio(0.3))
                .remark("no perf here (Debian: linux-perf)"),
        ]);
    };
    let server = Inference::start(folder)?;
    let (mut floor, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..lengths.pairs {
        let (agent, peer) = if round % 2 == 0 {
            let agent = server.agent(None)?;
            (agent, Peer::scheduler(folder)?)
        } else {
            let peer = Peer::scheduler(folder)?;
            (server.agent(None)?, peer)
        };
        let empty = [Empty::at(SWITCH)?];
        sleep(lengths.settle);
        let _statistics = Statistics::on()?;
        let before = Reading::now(&agent, peer.as_ref(), &empty);
        let output = Command::new(&perf)
            .args([
                "bench",
                "sched",
                "pipe",
                "-l",
                &lengths.switches.to_string(),
            ])
            .output()
            .context("cannot start perf")?;
        ensure!(output.status.success(), "perf bench sched pipe failed");
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
    let mut row = Row::new(name, "ns", ours).budget(Budget::Ratio(0.3));
    row = if theirs.is_empty() {
        row.remark("no runqlat and cpudist here (Debian: libbpf-tools)")
    } else {
        row.peer(theirs)
            .remark("the peer is libbpf-tools' runqlat and cpudist together")
    };
    Ok(vec![
        Row::new("context switch: empty program (floor)", "ns", floor),
        row,
    ])
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
