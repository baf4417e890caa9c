//! What counting and timing system calls costs, beside libbpf-tools' `syscount -L` at the same hooks
//! in the same run, and what calls cost while it is off.
//!
//! Two processes copy single bytes: one that is counted and one that nobody asked about. One of
//! them runs at a time. BPF statistics give each tool's nanoseconds a call; an empty program at
//! either hook, attached last, reads the measurement itself, which is subtracted. What a call
//! takes longer on the CPU is told too, the way to the hooks included, from the time and the calls that
//! the kernel counted for the process.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::bpf::{Empty, Program, Runs, Statistics, programs_of};
use super::peers::Peer;
use super::servers::agent_of;
use super::table::{Budget, Row};
use super::{Lengths, step};

const HOOKS: [&str; 2] = ["sys_enter", "sys_exit"];
/// The programs' names, as the kernel keeps them.
const PROGRAMS: [&str; 2] = ["sys_enter", "syscall_exit"];

/// A process that does nothing but system calls; it stands still until it is asked to run.
#[derive(Debug)]
struct Copier(Child);

impl Copier {
    fn start() -> Result<Self> {
        let child = Command::new("dd")
            .args(["if=/dev/zero", "of=/dev/null", "bs=1"])
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start dd")?;
        let copier = Self(child);
        copier.signal(libc::SIGSTOP);
        Ok(copier)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: no memory is passed; the child has not been waited for, so the id is its own.
        unsafe { libc::kill(self.id() as libc::pid_t, signal) };
    }

    /// Lets it run for the window; returns nanoseconds of CPU a call.
    fn run(&self, window: Duration) -> Result<f64> {
        let before = (self.on_cpu()?, self.calls()?);
        self.signal(libc::SIGCONT);
        sleep(window);
        self.signal(libc::SIGSTOP);
        // Until it has noticed.
        sleep(Duration::from_millis(20));
        let (nanos, calls) = (self.on_cpu()? - before.0, self.calls()? - before.1);
        Ok(nanos as f64 / calls as f64)
    }

    fn on_cpu(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.id()))?;
        let first = text.split(' ').next().context("no time on CPU")?;
        Ok(first.parse()?)
    }

    fn calls(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.id()))?;
        let fields = text.lines().filter_map(|line| {
            let (name, count) = line.split_once(": ")?;
            matches!(name, "syscr" | "syscw").then(|| count.parse::<u64>().ok())?
        });
        Ok(fields.sum())
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        // It has ended if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    Exact,
    Sampled,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Exact => "exact",
            Self::Sampled => "sampled",
        }
    }

    fn arguments(self) -> Vec<&'static str> {
        match self {
            Self::Off => Vec::new(),
            Self::Exact => vec!["--syscalls", "exact"],
            Self::Sampled => vec!["--syscalls", "sampled"],
        }
    }
}

/// One window of one copier.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// Nanoseconds a call of both programs, the floor subtracted.
    ours: f64,
    peer: Option<f64>,
    /// A call's time on CPU, with our programs alone at the hooks.
    on_cpu: f64,
}

/// All figures.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let (counted, foreign) = (Copier::start()?, Copier::start()?);
    let mut rows = Vec::new();
    let mut off = [Vec::new(), Vec::new()];
    let mut left = Vec::new();
    for mode in [Mode::Off, Mode::Exact, Mode::Sampled] {
        step(&format!("nanoseconds per system call, {}", mode.name()));
        let mut windows = [Vec::new(), Vec::new()];
        for round in 0..lengths.pairs {
            let agent = agent_of(counted.id(), &mode.arguments(), folder)?;
            sleep(lengths.settle);
            let mut seen = [Window::default(); 2];
            for (window, copier) in seen.iter_mut().zip([&counted, &foreign]) {
                window.on_cpu = copier.run(lengths.window)?;
            }
            let at_hooks = programs(agent.id()).len();
            if mode == Mode::Off {
                left.push(at_hooks as f64);
            } else {
                // The first program at a hook pays for cold caches: ours, and the peer's in turn.
                let peer = Peer::syscalls(counted.id(), folder)?;
                let empty = [Empty::at(HOOKS[0])?, Empty::at(HOOKS[1])?];
                let _statistics = Statistics::on()?;
                let both = if round % 2 == 0 { [0, 1] } else { [1, 0] };
                for which in both {
                    let copier = [&counted, &foreign][which];
                    let figures = statistics(agent.id(), peer.as_ref(), &empty, copier, lengths)?;
                    (seen[which].ours, seen[which].peer) = figures;
                }
            }
            agent.stop()?;
            for (windows, window) in windows.iter_mut().zip(seen) {
                windows.push(window);
            }
        }
        if mode == Mode::Off {
            off = windows;
            continue;
        }
        for (which, who) in ["counted process", "foreign process"]
            .into_iter()
            .enumerate()
        {
            rows.push(per_call(who, mode, &windows[which]));
            let added = windows[which].iter().zip(&off[which]);
            rows.push(Row::new(
                format!("system call of a {who}, {}: added time on CPU", mode.name()),
                "ns",
                added.map(|(with, without)| with.on_cpu - without.on_cpu),
            ));
        }
    }
    rows.push(
        Row::new("programs at system calls' hooks while off", "", left)
            .budget(Budget::Figure(0.0))
            .remark("without --syscalls nothing is attached, so that nobody's call costs more"),
    );
    for (which, who) in ["counted", "foreign"].into_iter().enumerate() {
        let on_cpu = off[which].iter().map(|window| window.on_cpu);
        rows.push(Row::new(
            format!("a call's time on CPU, off ({who})"),
            "ns",
            on_cpu,
        ));
    }
    Ok(rows)
}

fn per_call(who: &str, mode: Mode, windows: &[Window]) -> Row {
    let row = Row::new(
        format!("system call of a {who}, {}", mode.name()),
        "ns",
        windows.iter().map(|window| window.ours),
    );
    let peer: Vec<f64> = windows.iter().filter_map(|window| window.peer).collect();
    if peer.is_empty() {
        row.remark("no syscount here (Debian: libbpf-tools)")
    } else {
        row.peer(peer)
            .remark("the peer is libbpf-tools' syscount -L -p, which sums latency by call")
    }
}

/// What both tools cost a call of this copier.
fn statistics(
    agent: u32,
    peer: Option<&Peer>,
    empty: &[Empty; 2],
    copier: &Copier,
    lengths: Lengths,
) -> Result<(f64, Option<f64>)> {
    let total = |programs: &[Program]| {
        let totals = programs.iter().map(|program| program.total);
        totals.fold(Runs::default(), Runs::plus)
    };
    let floor = || empty[0].total().plus(empty[1].total());
    let theirs = || peer.map(|peer| total(&peer.programs()));
    let before = (floor(), total(&programs(agent)), theirs());
    copier.run(lengths.window)?;
    let after = (floor(), total(&programs(agent)), theirs());
    let empty = after.0.since(before.0);
    let each = empty.mean().context("no system call was seen")?;
    // A call passes both hooks.
    let calls = empty.runs as f64 / 2.0;
    let cost = |runs: Runs| (runs.nanoseconds as f64 - runs.runs as f64 * each) / calls;
    let ours = cost(after.1.since(before.1));
    let peer = after.2.zip(before.2);
    Ok((ours, peer.map(|(after, before)| cost(after.since(before)))))
}

/// The agent's programs at the hooks.
fn programs(agent: u32) -> Vec<Program> {
    let programs = programs_of(agent).into_iter();
    programs
        .filter(|program| PROGRAMS.contains(&program.name.as_str()))
        .collect()
}
