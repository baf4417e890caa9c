//! What a process uses: CPU time, memory, and what it takes to scrape it.

use std::fs;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::project::get;

/// CPU time of all its threads so far. A thread that has ended is not in it: the agent's threads
/// live as long as it does.
pub(super) fn cpu_time(process: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let on_cpu = text.split_whitespace().next();
        nanoseconds += on_cpu.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Percent of one core over the next `time`.
pub(crate) fn percent_of_a_core(process: u32, time: Duration) -> Result<f64> {
    let start = Instant::now();
    let before = cpu_time(process)?;
    sleep(time);
    let used = cpu_time(process)?.saturating_sub(before);
    Ok(100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64())
}

/// Resident memory, in MB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resident {
    pub(super) now: f64,
    /// The most since it was started.
    pub(super) peak: f64,
}

pub(super) fn resident(process: u32) -> Result<Resident> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let megabytes = |name: &str| {
        let kib: f64 = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
            .and_then(|kib| kib.parse().ok())
            .with_context(|| format!("the kernel states no {name}"))?;
        anyhow::Ok(kib * 1_024.0 * 1e-6)
    };
    Ok(Resident {
        now: megabytes("VmRSS:")?,
        peak: megabytes("VmHWM:")?,
    })
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) success: bool,
    /// The most memory it had, MB.
    pub(super) peak_mb: f64,
}

/// Waits for a process.
pub(super) fn wait(child: Child) -> Result<Ended> {
    let mut status = 0;
    // SAFETY: a `rusage` is plain numbers, for which zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid to write; the child was not waited for.
    let waited = unsafe {
        libc::wait4(
            child.id() as libc::pid_t,
            &raw mut status,
            0,
            &raw mut usage,
        )
    };
    if waited < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot wait for a process");
    }
    Ok(Ended {
        success: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        peak_mb: usage.ru_maxrss as f64 * 1_024.0 * 1e-6,
    })
}

/// Scrapes of `/metrics`.
#[derive(Debug)]
pub(super) struct Scrapes {
    /// Sorted, in milliseconds.
    pub(super) milliseconds: Vec<f64>,
    pub(super) bytes: usize,
    pub(super) series: usize,
}

/// True if `/metrics` shows energy in an account.
pub(super) fn has_figures(url: &str) -> Result<bool> {
    let is_figure = |line: &str| {
        let value = line
            .strip_prefix("perjoule_energy_account_joules_total{")
            .and_then(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
        value.is_some_and(|value| value > 0.0)
    };
    Ok(get(url)?.lines().any(is_figure))
}

/// Scrapes `count` times, each on a connection of its own.
pub(super) fn scrape(url: &str, count: usize) -> Result<Scrapes> {
    let mut body = String::new();
    let mut milliseconds = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        body = get(url)?;
        milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
        // As far apart as keeps the agent's own work from piling up.
        sleep(Duration::from_millis(5));
    }
    milliseconds.sort_by(f64::total_cmp);
    Ok(Scrapes {
        milliseconds,
        bytes: body.len(),
        series: body
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .count(),
    })
}
