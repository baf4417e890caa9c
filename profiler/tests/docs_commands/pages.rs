//! README.md and docs/*.md, and the commands in them.

use std::fs;
use std::path::{Path, PathBuf};

/// One command line of a page, continued lines joined.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) place: String,
    pub(crate) words: Vec<String>,
    pub(crate) text: String,
}

/// The commands between two fences.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) place: String,
    pub(crate) needs: Vec<String>,
    pub(crate) lines: Vec<Line>,
}

/// README.md and docs/*.md: names and texts.
pub(crate) fn pages() -> Vec<(String, String)> {
    // This file is the checkout's, whichever package reads it.
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = above.find(|folder| folder.join("README.md").is_file());
    let root = root.expect("the checkout");
    let mut files = vec![root.join("README.md")];
    let docs = fs::read_dir(root.join("docs")).expect("docs");
    let docs = docs.map(|entry| entry.expect("an entry").path());
    files.extend(docs.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    files.sort();
    let read = |path: PathBuf| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        (name, fs::read_to_string(path).expect("a page"))
    };
    files.into_iter().map(read).collect()
}

/// The blocks of commands: `sh` has one a line, `console` behind `$`, between what they print.
pub(crate) fn blocks((name, text): &(String, String)) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let mut block = Block {
            place: format!("{name}, line {number}"),
            needs: Vec::new(),
            lines: Vec::new(),
        };
        let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
        let needs = rest.split(' ').find_map(|part| part.strip_prefix("needs="));
        block.needs.extend(
            needs
                .into_iter()
                .flat_map(|needs| needs.split(','))
                .map(str::to_owned),
        );
        let mut begun = String::new();
        for (number, line) in lines
            .by_ref()
            .take_while(|(_, line)| !line.trim_start().starts_with("```"))
        {
            let line = match language {
                "sh" | "bash" => line,
                "console" if !begun.is_empty() => line,
                "console" => line.strip_prefix("$ ").unwrap_or_default(),
                _ => "",
            };
            begun += line;
            let ends = !begun.ends_with('\\');
            let words = shlex::split(begun.trim_end_matches('\\')).filter(|_| ends);
            match words {
                Some(words) => {
                    let text = std::mem::take(&mut begun);
                    let place = format!("{name}, line {number}");
                    if !words.is_empty() {
                        block.lines.push(Line { place, words, text });
                    }
                }
                // It goes on in the next line.
                None if ends => begun.push('\n'),
                None => begun = begun.trim_end_matches('\\').to_owned() + " ",
            }
        }
        assert!(
            begun.is_empty(),
            "{}: a command that does not end",
            block.place
        );
        blocks.push(block);
    }
    blocks
}
