//! `perjoule script` as a shell sees it: the same requests in every form.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn perjoule(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_perjoule"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A second of one device at 200 W, and three requests, of which the first to begin ends last.
fn record(folder: &Path) {
    let rows = (0..=30).map(|row| format!("{:.1},GPU-0,200\n", f64::from(row) / 10.0));
    let power = format!("time_s,device,watts\n{}", rows.collect::<String>());
    fs::write(folder.join("p.csv"), power).unwrap();
    let requests = r#"{"id":"long, \"one\"","service":"chat, \"EU\"","start_s":0.5,"first_token_s":0.75,"end_s":2.5,"input_tokens":900,"output_tokens":40}
{"id":"short","service":"=1+1","start_s":0.625,"first_token_s":0.875,"end_s":1.5,"input_tokens":null,"output_tokens":9}
{"id":"third","service":"chat, \"EU\"","start_s":1,"first_token_s":null,"end_s":1.25,"input_tokens":7,"output_tokens":0}
"#;
    fs::write(folder.join("r.jsonl"), requests).unwrap();
    let logs = ["--power", "p.csv", "--requests", "r.jsonl"];
    perjoule(
        folder,
        &[&["replay", "-o", "o.pj", "--idle-watts", "80"], &logs[..]].concat(),
    );
}

#[test]
fn csv_has_the_values_of_jsonl_quoted_as_rfc_4180_says() {
    let folder = tempfile::tempdir().unwrap();
    record(folder.path());
    let jsonl = perjoule(folder.path(), &["script", "o.pj", "--format", "jsonl"]);
    let lines: Vec<Value> = jsonl
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let text = perjoule(folder.path(), &["script", "o.pj", "--format", "csv"]);
    let mut rows = csv::Reader::from_reader(text.as_bytes());
    let header = rows.headers().unwrap().clone();
    let columns: Vec<&str> = header.iter().collect();
    assert_eq!(
        columns.join(","),
        "id,service,route,code,outcome,start_s,first_token_s,end_s,chunks,tokens_in,tokens_out,\
         gpu_uj,cpu_uj,dram_uj,class,error_ratio"
    );
    let rows: Vec<csv::StringRecord> = rows.records().collect::<Result<_, _>>().unwrap();
    assert_eq!((rows.len(), lines.len()), (3, 3));
    for (row, line) in rows.iter().zip(&lines) {
        for (column, value) in columns.iter().zip(row) {
            let told = match column.strip_suffix("_uj") {
                Some(part) => &line["energy_uj"][part],
                None => &line[column],
            };
            match told {
                Value::Null => assert_eq!(value, "", "{column} of {line}"),
                // A spreadsheet takes what begins so for a formula.
                Value::String(text) if text.starts_with('=') => {
                    assert_eq!(value, format!("'{text}"))
                }
                Value::String(text) => assert_eq!(value, text, "{column} of {line}"),
                number => assert_eq!(value, number.to_string(), "{column} of {line}"),
            }
        }
    }
    assert!(
        text.contains("\n\"long, \"\"one\"\"\",\"chat, \"\"EU\"\"\","),
        "{text}"
    );
}

#[test]
fn requests_come_in_the_order_of_the_log_and_not_of_their_ends() {
    let folder = tempfile::tempdir().unwrap();
    record(folder.path());
    let text = perjoule(folder.path(), &["script", "o.pj"]);
    let ids: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone())
        .collect();
    assert_eq!(ids, ["long, \"one\"", "short", "third"]);
}
