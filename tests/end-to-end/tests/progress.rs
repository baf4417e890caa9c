//! How long work looks on a terminal.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use end_to_end::binary;
use end_to_end::terminal::Terminal;

const ROWS: u32 = 1_500_000;

/// Two logs that take a while to read.
fn logs(folder: &tempfile::TempDir) -> Command {
    let mut power = "time_s,device,watts\n".to_owned();
    for row in 0..ROWS {
        let _ = writeln!(power, "{},gpu0,{}", f64::from(row) / 100.0, 80 + row % 100);
    }
    fs::write(folder.path().join("power.csv"), power).expect("a log");
    let request = "{\"id\":\"a\",\"service\":\"s\",\"start_s\":1,\"first_token_s\":2,\"end_s\":3,\
                   \"input_tokens\":5,\"output_tokens\":5}\n";
    fs::write(folder.path().join("requests.jsonl"), request).expect("a log");
    let mut command = Command::new(binary("perjoule"));
    command
        .args([
            "replay",
            "--power",
            "power.csv",
            "--requests",
            "requests.jsonl",
        ])
        .current_dir(folder.path());
    command
}

#[test]
fn long_work_shows_on_a_terminal_how_far_it_is_and_leaves_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut terminal = Terminal::start(logs(&folder), 80, 24);
    let is_shown = |text: &str| text.contains("reading") && text.contains(" of ");
    terminal.wait(Duration::from_secs(60), "how far it is", is_shown);
    let plain = terminal.screen(|screen| {
        let mut cells = (0..80).filter_map(|column| screen.cell(0, column));
        cells.all(|cell| (cell.fgcolor(), cell.bgcolor()) == Default::default())
    });
    assert!(plain, "it has colours");
    let (status, text) = terminal.end();
    assert!(status.success(), "{text}");
    assert!(text.contains("1 requests booked"), "{text}");
    assert!(!text.contains("reading"), "{text}");
}

#[test]
fn where_stderr_is_no_terminal_nothing_of_it_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = logs(&folder)
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(
        error.lines().all(|line| line.starts_with("perjoule: ")),
        "{error}"
    );
}
