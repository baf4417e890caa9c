//! All that is wrong with a configuration, not the first thing alone: each key and each variable is
//! read by itself, as the agent reads it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Config, ConfigError, PartialConfig, sources};
use crate::export::Web;
use crate::finding::Status;
use crate::probes::sched::Detail;
use crate::suggestion::closest;

/// Tables whose keys are settings of their own.
const TABLES: [&str; 2] = ["services", "intervals"];
/// Where every setting's variable begins.
const PREFIX: &str = "PERJOULE_";
/// What is no setting, and means something.
const OTHERS: [&str; 1] = ["PERJOULE_CONFIG"];

/// Something that is wrong, or that will surprise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `Fail`: the agent would not start. `Warn`: it would, and do something else than is meant. `Pass`: this
    /// depends on how it is started.
    pub status: Status,
    /// The key or the variable; the file, if it is no key's.
    pub key: String,
    /// Where it stands, and what is wrong.
    pub cause: String,
    /// What to do.
    pub next: String,
}

/// Looks at a file, if there is one, and at variables. `env`: the environment.
pub fn check(file: Option<&Path>, env: &[(String, String)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(path) = file {
        match fs::read_to_string(path) {
            Ok(text) => check_file(path, &text, &mut problems),
            Err(source) => {
                let path = path.to_owned();
                let key = path.display().to_string();
                problems.push(of_error(key, ConfigError::Unreadable { path, source }));
            }
        }
    }
    check_variables(env, &mut problems);
    if problems
        .iter()
        .all(|problem| problem.status != Status::Fail)
    {
        let lookup = |name: &str| {
            let set = env.iter().find(|(known, _)| known == name);
            set.map(|(_, value)| value.clone())
        };
        match Config::load(file, lookup, PartialConfig::default()) {
            Ok(config) => {
                let has_place = lookup("STATE_DIRECTORY").is_some();
                check_whole(&config, has_place, &mut problems);
            }
            Err(error) => problems.push(of_error("configuration".to_owned(), error)),
        }
    }
    problems
}

/// What is wrong stands before the last semicolon of an error, what to do behind it.
fn of_error(key: String, error: ConfigError) -> Problem {
    let text = error.to_string();
    let (cause, next) = text.rsplit_once("; ").unwrap_or((&text, ""));
    Problem {
        status: Status::Fail,
        key,
        cause: cause.to_owned(),
        next: next.to_owned(),
    }
}

fn check_file(path: &Path, text: &str, problems: &mut Vec<Problem>) {
    let place = |at: usize| format!("{}, line {}", path.display(), sources::line(text, at));
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let start = error.span().map_or(0, |span| span.start);
        problems.push(Problem {
            status: Status::Fail,
            key: path.display().to_string(),
            cause: format!("{}: {}", place(start), sources::message(error)),
            next: "correct the line; the file is TOML".to_owned(),
        });
    }
    let Ok(values) = toml::from_str::<toml::Table>(text) else {
        return;
    };
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        let Some(whole) = values.get(name) else {
            continue;
        };
        match (value.get_ref(), whole) {
            (DeValue::Table(inner), toml::Value::Table(whole)) if TABLES.contains(&name) => {
                for inner in inner.keys() {
                    let part: &str = inner.get_ref();
                    let Some(value) = whole.get(part) else {
                        continue;
                    };
                    let alone = table_of(name, table_of(part, value.clone()).into());
                    let at = place(inner.span().start);
                    problems.extend(check_key(&format!("{name}.{part}"), alone, &at));
                }
            }
            _ => {
                let alone = table_of(name, whole.clone());
                problems.extend(check_key(name, alone, &place(key.span().start)));
            }
        }
    }
}

fn table_of(key: &str, value: toml::Value) -> toml::Table {
    toml::Table::from_iter([(key.to_owned(), value)])
}

fn check_key(key: &str, alone: toml::Table, place: &str) -> Option<Problem> {
    let error = alone.try_into::<PartialConfig>().err()?;
    let message = sources::message(&error);
    Some(Problem {
        status: Status::Fail,
        key: key.to_owned(),
        cause: format!("{place}: {message}"),
        next: sources::advice(&error),
    })
}

fn check_variables(env: &[(String, String)], problems: &mut Vec<Problem>) {
    // Each variable that is asked for is one there is.
    let known = RefCell::new(BTreeSet::new());
    let _ = PartialConfig::from_env(|name| {
        known.borrow_mut().insert(name.to_owned());
        None
    });
    let known = known.into_inner();
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        if OTHERS.contains(&name.as_str()) {
            continue;
        }
        if !known.contains(name) {
            // What all begin with says nothing.
            let bare = |name: &str| name.trim_start_matches(PREFIX).to_owned();
            let among: Vec<String> = known.iter().map(|name| bare(name)).collect();
            let next = match closest(&bare(name), among.iter().map(String::as_str)) {
                Some(known) => format!("did you mean {PREFIX}{known}?"),
                None => "unset it; docs/configuration.md lists the variables".to_owned(),
            };
            problems.push(Problem {
                status: Status::Warn,
                key: name.clone(),
                cause: "no setting has this variable".to_owned(),
                next,
            });
            continue;
        }
        let alone = |asked: &str| (asked == name).then(|| value.clone());
        if let Err(error) = PartialConfig::from_env(alone) {
            problems.push(of_error(name.clone(), error));
        }
    }
}

/// What is understood and yet wrong: values that contradict each other or lead nowhere. `has_place`: a state
/// directory is set.
fn check_whole(config: &Config, has_place: bool, problems: &mut Vec<Problem>) {
    let mut add = |status, key: &str, cause: String, next: &str| {
        problems.push(Problem {
            status,
            key: key.to_owned(),
            cause,
            next: next.to_owned(),
        });
    };
    if config.off_cpu.is_some() && config.waits == Detail::Nothing {
        let cause = "stacks of waits are wanted, and waits are off".to_owned();
        add(
            Status::Fail,
            "off_cpu",
            cause,
            "set waits to reasons, or take off_cpu out",
        );
    }
    let stacks = [("stacks", config.stacks), ("off_cpu", config.off_cpu)];
    let lost = |wanted: Option<u32>| wanted.is_some() && config.hindsight.is_none();
    for (key, _) in stacks.into_iter().filter(|(_, wanted)| lost(*wanted)) {
        let cause = "stacks are taken for a recording or the last minutes".to_owned();
        let next = "set hindsight, or start the agent with --record FILE";
        add(Status::Warn, key, cause, next);
    }
    // A shell does not know what a unit sets: it would be a false alarm where the agent is a service.
    if config.hindsight.is_some() && !has_place {
        let cause = "the last minutes need a place, and STATE_DIRECTORY is not set here".to_owned();
        let next = "none, if the agent's unit sets it, as the packaged one does; else start the agent with \
                    --hindsight-file FILE";
        add(Status::Pass, "hindsight", cause, next);
    }
    if let Some(Err(error)) = config.web_config_file.as_deref().map(Web::open) {
        let next = "correct it; docs/web-config.md tells the fields";
        add(Status::Fail, "web_config_file", error.to_string(), next);
    }
    let library = config.nvml_library.as_ref();
    // A bare name is the loader's to find.
    let named = library.filter(|path| path.components().count() > 1 && !path.exists());
    if let Some(path) = named {
        let cause = format!("{} is not there", path.display());
        let next = "correct the path, or take it out to use the driver's own";
        add(Status::Warn, "nvml_library", cause, next);
    }
}

/// The file that [`check`] is to look at: the one that is named, else the machine's if there is one.
pub fn file_to_check(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| Config::default_file().map(Path::to_owned))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn checked(text: &str, env: &[(&str, &str)]) -> Vec<Problem> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let own = |text: &&str| (*text).to_owned();
        let env: Vec<(String, String)> = env.iter().map(|(k, v)| (own(k), own(v))).collect();
        let mut problems = check(Some(file.path()), &env);
        let path = file.path().display().to_string();
        for problem in &mut problems {
            problem.cause = problem.cause.replace(&path, "FILE");
        }
        problems
    }

    fn told(problems: &[Problem]) -> Vec<(&str, &str, &str)> {
        problems
            .iter()
            .map(|problem| {
                (
                    problem.key.as_str(),
                    problem.cause.as_str(),
                    problem.next.as_str(),
                )
            })
            .collect()
    }

    #[test]
    fn what_is_right_has_no_problem() {
        let text = "listen = \"127.0.0.1:1\"\n[services]\nports = [8000]\n[intervals]\ndrain_ms = 20\n\
                    [calibration]\nG = { slope = 1.0 }\n";
        assert_eq!(checked(text, &[("PERJOULE_MODEL", "m"), ("PATH", "/")]), []);
        assert_eq!(check(None, &[]), []);
    }

    #[test]
    fn each_wrong_key_is_told_with_its_line_and_what_to_do() {
        let text = "lisen = \"1.2.3.4:5\"\nlog_level = \"loud\"\n\n[services]\nport = [1]\n\
                    ports = [70000]\n[intervals]\ndrain_ms = 5\n";
        let problems = checked(text, &[]);
        let mut told = told(&problems);
        told.sort_unstable();
        let expected = [
            (
                "intervals.drain_ms",
                "line 8: 5 ms is not between",
                "correct the value",
            ),
            (
                "lisen",
                "line 1: unknown key `lisen`",
                "did you mean `listen`?",
            ),
            ("log_level", "line 2: not a log level", "correct the value"),
            (
                "services.port",
                "line 5: unknown key `port`",
                "did you mean `ports`?",
            ),
            ("services.ports", "line 6: ", "correct the value"),
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for ((key, cause, next), (of, is, fix)) in told.iter().zip(expected) {
            assert_eq!(*key, of);
            assert!(cause.starts_with(&format!("FILE, {is}")), "{cause}");
            assert!(next.starts_with(fix), "{next}");
        }
        assert!(
            problems
                .iter()
                .all(|problem| problem.status == Status::Fail)
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let problems = checked("model = \"m\"\na = = b\n", &[]);
        assert!(
            problems[0].cause.starts_with("FILE, line 2: "),
            "{problems:?}"
        );
        assert!(problems[0].next.contains("TOML"));
        let missing = check(Some(Path::new("/nonexistent/perjoule.toml")), &[]);
        assert_eq!(missing.len(), 1);
        assert!(missing[0].cause.contains("cannot read"), "{missing:?}");
        assert!(missing[0].next.contains("correct the path"), "{missing:?}");
    }

    #[test]
    fn a_variable_that_is_wrong_fails_and_one_that_nobody_reads_warns() {
        let problems = checked(
            "",
            &[
                ("PERJOULE_PORTS", "80,x"),
                ("PERJOULE_LISSTEN", "1.2.3.4:5"),
                ("PERJOULE_BINARIES", "x"),
            ],
        );
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(problems[0].status, Status::Fail);
        assert!(problems[0].next.contains("unset it"), "{problems:?}");
        assert_eq!(problems[1].status, Status::Warn);
        assert_eq!(problems[1].next, "did you mean PERJOULE_LISTEN?");
        assert!(problems[2].next.contains("unset it"), "{problems:?}");
    }

    #[test]
    fn values_that_contradict_each_other_are_told() {
        let problems = checked("off_cpu = 5\nwaits = \"off\"\n", &[]);
        let status: Vec<Status> = problems.iter().map(|problem| problem.status).collect();
        assert_eq!(status, [Status::Fail, Status::Warn], "{problems:?}");
        let problems = checked("off_cpu = 5\n", &[]);
        assert_eq!(problems[0].status, Status::Warn);
        assert!(problems[0].next.contains("--record FILE"), "{problems:?}");
        let problems = checked("nvml_library = \"/nonexistent/libnvidia-ml.so.1\"\n", &[]);
        assert_eq!(told(&problems)[0].0, "nvml_library");
        assert_eq!(checked("nvml_library = \"libnvidia-ml.so.1\"\n", &[]), []);
    }

    #[test]
    fn last_minutes_keep_stacks_and_their_place_is_asked_for_where_no_state_directory_is_known() {
        let text = "hindsight = \"10m\"\nstacks = 49\noff_cpu = 1\n";
        let place = ("STATE_DIRECTORY", "/var/lib/perjoule");
        assert_eq!(checked(text, &[place]), []);
        let problems = checked(text, &[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].key, "hindsight");
        // The packaged unit has one, of which a shell knows nothing.
        assert_eq!(problems[0].status, Status::Pass);
        assert!(
            problems[0].next.contains("--hindsight-file"),
            "{problems:?}"
        );
    }
}
