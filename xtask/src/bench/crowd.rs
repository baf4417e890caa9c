//! The agent on a machine with many threads and many processes: what it costs must follow what
//! happens, not what exists.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::servers::{Agent, Inference, Server as _};
use super::table::{Budget, Row};
use super::{Lengths, bpf, memory, step, usage};
use crate::demo::stack::Process;

/// Threads of the one service, and processes beside it.
const THREADS: u32 = 1_000;
const PROCESSES: u32 = 10_000;

/// Each thread wakes as often as one that waits for a queue with a time limit.
const PAUSE: Duration = Duration::from_millis(100);

/// All figures.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    step("the agent beside a thousand threads");
    let mut rows = threads(folder, lengths)?;
    step("the agent beside ten thousand processes");
    rows.extend(processes(folder, lengths)?);
    Ok(rows)
}

fn threads(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let service = Process::start(
        "crowd",
        Command::new(std::env::current_exe()?).args(["bench-crowd", &THREADS.to_string()]),
        folder,
    )?;
    let agent = Agent::of_process(service.id(), folder)?;
    sleep(lengths.ramp);
    let cpu = usage::percent_of_a_core(agent.id(), lengths.load)?;
    let resident = usage::resident(agent.id())?;
    let mebibytes = bpf::map_bytes_of(agent.id()) as f64 / f64::from(1 << 20);
    agent.stop()?;
    let when = format!("a service of {THREADS} threads");
    let mut rows = vec![
        Row::new(format!("agent CPU, {when}"), "% of a core", [cpu]).budget(Budget::Figure(2.0)),
    ];
    rows.extend(memory(&when, &[resident]));
    rows.push(
        Row::new(
            format!("kernel memory of all maps, {when}"),
            "MiB",
            [mebibytes],
        )
        .budget(Budget::Figure(32.0)),
    );
    Ok(rows)
}

fn processes(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let server = Inference::start(folder)?;
    let crowd = Crowd::start(PROCESSES)?;
    let agent = server.agent(None)?;
    sleep(lengths.ramp);
    let cpu = usage::percent_of_a_core(agent.id(), lengths.load)?;
    let resident = usage::resident(agent.id())?;
    agent.stop()?;
    drop(crowd);
    let when = format!("{PROCESSES} processes beside the service");
    let mut rows = vec![
        Row::new(format!("agent CPU, {when}"), "% of a core", [cpu]).budget(Budget::Figure(2.0)),
    ];
    rows.extend(memory(&when, &[resident]));
    Ok(rows)
}

/// Processes that sleep until the value is dropped.
struct Crowd(Vec<Child>);

impl Crowd {
    fn start(count: u32) -> Result<Self> {
        let mut crowd = Self(Vec::new());
        for _ in 0..count {
            let child = Command::new("sleep")
                .arg("infinity")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .context("cannot start ten thousand processes")?;
            crowd.0.push(child);
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// The hidden task by which the bench starts a process of many threads, which it ends itself.
pub(crate) fn run(threads: u32) -> Result<()> {
    for _ in 0..threads {
        spawn(|| {
            loop {
                sleep(PAUSE);
            }
        });
    }
    loop {
        sleep(Duration::from_secs(60));
    }
}
