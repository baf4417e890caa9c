//! `perjoule script` as a shell sees it: the same requests in every form.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perjoule"));
    command.args(arguments).current_dir(folder);
    command
}

fn perjoule(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = perjoule(folder, &["script", "o.pj", "--format", "jsonl"]);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What JSON has of a column.
fn told<'a>(line: &'a Value, column: &str) -> &'a Value {
    match column.strip_suffix("_uj") {
        Some(part) => &line["energy_uj"][part],
        None => &line[column],
    }
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
    let lines = lines(folder.path());
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
            match told(line, column) {
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
    let lines = lines(folder.path());
    let ids: Vec<&Value> = lines.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids, ["long, \"one\"", "short", "third"]);
}

#[test]
fn parquet_has_the_columns_of_csv_the_values_of_jsonl_and_the_facts_of_the_recording() {
    let folder = tempfile::tempdir().unwrap();
    record(folder.path());
    let path = folder.path().join("o.parquet");
    let status = command(folder.path(), &["script", "o.pj", "--format", "parquet"])
        .stdout(File::create(&path).unwrap())
        .status();
    assert!(status.unwrap().success());
    let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();

    let csv = perjoule(folder.path(), &["script", "o.pj", "--format", "csv"]);
    let about = reader.metadata().file_metadata();
    let columns: Vec<&str> = about
        .schema()
        .get_fields()
        .iter()
        .map(|f| f.name())
        .collect();
    assert_eq!(Some(columns.join(",").as_str()), csv.lines().next());

    let rows: Vec<_> = reader
        .get_row_iter(None)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let lines = lines(folder.path());
    assert_eq!((rows.len(), lines.len()), (3, 3));
    let (mut unknown, mut energy) = (0, 0);
    for (row, line) in rows.iter().zip(&lines) {
        for (column, field) in row.get_column_iter() {
            let told = told(line, column);
            match field {
                Field::Null => {
                    assert!(told.is_null(), "{column} of {line}");
                    unknown += 1;
                }
                // As it is: to no reader of this is it a formula.
                Field::Str(text) => assert_eq!(told, text, "{column} of {line}"),
                Field::Long(count) => assert_eq!(told, count, "{column} of {line}"),
                Field::Double(number) => assert_eq!(told, number, "{column} of {line}"),
                other => panic!("{column} of {line} is {other:?}"),
            }
            if let ("gpu_uj", Field::Long(part)) = (column.as_str(), field) {
                energy += part;
            }
        }
    }
    assert!(unknown > 0);

    let recording = rusqlite::Connection::open(folder.path().join("o.pj")).unwrap();
    let ledger = "SELECT sum(requests_uj) FROM intervals";
    let ledger: i64 = recording.query_row(ledger, [], |row| row.get(0)).unwrap();
    assert_eq!(energy, ledger);
    assert!(energy > 0);

    let mut meta = recording
        .prepare("SELECT 'perjoule.' || key, value FROM meta")
        .unwrap();
    let pair = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let meta: BTreeMap<String, Option<String>> = meta
        .query_map([], pair)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let facts = about.key_value_metadata().unwrap().iter().cloned();
    let facts: BTreeMap<_, _> = facts.map(|fact| (fact.key, fact.value)).collect();
    assert_eq!(facts, meta);
    assert_eq!(facts["perjoule.simulated"].as_deref(), Some("0"));
}

#[test]
fn what_is_no_text_is_not_written_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    record(folder.path());
    for format in ["parquet", "pprof"] {
        let (mut master, mut slave) = (0, 0);
        let null = std::ptr::null_mut();
        // SAFETY: both descriptors are written by the call; no name, settings or size are given.
        let failed = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                null,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        assert_eq!(failed, 0);
        // SAFETY: openpty has just opened both for nobody else.
        let (shown, terminal) =
            unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let child = command(folder.path(), &["script", "o.pj", "--format", format])
            .stdout(terminal)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut bytes = Vec::new();
        // It ends with an error (EIO): nobody has the terminal open any more.
        let _closed = File::from(shown).read_to_end(&mut bytes);
        assert_eq!(bytes, b"");
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(
            said.contains("stdout is a terminal; add `> FILE`"),
            "{said}"
        );
    }
}
