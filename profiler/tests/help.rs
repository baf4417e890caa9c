//! What people read: the help of each verb, the table of a recording, and representative errors, as they were looked
//! at last. After a change: `PERJOULE_WRITE_DOCS=1 cargo test -p profiler --test help` writes them, and
//! `git diff` shows what became of them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Holds a text against the file of this name.
fn hold(name: &str, text: &str) -> Result<(), String> {
    let path = root().join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("PERJOULE_WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        fs::write(&path, text).expect("the file");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    if kept == text {
        return Ok(());
    }
    Err(format!("{name} differs; it is now:\n{text}"))
}

fn hold_all<T>(all: impl IntoIterator<Item = (T, String)>)
where
    T: AsRef<str>,
{
    let wrong: Vec<String> = all
        .into_iter()
        .filter_map(|(name, text)| hold(name.as_ref(), &text).err())
        .collect();
    assert!(
        wrong.is_empty(),
        "PERJOULE_WRITE_DOCS=1 cargo test -p profiler --test help writes them\n{}",
        wrong.join("\n")
    );
}

/// A folder that everybody may read, as most are.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), everybody).expect("its permissions");
    folder
}

fn perjoule(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perjoule"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("COLUMNS", "100");
    command
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    text(&output.stdout) + &text(&output.stderr)
}

fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = perjoule(folder, arguments)
        .output()
        .expect("it can be started");
    let code = output.status.code().expect("a code");
    format!(
        "$ perjoule {}\n{}[{code}]\n",
        arguments.join(" "),
        said(&output)
    )
}

fn copy_recording(to: PathBuf) {
    fs::copy(root().join("tests/upgrade/0.1.0.pj"), to).expect("a copy");
}

#[test]
fn the_help_of_each_verb() {
    let folder = folder();
    let program = profiler::cli::command();
    let mut verbs: Vec<Vec<&str>> = vec![vec![]];
    for verb in program.get_subcommands() {
        verbs.push(vec![verb.get_name()]);
        verbs.extend(
            verb.get_subcommands()
                .map(|below| vec![verb.get_name(), below.get_name()]),
        );
    }
    hold_all(verbs.into_iter().map(|verb| {
        let name = std::iter::once("help")
            .chain(verb.iter().copied())
            .collect::<Vec<_>>();
        let arguments: Vec<&str> = verb.iter().copied().chain(["--help"]).collect();
        let output = perjoule(folder.path(), &arguments)
            .output()
            .expect("it can be started");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{arguments:?}"
        );
        (name.join("-"), said(&output))
    }));
}

#[test]
fn the_table_of_a_recording() {
    let folder = folder();
    copy_recording(folder.path().join("night.pj"));
    hold_all([("table", run(folder.path(), &["report", "night.pj"]))]);
}

#[test]
fn mistyped_verbs_flags_and_keys_are_answered_with_the_ones_that_were_meant() {
    let folder = folder();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
    write(
        "wrong.toml",
        "lisen = \"127.0.0.1:1\"\n\n[services]\nport = [8000]\n",
    );
    write("strange.toml", "colour = \"red\"\n");
    let all: &[&[&str]] = &[
        &["reprot", "night.pj"],
        &["stat", "--prot", "8000"],
        &["report", "night.pj", "--format", "htlm"],
        &["--config", "wrong.toml", "doctor"],
        &["--config", "strange.toml", "doctor"],
        &["config", "check", "wrong.toml"],
        &["stat", "-r", "3"],
        &["stat", "-x", "ab", "--", "true"],
        &["stat", "-I", "5"],
    ];
    let text: Vec<String> = all.iter().map(|one| run(folder.path(), one)).collect();
    hold_all([("errors-typed", text.join("\n"))]);
}

#[test]
fn files_that_cannot_be_read_are_told_with_what_to_do() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    copy_recording(path("whole.pj"));
    let whole = fs::read(path("whole.pj")).expect("a recording");
    fs::write(path("broken.pj"), &whole[..whole.len() / 2]).expect("half of it");
    fs::write(path("short.pj"), &whole[..3_000]).expect("its beginning");
    fs::write(path("text.pj"), "time_s,device,watts\n").expect("a file");
    fs::write(path("power.csv"), "time_s,device\n0,gpu0\n").expect("a file");
    fs::write(path("requests.jsonl"), "{}\n").expect("a file");
    rusqlite::Connection::open(path("foreign.pj"))
        .and_then(|file| file.execute_batch("CREATE TABLE mine (x)"))
        .expect("another program's file");
    let all: &[&[&str]] = &[
        &["report", "absent.pj"],
        &["report", "text.pj"],
        &["report", "foreign.pj"],
        &["report", "broken.pj"],
        &["script", "short.pj"],
        &["diff", "whole.pj", "absent.pj"],
        &["explain", "whole.pj", "4711"],
        &[
            "replay",
            "--power",
            "absent.csv",
            "--requests",
            "requests.jsonl",
        ],
        &[
            "replay",
            "--power",
            "power.csv",
            "--requests",
            "requests.jsonl",
        ],
        &["--config", "absent.toml", "doctor"],
    ];
    let text: Vec<String> = all.iter().map(|one| run(folder.path(), one)).collect();
    hold_all([("errors-files", text.join("\n"))]);
}

#[test]
fn what_may_not_be_done_is_told_with_who_may() {
    let folder = folder();
    copy_recording(folder.path().join("secret.pj"));
    let nobody = fs::Permissions::from_mode(0o000);
    fs::set_permissions(folder.path().join("secret.pj"), nobody).expect("its permissions");
    let mut texts = Vec::new();
    for arguments in [&["report", "secret.pj"][..], &["stat", "--", "true"][..]] {
        let mut command = perjoule(folder.path(), arguments);
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        let output = match command.output() {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                println!("skipped: another user may not run the program where it was built");
                return;
            }
            output => output.expect("it can be started"),
        };
        let user = format!(
            "user {}",
            if rustix::process::geteuid().is_root() {
                65_534
            } else {
                rustix::process::geteuid().as_raw()
            }
        );
        let text = said(&output).replace(&user, "user NUMBER");
        let code = output.status.code().expect("a code");
        texts.push(format!(
            "$ perjoule {}\n{text}[{code}]\n",
            arguments.join(" ")
        ));
    }
    hold_all([("errors-permission", texts.join("\n"))]);
}
