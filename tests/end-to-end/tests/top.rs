//! `perjoule top` in a terminal, over the simulated stack. Root, real kernel, simulated GPU.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use end_to_end::agent::perjoule;
use end_to_end::stack::Stack;
use end_to_end::terminal::Terminal;
use end_to_end::{binary, is_root, scaled};

const SOON: Duration = Duration::from_secs(20);
const SERVICE: &str = "inference-sim";

fn top(stack: &Stack, arguments: &[&str], environment: &[(&str, &str)]) -> Terminal {
    let mut command = stack.perjoule();
    command
        .arg("top")
        .args(arguments)
        .envs(environment.iter().copied());
    Terminal::start(command, 80, 24)
}

/// The column of a service's row below a heading, which is right-aligned; `None` while there is no figure.
fn figure(text: &str, heading: &str) -> Option<f64> {
    let headings = text.lines().find(|line| line.contains("SERVICE"))?;
    let end = headings.find(heading)? + heading.len();
    let row = text.lines().find(|line| line.contains(SERVICE))?;
    let cell: String = row.chars().take(end).collect();
    cell.split_whitespace().last()?.parse().ok()
}

/// Seconds of CPU time of a process, all its threads.
fn cpu_seconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let nanos = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    let times = threads.filter_map(|thread| nanos(thread.ok()?.path().join("schedstat")));
    times.sum::<f64>() * 1e-9
}

#[test]
fn a_service_appears_with_its_joules_and_keys_and_sizes_do_what_they_should() {
    if !is_root("top") {
        return;
    }
    let stack = Stack::start();
    let mut load = stack.load(3.0, 60);
    let start = Instant::now();
    let mut top = top(&stack, &[], &[]);
    let text = top.wait(SOON, "joules per request", |text| {
        figure(text, "J/REQ").is_some_and(|joules| joules > 1.0)
    });
    println!("after {:.1} s:\n{text}", start.elapsed().as_secs_f64());
    assert!(text.contains("SIMULATED GPU"), "{text}");
    assert!(text.contains("residual 0 µJ"), "{text}");
    assert!(text.contains("lost 0"), "{text}");
    assert!(
        figure(&text, "REQ/S").is_some_and(|rate| rate > 0.0),
        "{text}"
    );
    // A window that is full, and all of it under load.
    let text = top.wait(SOON, "tokens", |text| {
        figure(text, "TOK/S").is_some_and(|rate| rate > 0.0)
            && figure(text, "J/OUT").is_some_and(|joules| joules > 0.0)
            && figure(text, "RUNQ").is_some()
    });
    let watts = figure(&text, " W").expect("watts");
    let (rate, each) = (figure(&text, "REQ/S"), figure(&text, "J/REQ"));
    println!("{watts} W, {rate:?} requests/s, {each:?} J each\n{text}");

    top.keys(">");
    top.wait(SOON, "sorted by the next column", |text| {
        text.contains("by J/REQ↓")
    });
    top.keys("r");
    top.wait(SOON, "reversed", |text| text.contains("by J/REQ↑"));
    top.keys("/nothing\r");
    top.wait(SOON, "filtered", |text| {
        text.contains("filter nothing") && !text.contains(SERVICE)
    });
    top.keys("\x1b");
    top.wait(SOON, "not filtered", |text| text.contains(SERVICE));
    top.keys("?");
    top.wait(SOON, "the help", |text| {
        text.contains("KEYS") && text.contains("COLUMNS")
    });
    top.keys("?");
    top.wait(SOON, "no help", |text| !text.contains("KEYS"));

    top.keys("\r");
    let text = top.wait(SOON, "one service", |text| {
        text.contains("SLOWEST requests") && text.lines().any(|line| line.contains("done"))
    });
    println!("{text}");
    assert!(text.contains('█') || text.contains('▇'), "its past: {text}");
    top.keys("\t");
    top.wait(SOON, "the costliest", |text| {
        text.contains("COSTLIEST requests")
    });
    for (columns, rows) in [(60, 15), (40, 8), (200, 50), (80, 24)] {
        top.resize(columns, rows);
        top.wait(SOON, "another size", |text| {
            let footer = text.lines().nth(usize::from(rows) - 1).unwrap_or_default();
            match rows {
                8 => text.contains("too small: 40x8"),
                _ => text.contains("COSTLIEST") && footer.contains("Esc back"),
            }
        });
        top.keys("\x1b");
        if rows != 8 {
            top.wait(SOON, "services at that size", |text| {
                text.contains("SERVICE")
            });
            println!("{columns}x{rows}:\n{}", top.text());
        }
        top.keys("\r");
    }
    top.keys("\x1b");
    top.wait(SOON, "services again", |text| text.contains("SERVICE"));

    top.keys(" ");
    let paused = top.wait(SOON, "paused", |text| text.contains("PAUSED"));
    thread::sleep(scaled(Duration::from_secs(3)));
    assert_eq!(top.text(), paused, "it stands still");
    top.keys("p");
    top.wait(SOON, "it goes on", |text| !text.contains("PAUSED"));

    let before = cpu_seconds(top.pid());
    let begun = Instant::now();
    thread::sleep(Duration::from_secs(5));
    let used = (cpu_seconds(top.pid()) - before) / begun.elapsed().as_secs_f64();
    println!(
        "top, drawing once a second: {:.2} % of a core",
        used * 100.0
    );
    assert!(used < 0.1, "{used}");

    top.keys("q");
    let (status, text) = top.end();
    assert!(status.success(), "{status}: {text}");
    assert!(top.is_restored(), "{text}");
    let _ = load.kill();
    let _ = load.wait();
}

#[test]
fn signals_end_it_and_leave_the_terminal_as_it_was() {
    if !is_root("top") {
        return;
    }
    let stack = Stack::start();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut top = top(&stack, &["--interval", "0.5"], &[]);
        top.wait(SOON, "it draws", |text| text.contains("SERVICE"));
        assert!(top.screen(|screen| screen.alternate_screen()));
        assert!(!top.is_restored(), "while it draws");
        top.signal(signal);
        let (status, text) = top.end();
        assert!(status.success(), "{status}: {text}");
        assert!(top.is_restored(), "{text}");
    }
}

#[test]
fn with_no_color_nothing_is_coloured() {
    if !is_root("top") {
        return;
    }
    let stack = Stack::start();
    for (value, is_coloured) in [("1", false), ("", true)] {
        let mut top = top(&stack, &[], &[("NO_COLOR", value)]);
        top.wait(SOON, "it draws", |text| text.contains("SERVICE"));
        let coloured = top.screen(|screen| {
            let cells = (0..24).flat_map(|row| (0..80).map(move |column| (row, column)));
            let mut cells = cells.filter_map(|(row, column)| screen.cell(row, column));
            cells.any(|cell| cell.fgcolor() != vt100::Color::Default)
        });
        assert_eq!(coloured, is_coloured, "NO_COLOR={value}");
        // ^C, as a key.
        top.keys("\x03");
        let (status, text) = top.end();
        assert!(status.success() && top.is_restored(), "{status}: {text}");
    }
}

#[test]
fn a_pipe_is_told_what_to_use_instead() {
    let ended = perjoule(&["top"]);
    assert_eq!(ended.status.code(), Some(64), "{ended:?}");
    assert!(ended.log.contains("perjoule stat"), "{ended:?}");
    assert!(ended.out.is_empty(), "{ended:?}");
}

#[test]
fn what_makes_no_sense_is_told_before_anything_is_drawn() {
    let output = Command::new(binary("perjoule"))
        .args(["top", "--interval", "0"])
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("0.1 to 3600"), "{told}");
}
