//! Every command in README.md, docs/*.md and the examples of `--help`: each `perjoule` line is understood by the
//! program's own command line; those that read files are run, on a recording that is kept for it; a block with any
//! other command says in its info string what that needs (```` ```sh needs=root,network ````). Commands in the
//! running text have verbs and flags that there are. Blocks that need root alone, or a package alone, are run by
//! `docs` of `tests/end-to-end`.

#[path = "docs_commands/pages.rs"]
mod pages;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use clap::Command as Definition;

use self::pages::{Line, blocks, pages};

/// What a block may need that this test does not have.
const NEEDS: &[&str] = &["root", "gpu", "cluster", "network", "package", "container"];
/// Verbs that read files and nothing else.
const READING: &[&str] = &["report", "diff", "explain", "script", "replay", "config"];
/// What stands for a name in a command that is not meant as it stands.
const PLACEHOLDERS: &[&str] = &["A", "B", "F", "FILE", "ID", "N"];

#[test]
fn every_command_of_the_documentation_is_run_or_says_what_it_needs() {
    let program = definition();
    let (mut commands, mut parsed, mut run) = (0, 0, 0);
    let mut marked: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for block in pages().iter().flat_map(blocks) {
        let mut left = 0;
        for line in &block.lines {
            commands += 1;
            let found = invocations(&line.words, &program);
            for words in &found {
                parsed += 1;
                if let Err(error) = understood(&program, words) {
                    wrong.push(format!("{}: {error}", line.place));
                }
            }
            if reads_files_only(&line.words, &found) {
                run += 1;
                wrong.extend(execute(line).err());
            } else {
                left += 1;
            }
        }
        for need in &block.needs {
            if !NEEDS.contains(&need.as_str()) {
                wrong.push(format!("{}: no such need: {need}; {NEEDS:?}", block.place));
            }
            *marked.entry(need.clone()).or_default() += left;
        }
        if left > 0 && block.needs.is_empty() {
            wrong.push(format!(
                "{}: a command that is not run; say what it needs: ```sh needs=…, of {NEEDS:?}",
                block.place
            ));
        }
        if left == 0 && !block.needs.is_empty() && !block.lines.is_empty() {
            wrong.push(format!(
                "{}: all of it is run; it needs nothing",
                block.place
            ));
        }
    }
    println!(
        "{commands} commands in pages: {parsed} of perjoule understood, {run} run; not run, by need: {marked:?}"
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(
        commands > 40 && parsed > 30 && run > 15,
        "the pages are not read"
    );
}

#[test]
fn every_example_of_the_help_is_understood_and_run_where_it_reads_files() {
    let program = definition();
    let (mut parsed, mut run) = (0, 0);
    let mut wrong = Vec::new();
    let mut verbs = vec![("perjoule".to_owned(), &program)];
    while let Some((name, verb)) = verbs.pop() {
        let below = verb.get_subcommands();
        let below = below.filter(|below| below.get_name() != "help");
        verbs.extend(below.map(|below| {
            let name = format!("{name} {}", below.get_name());
            (name, below)
        }));
        let help = verb.get_after_help().map(ToString::to_string);
        let examples = examples(&help.unwrap_or_default());
        if !(2..=5).contains(&examples.len()) {
            wrong.push(format!("{name}: {} examples", examples.len()));
        }
        for text in examples {
            let place = format!("{name} --help, {text}");
            let words = shlex::split(&text).expect("quotes that end");
            let found = invocations(&words, &program);
            parsed += found.len();
            match found.first().map(|words| understood(&program, words)) {
                Some(Err(error)) => wrong.push(format!("{place}: {error}")),
                Some(Ok(())) => {}
                None => wrong.push(format!("{place}: no command of perjoule")),
            }
            let line = Line { place, words, text };
            if reads_files_only(&line.words, &found) {
                run += 1;
                wrong.extend(execute(&line).err());
            }
        }
    }
    println!("{parsed} examples understood, {run} run");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn verbs_and_flags_in_the_running_text_are_ones_there_are() {
    let program = definition();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let (name, text) = &page;
        let mut in_block = false;
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim_start().starts_with("```") {
                in_block = !in_block;
            }
            let spans = line.split('`').skip(1).step_by(2);
            for span in spans.filter(|span| !in_block && span.starts_with("perjoule ")) {
                seen += 1;
                if let Err(error) = names(&program, span) {
                    wrong.push(format!("{name}, line {number}: `{span}`: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(seen > 20, "the pages are not read");
}

fn definition() -> Definition {
    let mut program = profiler::cli::command();
    program.build();
    program
}

fn examples(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Examples:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.trim_start())
        // What it does stands behind it.
        .map(|line| line.split("  ").next().unwrap_or(line).to_owned())
        .collect()
}

/// The simple commands of a line.
fn simple(words: &[String]) -> impl Iterator<Item = &[String]> {
    words.split(|word| ["&&", "||", "|", ";"].contains(&word.as_str()))
}

/// Those that start perjoule, behind `sudo` or another command too, from its name to its last argument.
fn invocations(words: &[String], program: &Definition) -> Vec<Vec<String>> {
    let is_verb = |word: &String| {
        let is_flag = |flag: &clap::Arg| {
            let long = flag.get_long().map(|long| format!("--{long}"));
            let short = flag.get_short().map(|short| format!("-{short}"));
            [long, short].iter().flatten().any(|flag| flag == word)
        };
        program.get_arguments().any(is_flag)
            || program
                .get_subcommands()
                .any(|verb| verb.get_name() == word)
    };
    let of = |words: &[String]| {
        let is_start = |pair: &[String]| {
            let name = pair[0].rsplit('/').next().unwrap_or_default();
            // An image has its version behind its name.
            name.split(':').next() == Some("perjoule") && is_verb(&pair[1])
        };
        let start = words.windows(2).position(is_start)?;
        let arguments = words[start + 1..].iter();
        let arguments = arguments.take_while(|word| ![">", ">>", "2>"].contains(&word.as_str()));
        let name = std::iter::once("perjoule".to_owned());
        Some(name.chain(arguments.cloned()).collect())
    };
    simple(words).filter_map(of).collect()
}

fn understood(program: &Definition, words: &[String]) -> Result<(), String> {
    match program.clone().try_get_matches_from(words) {
        Err(error) if error.use_stderr() => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// True if all of it is perjoule reading files of the folder it is in, by names that are meant as they stand.
fn reads_files_only(words: &[String], found: &[Vec<String>]) -> bool {
    let ours =
        |words: &[String]| ["perjoule", "target/release/perjoule"].contains(&words[0].as_str());
    let all = simple(words).all(ours) && !found.is_empty();
    let reads = |words: &Vec<String>| {
        let mut words = words.iter();
        words.any(|word| READING.contains(&word.as_str()))
    };
    let is_elsewhere = |word: &String| word.starts_with('/') || word.contains("://");
    all && found.iter().all(reads)
        && !words.iter().any(is_elsewhere)
        && !words
            .iter()
            .any(|word| PLACEHOLDERS.contains(&word.as_str()))
}

/// Whether the verb and the flags of a command in the running text exist.
fn names(program: &Definition, span: &str) -> Result<(), String> {
    let words: Vec<&str> = span.split_whitespace().skip(1).collect();
    let mut verb = program;
    for word in &words {
        let word = word.trim_matches(['[', ']', ',', '.']);
        if let Some(below) = verb.find_subcommand(word) {
            verb = below;
        } else if let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) {
            let flag = flag.split('=').next().unwrap_or(flag);
            let has = |argument: &clap::Arg| {
                let aliases = argument.get_visible_aliases().unwrap_or_default();
                argument.get_long() == Some(flag) || aliases.contains(&flag)
            };
            if !verb.get_arguments().any(has) && !["help", "version"].contains(&flag) {
                return Err(format!("{} has no --{flag}", verb.get_name()));
            }
        } else if std::ptr::eq(verb, program) && !word.starts_with('-') {
            return Err(format!("no verb {word}"));
        }
    }
    Ok(())
}

/// Runs a line in a folder of its own, in which each file that it reads is there.
fn execute(line: &Line) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let before = std::iter::once("").chain(line.words.iter().map(String::as_str));
    for (before, word) in before.zip(&line.words) {
        provide(folder.path(), before, word);
    }
    let mut service = line.words.iter().skip_while(|word| *word != "--service");
    if let Some(name) = service.nth(1) {
        rename_services(folder.path(), name);
    }
    let program = Path::new(env!("CARGO_BIN_EXE_perjoule"));
    let programs = program.parent().expect("a folder");
    let built = folder.path().join("target");
    fs::create_dir_all(&built).expect("a folder");
    symlink(programs, built.join("release")).expect("a link");
    let programs = programs.display();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-c", &line.text])
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", format!("{programs}:{path}"))
        .output()
        .expect("it can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    // Eight requests decide no condition, and `diff` says so.
    let undecided = line.text.contains("--fail-if") && error.contains("is not decided");
    if output.status.success() || undecided {
        Ok(())
    } else {
        Err(format!("{}: {}: {error}", line.place, output.status))
    }
}

/// Writes a file of this name, if it is one that is read; `before`: the word before it.
fn provide(folder: &Path, before: &str, word: &str) {
    let file = folder.join(word);
    if [">", "-o"].contains(&before) || word.starts_with('/') || file.exists() {
        return;
    }
    if word.ends_with(".pj") {
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    }
    if before == "--power" {
        let rows = (0..200).flat_map(|tenth| {
            let time = f64::from(tenth) / 10.0;
            ["gpu0", "gpu1"].map(|device| format!("{time},{device},100\n"))
        });
        let head = std::iter::once("time_s,device,watts\n".to_owned());
        fs::write(file, head.chain(rows).collect::<String>()).expect("a log");
    } else if before == "--requests" {
        let request = "{\"id\":\"a\",\"service\":\"vllm\",\"start_s\":5.0,\"first_token_s\":5.2,\
                       \"end_s\":7.0,\"input_tokens\":100,\"output_tokens\":50}\n";
        fs::write(file, request).expect("a log");
    } else if word.ends_with(".pj") {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade/0.1.0.pj");
        fs::copy(kept, file).expect("a copy");
    } else if word.ends_with(".toml") {
        fs::write(file, "").expect("a file");
    }
}

/// The service of the recordings here has this name.
fn rename_services(folder: &Path, name: &str) {
    for file in fs::read_dir(folder).expect("a folder") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|kind| kind == "pj") {
            let recording = rusqlite::Connection::open(path).expect("a recording");
            let renamed = recording.execute("UPDATE services SET name = ?1", [name]);
            renamed.expect("a service");
        }
    }
}
