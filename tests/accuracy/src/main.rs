//! Tries every case, prints the page, and fails where something does not hold.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::{fs, thread};

use accuracy::cases::{self, Case};
use accuracy::observer::Run;
use accuracy::page;
use anyhow::{Context as _, Result, bail};
use clap::Parser;

#[derive(Parser)]
struct Options {
    /// Write the page to this file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Where the seeds begin: are others as good?
    #[arg(long, value_name = "SEED", default_value_t = 101)]
    first_seed: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let first = options.first_seed;
    let cases = cases::all();
    let seeds = cases.iter().flat_map(|case| case.seeds(first));
    let seeds = first..seeds.max().map_or(first, |last| last + 1);
    let rows: Vec<page::Row> = cases.iter().cloned().zip(run_all(&cases, first)).collect();
    let page = page::write(&rows, &seeds);
    println!("{page}");
    if let Some(file) = options.write {
        fs::write(&file, &page).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut exceeded: Vec<String> = rows
        .iter()
        .flat_map(|(case, run)| case.exceeded(run))
        .collect();
    let within: usize = rows.iter().map(|(_, run)| run.sums_within()).sum();
    let sums: usize = rows.iter().map(|(_, run)| run.sums.len()).sum();
    if (within as f64) < cases::SUMS_COVERED * sums as f64 {
        exceeded.push(format!(
            "{within} of {sums} services' sums within their bounds"
        ));
    }
    if !exceeded.is_empty() {
        bail!("does not hold:\n  {}", exceeded.join("\n  "));
    }
    Ok(())
}

/// Every case with every seed, on all cores, in the order of the cases.
fn run_all(cases: &[Case], first: u64) -> Vec<Run> {
    let jobs: Vec<(usize, u64)> = cases
        .iter()
        .enumerate()
        .flat_map(|(place, case)| case.seeds(first).map(move |seed| (place, seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let (sender, done) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (sender, jobs, next) = (sender.clone(), &jobs, &next);
            scope.spawn(move || {
                while let Some(&(place, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = cases[place].run(seed);
                    if sender.send(((place, seed), run)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    drop(sender);
    let mut done: Vec<((usize, u64), Run)> = done.into_iter().collect();
    // Sums of floating-point numbers depend on their order.
    done.sort_by_key(|(job, _)| *job);
    let mut runs: Vec<Vec<Run>> = cases.iter().map(|_| Vec::new()).collect();
    for ((place, _), run) in done {
        runs[place].push(run);
    }
    runs.into_iter().map(Run::joined).collect()
}
