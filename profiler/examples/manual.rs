//! Writes manual pages (`man/`), with a date, and completions of shells (`completions/`) below the folder that is
//! named: `cargo xtask dist` packs them. Names, options and defaults are the command line's own, variables are those of
//! docs/configuration.md; only examples and exit statuses are written here.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

const CONFIGURATION: &str = include_str!("../../docs/configuration.md");

/// What a verb's page has beside what its options say.
struct Extra {
    /// Empty for the program's own page.
    verb: &'static str,
    /// What a command does, and the command.
    examples: &'static [(&'static str, &'static str)],
    exit: &'static [(&'static str, &'static str)],
}

const USAGE: (&str, &str) = ("64", "The settings make no sense; nothing was measured.");
const UNKNOWN: (&str, &str) = ("2", "There is no such option.");
const DONE: (&str, &str) = ("0", "Done.");
const FAILED: (&str, &str) = ("1", "It failed; the last line on stderr says why.");

const PAGES: &[Extra] = &[
    Extra {
        verb: "",
        examples: &[
            ("What works on this machine", "perjoule doctor"),
            (
                "The joules of what a server on port 8000 does in ten seconds",
                "perjoule stat --port 8000 -- sleep 10",
            ),
            ("The agent, with /metrics on port 27182", "perjoule run"),
        ],
        exit: &[DONE, FAILED, UNKNOWN, USAGE],
    },
    Extra {
        verb: "run",
        examples: &[
            (
                "Serve /metrics to this machine alone",
                "perjoule run --listen 127.0.0.1:27182",
            ),
            (
                "Watch one service by its port, and keep all that is booked",
                "perjoule run --port 8000 --record night.pj",
            ),
            (
                "Keep the last ten minutes, to be saved after an event by SIGUSR2",
                "perjoule run --hindsight 10m --hindsight-file /var/lib/perjoule/hindsight.pj",
            ),
        ],
        exit: &[
            ("0", "A signal ended it, and all that was open is booked."),
            FAILED,
            UNKNOWN,
            USAGE,
        ],
    },
    Extra {
        verb: "stat",
        examples: &[
            (
                "While a load generator runs",
                "perjoule stat --port 8000 -- ./load-test",
            ),
            (
                "Five times, with means and how sure they are",
                "perjoule stat --port 8000 -r 5 -- ./load-test",
            ),
            (
                "Each second, as fields for a spreadsheet",
                "perjoule stat --name vllm -I 1000 -x ,",
            ),
            (
                "One line of JSON, for scripts",
                "perjoule stat --name vllm --duration 60 --json",
            ),
        ],
        exit: &[
            (
                "0",
                "Done; where a command was named, it had this status too (with -r its last run).",
            ),
            ("1", "It failed, or the command ended with 1."),
            UNKNOWN,
            USAGE,
            ("other", "The command's own."),
        ],
    },
    Extra {
        verb: "record",
        examples: &[
            (
                "Every service that holds a GPU, until Ctrl-C",
                "perjoule record",
            ),
            (
                "While a load generator runs",
                "perjoule record --port 8000 -o load.pj -- ./load-test",
            ),
            (
                "One process, for five minutes, with stacks",
                "perjoule record -p 4711 --duration 5m --stacks",
            ),
        ],
        exit: &[
            (
                "0",
                "Done; where a command was named, it had this status too.",
            ),
            (
                "1",
                "It failed, the recording is not whole, or the command ended with 1.",
            ),
            UNKNOWN,
            USAGE,
            ("other", "The command's own."),
        ],
    },
    Extra {
        verb: "top",
        examples: &[
            ("Every service that holds a GPU", "perjoule top"),
            ("The service that listens there", "perjoule top --port 8000"),
        ],
        exit: &[DONE, FAILED, UNKNOWN, USAGE],
    },
    Extra {
        verb: "report",
        examples: &[
            ("As a table", "perjoule report night.pj"),
            (
                "In Markdown, with each service's part of the idle energy",
                "perjoule report --format md --idle-policy even night.pj",
            ),
            (
                "A page for a planner, with cost and carbon",
                "perjoule report --format html --country DE --price 0.21 --currency EUR night.pj > night.html",
            ),
        ],
        exit: &[DONE, FAILED, UNKNOWN],
    },
    Extra {
        verb: "diff",
        examples: &[
            ("Before and after", "perjoule diff before.pj after.pj"),
            (
                "For a review, of one service",
                "perjoule diff before.pj after.pj --service vllm --format md > comment.md",
            ),
        ],
        exit: &[
            ("0", "Done; no condition of --fail-if is met."),
            ("1", "A condition is met; it is named on stderr."),
            (
                "2",
                "A file cannot be read, the command line is wrong, or a condition cannot be decided.",
            ),
        ],
    },
    Extra {
        verb: "explain",
        examples: &[
            (
                "The costliest request",
                "perjoule explain night.pj --costliest 1",
            ),
            ("One by its id", "perjoule explain night.pj 196610"),
        ],
        exit: &[DONE, FAILED, UNKNOWN],
    },
    Extra {
        verb: "script",
        examples: &[
            ("One JSON object a request", "perjoule script night.pj"),
            (
                "An energy flame graph",
                "perjoule script --format svg night.pj > night.svg",
            ),
        ],
        exit: &[DONE, FAILED, UNKNOWN, USAGE],
    },
    Extra {
        verb: "replay",
        examples: &[(
            "Any tool's logs, then the report",
            "perjoule replay --power power.csv --requests requests.jsonl -o there.pj",
        )],
        exit: &[
            DONE,
            FAILED,
            (
                "2",
                "A log is not understood (the line is named), or there is no such option.",
            ),
        ],
    },
    Extra {
        verb: "doctor",
        examples: &[
            ("For people", "perjoule doctor"),
            ("For programs", "perjoule doctor --json"),
        ],
        exit: &[
            ("0", "All is fine; hardware that is not there is fine."),
            ("1", "There are warnings."),
            ("2", "Something that is needed does not work."),
            USAGE,
        ],
    },
];

fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(folder), Some(date)) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        return Err(io::Error::other(
            "name the folder to write to and the pages' date",
        ));
    };
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    for (name, page) in pages(&date)? {
        fs::write(man.join(name), page)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(
            shell,
            &mut profiler::cli::command(),
            "perjoule",
            &completions,
        )?;
    }
    Ok(())
}

/// The program's page, one for each verb and one for each verb of a verb, by file name.
fn pages(date: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = profiler::cli::command().disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    add_pages(&program, "", date, &mut pages)?;
    Ok(pages)
}

fn add_pages(
    command: &Command,
    verb: &str,
    date: &str,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> io::Result<()> {
    pages.push(page(command, verb, date)?);
    for below in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let verb = format!("{verb} {}", below.get_name());
        add_pages(below, verb.trim(), date, pages)?;
    }
    Ok(())
}

fn page(command: &Command, verb: &str, date: &str) -> io::Result<(String, Vec<u8>)> {
    let version = command.get_version().unwrap_or_default();
    let man = Man::new(command.clone())
        .source(format!("perjoule {version}"))
        .date(date)
        .manual("perjoule");
    let name = man.get_filename();
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    // The examples of the help are below, with what they do.
    let has_examples = PAGES.iter().any(|extra| extra.verb == verb);
    if !has_examples && command.get_after_help().is_some() {
        man.render_extra_section(&mut text)?;
    }

    let mut rest = Roff::new();
    let takes_settings = ["run", "stat", "record", "doctor"].contains(&verb);
    if verb.is_empty() {
        rest.control("SH", ["ENVIRONMENT"]);
        rest.text([roman(
            "A flag goes before a variable, a variable before the file. A variable that is set to nothing is not set.",
        )]);
        for setting in settings() {
            rest.control("TP", []);
            rest.text([bold(setting.variable)]);
            rest.text([roman(format!(
                "{}. Default: {}.",
                plain(setting.what),
                plain(setting.default)
            ))]);
        }
        rest.control("SH", ["FILES"]);
        rest.control("TP", []);
        rest.text([italic("/etc/perjoule/perjoule.toml")]);
        rest.text([roman("The machine's settings.")]);
    } else if takes_settings {
        rest.control("SH", ["ENVIRONMENT"]);
        rest.text([
            roman("Every setting has a variable: "),
            bold("perjoule"),
            roman("(1)."),
        ]);
    }
    if verb == "run" {
        rest.control("TP", []);
        rest.text([bold("STATE_DIRECTORY")]);
        rest.text([roman(
            "Where state.json and the last minutes are kept, unless --state and --hindsight-file name files; the \
             service manager sets it.",
        )]);
    }
    let extra = PAGES.iter().find(|extra| extra.verb == verb);
    if let Some(extra) = extra {
        rest.control("SH", ["EXIT STATUS"]);
        for (status, meaning) in extra.exit {
            rest.control("TP", []);
            rest.text([bold(*status)]);
            rest.text([roman(*meaning)]);
        }
        rest.control("SH", ["EXAMPLES"]);
        for (what, example) in extra.examples {
            rest.control("TP", []);
            rest.text([roman(format!("{what}:"))]);
            rest.text([bold(*example)]);
        }
    }
    if !verb.is_empty() {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("perjoule"), roman("(1)")]);
    }
    rest.to_writer(&mut text)?;
    Ok((name, text))
}

/// A row of docs/configuration.md that has a variable.
struct Setting {
    variable: &'static str,
    default: &'static str,
    what: &'static str,
}

fn settings() -> impl Iterator<Item = Setting> {
    CONFIGURATION.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let variable = cells.nth(1)?.trim_matches('`');
        let (default, what) = (cells.nth(1)?, cells.next()?);
        variable.starts_with("PERJOULE_").then_some(Setting {
            variable,
            default,
            what: what.trim_end_matches([' ', '|']),
        })
    })
}

/// Markdown's text without code marks and without where its links lead.
fn plain(markdown: &str) -> String {
    let mut plain = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once("](") {
        // A link in brackets of its own says where to read on, which is not here.
        let target = after.split_once(')').map_or("", |(_, rest)| rest);
        match before.rsplit_once(" ([") {
            Some((text, _)) => {
                plain.push_str(text);
                rest = target.strip_prefix(')').unwrap_or(target);
            }
            None => {
                let (text, link) = before.rsplit_once('[').unwrap_or((before, ""));
                plain.push_str(text);
                plain.push_str(link);
                rest = target;
            }
        }
    }
    plain.push_str(rest);
    plain.replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(pages: &[(String, Vec<u8>)], name: &str) -> String {
        let page = pages.iter().find(|(file, _)| file == name);
        String::from_utf8_lossy(&page.unwrap_or_else(|| panic!("no page {name}")).1).into_owned()
    }

    #[test]
    fn every_verb_has_a_page_that_names_it_and_its_options() {
        let pages = pages("2026-11-23").unwrap();
        for verb in profiler::cli::command().get_subcommands() {
            let name = format!("perjoule-{}", verb.get_name());
            let page = text_of(&pages, &format!("{name}.1"));
            for part in [&format!(".TH {name} 1"), ".SH OPTIONS", "--config"] {
                assert!(page.replace("\\-", "-").contains(part), "{name}: no {part}");
            }
        }
    }

    #[test]
    fn examples_and_exit_statuses_stand_on_their_verbs_pages() {
        let pages = pages("2026-11-23").unwrap();
        for extra in PAGES {
            let name = format!("perjoule-{}", extra.verb);
            let page = text_of(&pages, &format!("{}.1", name.trim_end_matches('-')));
            assert!(page.contains(".SH \"EXIT STATUS\""), "{name}");
            assert!(page.contains(".SH EXAMPLES"), "{name}");
        }
    }

    #[test]
    fn every_example_is_understood() {
        for (_, example) in PAGES.iter().flat_map(|page| page.examples) {
            let command = example.split(" > ").next().unwrap();
            let parsed = profiler::cli::command().try_get_matches_from(command.split(' '));
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn every_variable_of_the_configuration_page_is_in_the_programs() {
        let page = text_of(&pages("2026-11-23").unwrap(), "perjoule.1");
        let variables: Vec<_> = settings().map(|setting| setting.variable).collect();
        assert!(variables.len() > 20, "{variables:?}");
        for variable in variables {
            assert!(page.contains(variable), "{variable}");
        }
    }

    #[test]
    fn links_and_code_marks_do_not_reach_a_page() {
        assert_eq!(
            plain("the `hook` ([requests.md](requests.md)); [more](x.md) of it"),
            "the hook; more of it"
        );
    }
}
