//! What the BPF programs cost per event, beside a peer at the same hooks in the same run.
//!
//! An empty program, attached last to the same hook, reads some tens of nanoseconds: the
//! measurement itself. It is subtracted from everybody. The first program at a hook pays for cold
//! caches, so every comparison is made in both orders of attaching.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::bpf::{Empty, Program, Runs, Statistics, programs_of};
use super::peers::{Peer, Share, share_of};
use super::servers::{Agent, Server, Watch};
use super::table::{Budget, Row};
use crate::project::find_on_path;

const RECEIVE: &str = "sock_recv_length";
const SEND: &str = "sock_send_length";
const SWITCH: &str = "sched_switch";
const CLOSE: &str = "tcp_destroy_sock";
const FORK: &str = "sched_process_fork";

/// How the hooks are measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    /// For the peers' scripts and logs.
    pub(super) folder: &'a Path,
    /// From attaching to measuring: the agent learns who is who once a second, and connections
    /// that are older than a program are followed from their next request on.
    pub(super) settle: Duration,
    /// How long is measured each time.
    pub(super) window: Duration,
    /// How often in either order.
    pub(super) rounds: usize,
}

/// Nanoseconds a run, the empty program's subtracted.
#[derive(Debug, Clone, Copy)]
struct Pair {
    receive: f64,
    send: f64,
}

/// One window at the socket hooks, all callers together.
#[derive(Debug, Clone, Copy)]
struct Window {
    ours: Pair,
    peer: Option<Pair>,
    empty: Pair,
    receives: f64,
    sends: f64,
    close: Runs,
    fork: Runs,
}

/// Who is attached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Agent,
    Peer,
}

/// The socket hooks under a load that is running already.
pub(super) fn sockets(load: &str, server: &dyn Server, plan: Plan<'_>) -> Result<Vec<Row>> {
    let share = share_of(server.process(), plan.folder)?;
    let mut seen = Vec::new();
    let mut foreign = Vec::new();
    for round in 0..plan.rounds {
        for first in [First::Agent, First::Peer] {
            seen.push(measure(server, Watch::Server, first, plan)?);
        }
        let first = [First::Agent, First::Peer][round % 2];
        foreign.push(measure(server, Watch::Nobody, first, plan)?);
    }
    let mut rows = rows(load, &seen, &foreign, share);
    for (program, runs) in [
        (CLOSE, (|w: &Window| w.close) as fn(&Window) -> Runs),
        (FORK, |w| w.fork),
    ] {
        let total = seen.iter().map(runs).fold(Runs::default(), Runs::plus);
        if let Some(mean) = total.mean() {
            rows.push(
                Row::new(format!("{load}: {program}"), "ns", [mean])
                    .remark(format!("{} runs, the floor included", total.runs)),
            );
        }
    }
    Ok(rows)
}

fn measure(server: &dyn Server, watch: Watch, first: First, plan: Plan<'_>) -> Result<Window> {
    let peer = || match watch {
        Watch::Server => Peer::sockets(server.process(), plan.folder),
        // A process id that nobody has.
        Watch::Nobody => Peer::sockets(0, plan.folder),
    };
    let (agent, peer) = match first {
        First::Agent => {
            let agent = server.agent(watch)?;
            (agent, peer()?)
        }
        First::Peer => {
            let peer = peer()?;
            (server.agent(watch)?, peer)
        }
    };
    let empty = [Empty::at(RECEIVE)?, Empty::at(SEND)?];
    sleep(plan.settle);

    let _statistics = Statistics::on()?;
    let before = Reading::now(&agent, peer.as_ref(), &empty);
    sleep(plan.window);
    let after = Reading::now(&agent, peer.as_ref(), &empty);
    agent.stop()?;

    let floor = |hook: &str| {
        let runs = Reading::of(&after.empty, hook).since(Reading::of(&before.empty, hook));
        runs.mean().with_context(|| format!("{hook} never fired"))
    };
    let empty = Pair {
        receive: floor(RECEIVE)?,
        send: floor(SEND)?,
    };
    let net = |after: &[Program], before: &[Program]| -> Result<(Pair, Runs, Runs)> {
        let runs = |hook| Reading::of(after, hook).since(Reading::of(before, hook));
        let (receives, sends) = (runs(RECEIVE), runs(SEND));
        let missing = "a program at the socket hooks did not run";
        let pair = Pair {
            receive: receives.mean().context(missing)? - empty.receive,
            send: sends.mean().context(missing)? - empty.send,
        };
        Ok((pair, receives, sends))
    };
    let (ours, receives, sends) = net(&after.ours, &before.ours)?;
    let theirs = match peer {
        Some(_) => Some(net(&after.peer, &before.peer)?.0),
        None => None,
    };
    Ok(Window {
        ours,
        peer: theirs,
        empty,
        receives: receives.runs as f64 / plan.window.as_secs_f64(),
        sends: sends.runs as f64 / plan.window.as_secs_f64(),
        close: Reading::of(&after.ours, CLOSE).since(Reading::of(&before.ours, CLOSE)),
        fork: Reading::of(&after.ours, FORK).since(Reading::of(&before.ours, FORK)),
    })
}

/// The mean over all callers, without the share of those that are not tracked.
fn tracked(all: Pair, foreign: Pair, share: Share) -> Pair {
    let solve = |all: f64, foreign: f64, share: f64| (all - (1.0 - share) * foreign) / share;
    Pair {
        receive: solve(all.receive, foreign.receive, share.received),
        send: solve(all.send, foreign.send, share.sent),
    }
}

fn mean(pairs: impl Iterator<Item = Pair> + Clone) -> Option<Pair> {
    let count = pairs.clone().count() as f64;
    (count > 0.0).then(|| Pair {
        receive: pairs.clone().map(|p| p.receive).sum::<f64>() / count,
        send: pairs.map(|p| p.send).sum::<f64>() / count,
    })
}

fn rows(load: &str, seen: &[Window], foreign: &[Window], share: Option<Share>) -> Vec<Row> {
    let all = || seen.iter().chain(foreign);
    let mut rows = vec![
        Row::new(
            format!("{load}: empty program, receive (floor)"),
            "ns",
            all().map(|w| w.empty.receive),
        ),
        Row::new(
            format!("{load}: empty program, send (floor)"),
            "ns",
            all().map(|w| w.empty.send),
        )
        .remark(format!(
            "subtracted from all figures below; {:.0} receives/s and {:.0} sends/s of all processes",
            all().map(|w| w.receives).sum::<f64>() / all().count() as f64,
            all().map(|w| w.sends).sum::<f64>() / all().count() as f64,
        )),
    ];
    let our_foreign = mean(foreign.iter().map(|w| w.ours));
    let peer_foreign = mean(foreign.iter().filter_map(|w| w.peer));
    let (Some(share), Some(our_foreign), Some(peer_foreign)) = (share, our_foreign, peer_foreign)
    else {
        let sum = |w: &Window| w.ours.receive + w.ours.send;
        rows.push(
            Row::new(
                format!("{load}: receive + send, all processes"),
                "ns",
                seen.iter().map(sum),
            )
            .remark("no bpftrace here: no peer, and tracked calls are not told from foreign ones"),
        );
        rows.push(Row::new(
            format!("{load}: receive + send, foreign process"),
            "ns",
            foreign.iter().map(sum),
        ));
        return rows;
    };

    let ours: Vec<Pair> = seen
        .iter()
        .map(|w| tracked(w.ours, our_foreign, share))
        .collect();
    let peer: Vec<Pair> = seen
        .iter()
        .filter_map(|w| w.peer)
        .map(|pair| tracked(pair, peer_foreign, share))
        .collect();
    let streams = load == "streams";
    let sum = |pair: &Pair| pair.receive + pair.send;
    let row = |what: &str, of: &dyn Fn(&Pair) -> f64| {
        Row::new(
            format!("{load}: {what}, tracked"),
            "ns",
            ours.iter().map(of),
        )
        .peer(peer.iter().map(of))
    };
    let send = row("send", &|pair| pair.send).remark(format!(
        "{:.0} % of the receives and {:.0} % of the sends are the server's",
        share.received * 100.0,
        share.sent * 100.0
    ));
    let both = row("receive + send", &sum);
    if streams {
        // A stream is received once and sent in hundreds of pieces: too few of the receives are
        // the server's to tell them from the client's.
        rows.push(send.budget(Budget::Ratio(0.7)));
    } else {
        let receive = row("receive", &|pair| pair.receive);
        rows.extend([receive, send, both.budget(Budget::Ratio(1.0))]);
    }
    let typical = super::table::median(&peer.iter().map(sum).collect::<Vec<_>>()).unwrap_or(0.0);
    let mut alien = Row::new(
        format!("{load}: receive + send, foreign process"),
        "ns",
        foreign.iter().map(|w| sum(&w.ours)),
    );
    if streams {
        alien = alien.peer(foreign.iter().filter_map(|w| w.peer).map(|pair| sum(&pair)));
    } else {
        alien = alien
            .peer(foreign.iter().map(|_| typical))
            .budget(Budget::Ratio(0.25))
            .remark(format!(
                "held against what the peer's tracked calls cost; its own foreign ones: {:.0} ns",
                sum(&peer_foreign)
            ));
    }
    rows.push(alien);
    rows
}

/// The scheduler's hook under `perf bench sched pipe`.
pub(super) fn scheduler(server: &dyn Server, plan: Plan<'_>, switches: u32) -> Result<Vec<Row>> {
    let name = "context switch, on-CPU time and run queue";
    let Some(perf) = find_on_path("perf") else {
        return Ok(vec![
            Row::new(name, "ns", [])
                .budget(Budget::Ratio(0.3))
                .remark("no perf here (Debian: linux-perf)"),
        ]);
    };
    let (mut floor, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds * 2 {
        let (agent, peer) = if round % 2 == 0 {
            let agent = server.agent(Watch::Server)?;
            (agent, Peer::scheduler(plan.folder)?)
        } else {
            let peer = Peer::scheduler(plan.folder)?;
            (server.agent(Watch::Server)?, peer)
        };
        let empty = [Empty::at(SWITCH)?];
        sleep(plan.settle);
        let _statistics = Statistics::on()?;
        let before = Reading::now(&agent, peer.as_ref(), &empty);
        let output = Command::new(&perf)
            .args(["bench", "sched", "pipe", "-l", &switches.to_string()])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracked_calls_are_told_from_foreign_ones_by_their_share() {
        // A quarter is tracked at 400 ns, the rest foreign at 40 ns: 130 ns in the mean.
        let share = Share {
            received: 0.25,
            sent: 0.5,
        };
        let all = Pair {
            receive: 130.0,
            send: 220.0,
        };
        let foreign = Pair {
            receive: 40.0,
            send: 40.0,
        };
        let tracked = tracked(all, foreign, share);
        assert!((tracked.receive - 400.0).abs() < 1e-9);
        assert!((tracked.send - 400.0).abs() < 1e-9);
    }
}
