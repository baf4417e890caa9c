//! `perjoule diff` and `perjoule explain` as a shell sees them: what they print, what they exit with.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::runs::{Run, Runs};

const DEMO: Run = Run {
    rate: 2.5,
    seconds: 40.0,
    drift: 0.01,
};

fn perjoule(verb: &str, files: &[&Path], more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_perjoule"))
        .arg(verb)
        .args(files)
        .args(more)
        .output()
        .unwrap()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_build_fails_on_a_change_and_not_on_noise() {
    let runs = Runs::new();
    let before = runs.record(DEMO, 1, 1, 1.0);
    let again = runs.record(DEMO, 1, 2, 1.0);
    let after = runs.record(DEMO, 1, 3, 1.2);
    let code = |files: &[&Path], more: &[&str]| perjoule("diff", files, more).status.code();
    let condition = ["--fail-if", "j_per_request>+5%"];
    assert_eq!(code(&[&before, &after], &condition), Some(1));
    assert_eq!(code(&[&before, &again], &condition), Some(0));
    assert_eq!(code(&[&after, &before], &condition), Some(0));
    assert_eq!(
        code(&[&before, &after], &[]),
        Some(0),
        "a change alone is no failure"
    );
    let two = [
        "--fail-if",
        "ttft_s>+400%",
        "--fail-if",
        "j_per_request>+5%",
    ];
    assert_eq!(code(&[&before, &after], &two), Some(1));
    let beyond = ["--fail-if", "j_per_request>+50%"];
    assert_eq!(code(&[&before, &after], &beyond), Some(0));
    let any = ["--fail-if", "j_per_request>-50%", "--regardless"];
    assert_eq!(
        code(&[&before, &again], &any),
        Some(1),
        "significant or not"
    );

    let output = perjoule("diff", &[&before, &after], &condition);
    let table = said(&output.stdout);
    assert!(table.contains("J/request is 2"), "{table}");
    assert!(table.contains("% higher in B"), "{table}");
    assert!(table.contains("SIMULATED GPU"), "{table}");
    assert!(table.contains("j_per_request>+5%, vllm: met"), "{table}");
    let error = said(&output.stderr);
    assert_eq!(error, "perjoule: vllm: j_per_request>+5% is met\n");
}

#[test]
fn json_and_markdown_say_what_the_table_says() {
    let runs = Runs::new();
    let before = runs.record(DEMO, 1, 1, 1.0);
    let after = runs.record(DEMO, 1, 3, 1.2);
    let json = perjoule("diff", &[&before, &after], &["--format", "json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["alpha"], 0.01);
    assert_eq!(json["same_meters"], true);
    let service = &json["services"][0];
    assert_eq!(service["service"], "vllm");
    assert_eq!(service["load"], "same");
    let deciding = &service["figures"][0];
    assert_eq!(deciding["figure"], "j_per_request");
    assert_eq!(deciding["verdict"], "higher");
    let [a, b, change, low, high] =
        ["a", "b", "change", "low", "high"].map(|key| deciding[key].as_f64().unwrap());
    assert!((b / a - 1.0 - change).abs() < 1e-9);
    assert!(
        low < change && change < high && low > 0.1 && high < 0.3,
        "{deciding}"
    );
    let shown = format!("{:+.1} %", change * 100.0);
    for format in ["md", "table"] {
        let text = perjoule("diff", &[&before, &after], &["--format", format]);
        let text = said(&text.stdout);
        assert!(text.contains(&shown), "{text}");
    }
}

#[test]
fn too_short_a_run_gets_no_verdict_and_decides_nothing() {
    let runs = Runs::new();
    let before = runs.record(DEMO, 1, 1, 1.0);
    let short = Run {
        seconds: 5.0,
        ..DEMO
    };
    let short = runs.record(short, 2, 2, 3.0);
    let output = perjoule(
        "diff",
        &[&before, &short],
        &["--fail-if", "j_per_request>+5%"],
    );
    assert_eq!(output.status.code(), Some(2));
    let table = said(&output.stdout);
    assert!(
        table.contains("Not enough data for a verdict on J/request: B: "),
        "{table}"
    );
    assert!(!table.contains("higher in B"), "{table}");
    let error = said(&output.stderr);
    assert!(
        error.contains("not decided") && error.contains("record longer"),
        "{error}"
    );
    let bare = ["--fail-if", "j_per_request>+5%", "--regardless"];
    assert_eq!(
        perjoule("diff", &[&before, &short], &bare).status.code(),
        Some(1)
    );
}

#[test]
fn what_cannot_be_compared_is_trouble_and_says_what_to_do() {
    let runs = Runs::new();
    let before = runs.record(DEMO, 1, 1, 1.0);
    let absent = before.with_file_name("absent.pj");
    for (files, more, expected) in [
        (
            [&*before, &*absent],
            vec![],
            "absent.pj: No such file or directory",
        ),
        (
            [&*before, &*before],
            vec!["--fail-if", "joules>5%"],
            "these are: j_per_request",
        ),
        (
            [&*before, &*before],
            vec!["--fail-if", "j_per_request>5"],
            "'j_per_request>+5%'",
        ),
        ([&*before, &*before], vec!["--alpha", "2"], "e.g. 0.01"),
        ([&*before, &*before], vec!["--regardless"], "--fail-if"),
        (
            [&*before, &*before],
            vec!["--service", "tgi"],
            "their services: vllm",
        ),
    ] {
        let output = perjoule("diff", &files, &more);
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        let error = said(&output.stderr);
        assert!(error.contains(expected), "{more:?}: {error}");
    }
}

#[test]
fn the_costliest_request_is_explained_and_an_unknown_one_is_answered_with_others() {
    let runs = Runs::new();
    let file = runs.record(DEMO, 1, 1, 1.0);
    let json = perjoule(
        "explain",
        &[&file],
        &["--costliest", "2", "--format", "json"],
    );
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let [first, second] = [0, 1].map(|place| json["requests"][place].clone());
    let total = |request: &Value| request["energy_uj"]["total"].as_u64().unwrap();
    assert!(total(&first) >= total(&second));
    assert_eq!(first["position"]["energy"], 1.0);
    let id = first["id"].as_str().unwrap();
    let text = said(&perjoule("explain", &[&file], &[id]).stdout);
    assert!(
        text.contains(&format!(
            "request {id} of vllm: chat_completions, 2xx, done"
        )),
        "{text}"
    );
    assert!(text.contains("more than 100 % of "), "{text}");

    let unknown = perjoule("explain", &[&file], &["4711"]);
    assert_eq!(unknown.status.code(), Some(1));
    let error = said(&unknown.stderr);
    assert!(
        error.contains("no request has the id `4711`; nearest: "),
        "{error}"
    );
    assert!(error.contains("--costliest 5"), "{error}");
    let elsewhere = perjoule(
        "explain",
        &[&file],
        &["--costliest", "1", "--service", "tgi"],
    );
    let error = said(&elsewhere.stderr);
    assert!(
        error.contains("no service is called `tgi`; its services: vllm"),
        "{error}"
    );
    assert_eq!(perjoule("explain", &[&file], &[]).status.code(), Some(2));
}
