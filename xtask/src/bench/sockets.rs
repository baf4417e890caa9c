//! What the programs at the socket hooks cost per call, beside a peer at the same hooks in the
//! same window.
//!
//! Between the programs lie stopwatches, which tell the server's calls from those of all other
//! processes. Two stopwatches with an empty program between them read some tens of nanoseconds:
//! the measurement itself. It is subtracted from everybody. The first program at a hook pays for
//! cold caches, so a pair is two windows, with either tool attached first.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::bpf::{Empty, Runs};
use super::peers::Peer;
use super::servers::{Agent, Server};
use super::stopwatch::Stopwatches;
use super::table::{Budget, Row};

const HOOKS: [&str; 2] = ["sock_recv_length", "sock_send_length"];

/// How the hooks are measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    /// For the peers' scripts and logs.
    pub(super) folder: &'a Path,
    /// Another agent, to be measured in the same windows.
    pub(super) against: Option<&'a Path>,
    /// From attaching to measuring: the agent learns who is who once a second, and connections
    /// that are older than a program are followed from their next request on.
    pub(super) settle: Duration,
    /// How long is measured each time.
    pub(super) window: Duration,
    /// How many pairs of windows.
    pub(super) pairs: usize,
}

/// Nanoseconds a call at both hooks, the floor subtracted.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    receive: f64,
    send: f64,
}

impl Cost {
    fn sum(&self) -> f64 {
        self.receive + self.send
    }

    fn less(self, floor: Self) -> Self {
        Self {
            receive: self.receive - floor.receive,
            send: self.send - floor.send,
        }
    }

    fn mean(one: Self, other: Self) -> Self {
        Self {
            receive: (one.receive + other.receive) / 2.0,
            send: (one.send + other.send) / 2.0,
        }
    }
}

/// What one tool cost in one window or, in the mean, in a pair of them.
#[derive(Debug, Clone, Copy, Default)]
struct Tool {
    tracked: Cost,
    foreign: Cost,
    /// Calls of the server a second.
    rate: Cost,
}

impl Tool {
    fn mean(one: Self, other: Self) -> Self {
        Self {
            tracked: Cost::mean(one.tracked, other.tracked),
            foreign: Cost::mean(one.foreign, other.foreign),
            rate: Cost::mean(one.rate, other.rate),
        }
    }
}

/// One window, or a pair.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    ours: Tool,
    other: Option<Tool>,
    peer: Option<Tool>,
    floor: Cost,
    /// Calls of the server a second.
    rate: Cost,
}

/// Who lies between two stopwatches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Agent,
    /// The agent of [`Plan::against`].
    Other,
    Peer,
    Empty,
}

/// Which calls of a load are many enough to be held against a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// One receive and one send a request.
    Plain,
    /// One receive a request, and a send for each event.
    Streams,
}

/// The socket hooks under a load that is running already.
pub(super) fn measure(load: Load, server: &dyn Server, plan: Plan<'_>) -> Result<Vec<Row>> {
    let mut pairs = Vec::new();
    for pair in 0..plan.pairs {
        let mut seen = Vec::new();
        for agent_first in [pair % 2 == 0, pair % 2 != 0] {
            seen.push(window(server, agent_first, plan)?);
        }
        pairs.extend(seen.into_iter().reduce(Window::mean));
    }
    Ok(rows(load, &pairs))
}

impl Window {
    fn mean(one: Self, other: Self) -> Self {
        let both = |a: Option<Tool>, b: Option<Tool>| Some(Tool::mean(a?, b?));
        Self {
            ours: Tool::mean(one.ours, other.ours),
            other: both(one.other, other.other),
            peer: both(one.peer, other.peer),
            floor: Cost::mean(one.floor, other.floor),
            rate: Cost::mean(one.rate, other.rate),
        }
    }
}

fn window(server: &dyn Server, agent_first: bool, plan: Plan<'_>) -> Result<Window> {
    let process = server.process();
    let mut order = vec![Which::Agent, Which::Other, Which::Peer];
    if !agent_first {
        order.reverse();
    }
    order.push(Which::Empty);

    let mut watches = [
        Stopwatches::start(HOOKS[0], process)?,
        Stopwatches::start(HOOKS[1], process)?,
    ];
    let mut laps = Vec::new();
    let mut agents: Vec<Agent> = Vec::new();
    // They detach with their values.
    let mut peers = Vec::new();
    let mut empty = Vec::new();
    for which in order {
        match (which, plan.against) {
            (Which::Agent, _) => agents.push(server.agent(None)?),
            (Which::Other, Some(program)) => agents.push(server.agent(Some(program))?),
            (Which::Peer, _) => match Peer::sockets(process, plan.folder)? {
                Some(peer) => peers.push(peer),
                None => continue,
            },
            (Which::Empty, _) => {
                for hook in HOOKS {
                    empty.push(Empty::at(hook)?);
                }
            }
            (Which::Other, None) => continue,
        }
        laps.push(which);
        watches.iter_mut().try_for_each(Stopwatches::lap)?;
    }
    sleep(plan.settle);

    let before = [watches[0].read()?, watches[1].read()?];
    sleep(plan.window);
    let after = [watches[0].read()?, watches[1].read()?];
    for agent in agents {
        agent.stop()?;
    }

    let tool = |which: Which| -> Result<Option<Tool>> {
        let Some(place) = laps.iter().position(|lap| *lap == which) else {
            return Ok(None);
        };
        let lap = |hook: usize| after[hook][place].since(before[hook][place]);
        let (receives, sends) = (lap(0), lap(1));
        let mean = |runs: Runs, hook| {
            runs.mean()
                .with_context(|| format!("{hook} was never timed; do other programs come and go?"))
        };
        Ok(Some(Tool {
            tracked: Cost {
                receive: mean(receives.tracked, HOOKS[0])?,
                send: mean(sends.tracked, HOOKS[1])?,
            },
            foreign: Cost {
                receive: mean(receives.foreign, HOOKS[0])?,
                send: mean(sends.foreign, HOOKS[1])?,
            },
            rate: Cost {
                receive: receives.tracked.runs as f64 / plan.window.as_secs_f64(),
                send: sends.tracked.runs as f64 / plan.window.as_secs_f64(),
            },
        }))
    };
    let floor = tool(Which::Empty)?.context("no floor was measured")?;
    let net = |tool: Tool| Tool {
        tracked: tool.tracked.less(floor.tracked),
        foreign: tool.foreign.less(floor.foreign),
        ..tool
    };
    Ok(Window {
        ours: net(tool(Which::Agent)?.context("the agent was not measured")?),
        other: tool(Which::Other)?.map(net),
        peer: tool(Which::Peer)?.map(net),
        floor: floor.tracked,
        rate: floor.rate,
    })
}

fn rows(load: Load, pairs: &[Window]) -> Vec<Row> {
    let name = match load {
        Load::Plain => "plain",
        Load::Streams => "streams",
    };
    let figures = |of: &dyn Fn(&Window) -> f64| pairs.iter().map(of).collect::<Vec<_>>();
    let mean = |of: &dyn Fn(&Window) -> f64| figures(of).iter().sum::<f64>() / pairs.len() as f64;
    let mut rows = vec![
        Row::new(
            format!("{name}: empty program, receive and send (floor)"),
            "ns",
            figures(&|w| w.floor.sum() / 2.0),
        )
        .remark(format!(
            "subtracted from all figures below; the server did {:.0} receives/s and {:.0} sends/s",
            mean(&|w| w.rate.receive),
            mean(&|w| w.rate.send),
        )),
    ];
    let held = |row: Row, window: fn(&Tool) -> f64| {
        row.peer(pairs.iter().filter_map(|w| w.peer.as_ref().map(window)))
    };
    let mut tool = |what: &str, of: fn(&Tool) -> f64, budget: Option<f64>| {
        let row = Row::new(format!("{name}: {what}"), "ns", figures(&|w| of(&w.ours)));
        let row = held(row, of);
        rows.push(match budget {
            Some(limit) => row.budget(Budget::Ratio(limit)),
            None => row,
        });
        if pairs.iter().any(|w| w.other.is_some()) {
            let before = pairs.iter().filter_map(|w| w.other.as_ref().map(of));
            rows.push(
                Row::new(
                    format!("{name}: {what}, against the other agent"),
                    "ns",
                    figures(&|w| of(&w.ours)),
                )
                .peer(before),
            );
        }
    };
    tool("receive, tracked", |t| t.tracked.receive, None);
    match load {
        Load::Plain => {
            tool("send, tracked", |t| t.tracked.send, None);
            tool("receive + send, tracked", |t| t.tracked.sum(), Some(1.0));
        }
        Load::Streams => tool("send, tracked", |t| t.tracked.send, Some(0.7)),
    }
    let alien = Row::new(
        format!("{name}: receive + send, foreign process"),
        "ns",
        figures(&|w| w.ours.foreign.sum()),
    );
    let alien = held(alien, |t| t.tracked.sum()).remark(format!(
        "held against what the peer's tracked calls cost; its own foreign ones: {:.0} ns",
        mean(&|w| w.peer.map_or(f64::NAN, |t| t.foreign.sum())),
    ));
    rows.push(match load {
        Load::Plain => alien.budget(Budget::Ratio(0.25)),
        Load::Streams => alien,
    });
    rows
}
