//! What a replay needs of memory does not grow with its logs. `PERJOULE_TEST_ROWS` makes them longer.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// The program alone takes a third of it.
const MOST_MEGABYTES: f64 = 40.0;
/// With a row group of Parquet, 65,536 requests, by columns.
const MOST_WITH_A_GROUP: f64 = 80.0;

/// Two devices, ten rows a second each, and a request for every four rows.
fn write_logs(folder: &Path, rows: u64) -> std::io::Result<()> {
    let mut power = BufWriter::new(File::create(folder.join("p.csv"))?);
    writeln!(power, "time_s,device,watts")?;
    let mut requests = BufWriter::new(File::create(folder.join("r.jsonl"))?);
    for row in 0..rows / 2 {
        let at = row as f64 / 10.0;
        for device in 0..2 {
            writeln!(power, "{at},GPU-{device},{}", 200 + row % 100)?;
        }
        if row % 2 == 0 {
            let (first, end) = (at + 0.2, at + 0.5 + (row % 70) as f64 / 10.0);
            writeln!(
                requests,
                "{{\"id\":\"{row}\",\"service\":\"s\",\"start_s\":{at},\"first_token_s\":{first},\
                 \"end_s\":{end},\"input_tokens\":{},\"output_tokens\":{}}}",
                100 + row % 900,
                row % 200
            )?;
        }
    }
    power.flush()?;
    requests.flush()
}

/// Runs perjoule; its peak resident size, megabytes.
#[expect(
    clippy::zombie_processes,
    reason = "wait4 reaps it, and tells what it used"
)]
fn peak(folder: &Path, arguments: &[&str]) -> f64 {
    let child = Command::new(env!("CARGO_BIN_EXE_perjoule"))
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeroes are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id() as libc::pid_t;
    // SAFETY: both pointers are valid for the call, and nobody else waits for the child.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!((waited, status), (pid, 0), "{arguments:?}");
    usage.ru_maxrss as f64 / 1024.0
}

#[test]
fn memory_is_flat_in_the_length_of_the_log() {
    let rows = std::env::var("PERJOULE_TEST_ROWS").map_or(200_000, |rows| rows.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    write_logs(folder.path(), rows).unwrap();
    let replay = [
        "replay",
        "--power",
        "p.csv",
        "--requests",
        "r.jsonl",
        "-o",
        "o.pj",
    ];
    let parquet = ["script", "o.pj", "--format", "parquet"];
    for (arguments, most) in [
        (replay.as_slice(), MOST_MEGABYTES),
        (&["report", "o.pj"], MOST_MEGABYTES),
        (&["script", "o.pj"], MOST_MEGABYTES),
        (&parquet, MOST_WITH_A_GROUP),
    ] {
        let megabytes = peak(folder.path(), arguments);
        println!("{rows} rows, {arguments:?}: {megabytes:.1} MB");
        assert!(megabytes < most, "{arguments:?}: {megabytes} MB");
    }
}
