//! `cargo xtask gpu-check` as it is run, on the simulated GPU and the simulated serving stack, where
//! what it must find is known. `PERJOULE_TEST_BINARIES` names the folder of the built binaries;
//! `cargo xtask test` builds them and sets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What inference-sim's engine takes for one alone, above idle: 2,000 prompt tokens at 397 W, then
/// 15 steps of 2.342 J; 64 prompt tokens, then 127 steps.
const LONG_PROMPT_J: f64 = 56.714 + 15.0 * 2.342_056;
const LONG_ANSWER_J: f64 = 1.815 + 127.0 * 2.342_056;

fn gpu_check(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("gpu-check")
        .args(arguments)
        .output()
        .expect("xtask can be started")
}

/// The numbers of the table's row that begins so; what is no number is left out.
fn row(page: &str, name: &str) -> Vec<f64> {
    let begins = format!("| {name} |");
    let line = page.lines().find(|line| line.starts_with(&begins));
    let line = line.unwrap_or_else(|| panic!("no row {name} in:\n{page}"));
    line.split('|')
        .skip(2)
        .filter_map(|cell| cell.trim().parse().ok())
        .collect()
}

fn is_near(found: f64, expected: f64, ratio: f64) -> bool {
    (found / expected - 1.0).abs() <= ratio
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a log");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// What the engine says of the requests of a kind in the mixed phase: joules of one.
fn true_joules(folder: &Path, kind: &str) -> f64 {
    let truth = lines(&folder.join("truth.jsonl"));
    let prefix = format!("mixed/{kind}/");
    let mut energies = Vec::new();
    for request in lines(&folder.join("solo.jsonl")) {
        if !request["id"]
            .as_str()
            .is_some_and(|id| id.starts_with(&prefix))
        {
            continue;
        }
        let start_s = request["start_s"].as_f64().expect("a start");
        let apart = |truth: &&Value| {
            let same = truth["prompt_tokens"] == request["input_tokens"];
            let start = truth["start_ns"].as_f64().expect("a start") * 1e-9;
            (start - start_s).abs() + if same { 0.0 } else { 1e9 }
        };
        let nearest = truth
            .iter()
            .min_by(|a, b| apart(a).total_cmp(&apart(b)))
            .expect("the engine served something");
        energies.push(nearest["energy_uj"][0].as_f64().expect("energy") * 1e-6);
    }
    energies.iter().sum::<f64>() / energies.len() as f64
}

/// What the engine says a square wave's mean power was, from the start of its first burst to that of
/// its last; a burst is a prompt of as many tokens as half of a period takes.
fn wave_truth_w(folder: &Path, period_ms: &str) -> f64 {
    const IDLE_W: f64 = 83.0;
    const TOKENS_PER_MS: f64 = 14.0;
    let tokens = period_ms.parse::<f64>().expect("a period") / 2.0 * TOKENS_PER_MS;
    let bursts: Vec<(f64, f64)> = lines(&folder.join("truth.jsonl"))
        .iter()
        .filter(|burst| burst["prompt_tokens"].as_f64() == Some(tokens))
        .map(|burst| {
            let number = |value: &Value| value.as_f64().expect("a number");
            (
                number(&burst["start_ns"]) * 1e-9,
                number(&burst["energy_uj"][0]) * 1e-6,
            )
        })
        .collect();
    let [(first_s, _), .., (last_s, last_j)] = bursts[..] else {
        panic!("{period_ms} ms: {bursts:?}");
    };
    let joules: f64 = bursts.iter().map(|(_, joules)| joules).sum();
    IDLE_W + (joules - last_j) / (last_s - first_s)
}

/// The page of some parts, and the folder with what they left; `None` without built binaries.
fn simulated(parts: &str) -> Option<(String, tempfile::TempDir)> {
    let Some(binaries) = std::env::var_os("PERJOULE_TEST_BINARIES").map(PathBuf::from) else {
        eprintln!("skipped: PERJOULE_TEST_BINARIES names no built binaries");
        return None;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let begun = Instant::now();
    let output = gpu_check(&[
        "--load",
        "sim",
        "--scale",
        "0.1",
        "--pairs",
        "1",
        "--only",
        parts,
        "--binaries",
        binaries.to_str().expect("UTF-8"),
        "--folder",
        folder.path().to_str().expect("UTF-8"),
    ]);
    let took = begun.elapsed();
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{page}\ntook {took:?}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(page.contains("(simulated)"));
    let skipped: Vec<&str> = page
        .lines()
        .filter(|line| line.contains("skipped"))
        .collect();
    assert!(skipped.is_empty() || !is_root(), "{skipped:?}");
    assert!(took < Duration::from_secs(40), "{took:?}");
    Some((page, folder))
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn power_is_that_of_the_simulated_gpu_idle_full_and_half_of_the_time_full() {
    let Some((page, folder)) = simulated("calls,ticks,levels,waves") else {
        return;
    };
    assert!(row(&page, "energy")[3] >= 1_000.0);
    let ticks = row(&page, "energy counter");
    assert!(is_near(ticks[2], 100.0, 0.03), "{ticks:?}");

    assert!(is_near(row(&page, "no process of ours")[0], 83.0, 0.05));
    assert!(is_near(
        row(&page, "a process that holds a context")[0],
        83.0,
        0.05
    ));
    assert!(is_near(row(&page, "full load")[0], 480.0, 0.08));

    for period in ["20", "100", "250", "1000"] {
        let wave = row(&page, period);
        // Half of the time 480 W, else 83 W: 281.5 W, where this machine keeps the time.
        let truth_w = wave_truth_w(folder.path(), period);
        assert!(
            is_near(wave[2], truth_w, 0.06),
            "{period} ms: {wave:?}, truly {truth_w} W"
        );
        assert!(
            (wave[0] - wave[0].round()).abs() < 0.1,
            "{period} ms: {wave:?}"
        );
    }
}

#[test]
fn the_ledger_closes_and_requests_cost_in_company_what_the_engine_says() {
    let Some((page, folder)) = simulated("closure,solo,agent") else {
        return;
    };
    assert!(
        page.contains("J: 0 µJ more than was booked. Residual 0 µJ."),
        "{page}"
    );
    let sum = row(&page, "sum")[0];
    let parts: f64 = ["idle", "requests", "unattributed"]
        .map(|account| row(&page, account)[0])
        .iter()
        .sum();
    assert!((parts - sum).abs() < 0.005, "{parts} of {sum}");
    assert!(row(&page, "requests")[0] > 0.5 * sum);
    if is_root() {
        let saw = page
            .lines()
            .find(|line| line.contains("The agent beside it saw"));
        let words: Vec<&str> = saw.expect("the agent's part").split_whitespace().collect();
        assert_eq!(words[5], words[7], "{words:?}");
        assert!(
            page.contains("(+0.000 J)") || page.contains("(-0.000 J)"),
            "{page}"
        );
        assert!(page.contains("Lost in the mean"), "{page}");
    }

    for (kind, alone) in [
        ("long-prompt", LONG_PROMPT_J),
        ("long-answer", LONG_ANSWER_J),
    ] {
        let found = row(&page, kind);
        assert!(is_near(found[1], alone, 0.05), "{kind} alone: {found:?}");
        assert!(
            is_near(found[2], alone, 0.05),
            "{kind} alone, booked: {found:?}"
        );
        let mixed = true_joules(folder.path(), kind);
        assert!(
            is_near(found[4], mixed, 0.08),
            "{kind}, {mixed} J: {found:?}"
        );
    }
}

#[test]
fn what_is_simulated_is_never_written_down_as_measured() {
    let Some(binaries) = std::env::var_os("PERJOULE_TEST_BINARIES").map(PathBuf::from) else {
        eprintln!("skipped: PERJOULE_TEST_BINARIES names no built binaries");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.md");
    let output = gpu_check(&[
        "--load",
        "sim",
        "--only",
        "calls",
        "--append",
        page.to_str().expect("UTF-8"),
        "--binaries",
        binaries.to_str().expect("UTF-8"),
    ]);
    assert!(!output.status.success());
    assert!(!page.exists());
}

#[test]
fn a_machine_without_a_gpu_is_no_failure() {
    let output = gpu_check(&["--library", "/nonexistent/libnvidia-ml.so.1"]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("no NVIDIA GPU here"), "{said}");
}
