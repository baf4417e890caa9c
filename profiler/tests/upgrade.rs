//! What 0.1.0 wrote is read by today's code: docs/compatibility.md promises it. The files are of a real
//! run of 0.1.0 on the simulated stack, and are never written again. (The state file's test is beside its
//! code, in `agent/state.rs`.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A copy of the recording: SQLite puts files beside one that it reads.
fn recording(folder: &Path) -> PathBuf {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade/0.1.0.pj");
    let copy = folder.join("0.1.0.pj");
    fs::copy(kept, &copy).expect("a copy");
    copy
}

fn perjoule(arguments: &[&str], file: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_perjoule"))
        .args(arguments)
        .arg(file)
        .output()
        .expect("it can be started");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_recording_of_0_1_0_has_the_same_requests_and_energy() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = recording(folder.path());
    let report: Value =
        serde_json::from_str(&perjoule(&["report", "--format", "json"], &file)).expect("JSON");
    assert_eq!(report["ledger"]["residual_microjoules"], 0);
    assert_eq!(report["simulated"], true);
    let service = &report["services"][0];
    assert_eq!(service["requests"]["total"], REQUESTS, "{service}");
    let energy = service["energy_j"]["gpu"].as_f64().expect("a GPU's energy");
    assert!((energy - GPU_JOULES).abs() < 1e-6, "{energy}");
}

#[test]
fn its_requests_and_stacks_are_printed_in_every_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = recording(folder.path());
    let lines = perjoule(&["script", "--format", "jsonl"], &file);
    let served = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|request| request["route"] != "health");
    assert_eq!(served.count() as u64, REQUESTS);
    let page = perjoule(&["report", "--format", "md"], &file);
    assert!(page.contains("| J per request, mean | 277.3 |"), "{page}");
    assert!(
        perjoule(&["script", "--format", "folded"], &file)
            .lines()
            .count()
            > 10
    );
    let waits = perjoule(&["script", "--off-cpu", "--format", "folded"], &file);
    assert!(waits.lines().count() > 1, "{waits}");
}

/// As 0.1.0 itself told them.
const REQUESTS: u64 = 8;
const GPU_JOULES: f64 = 2_217.694_815;
