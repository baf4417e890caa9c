//! The log, on stderr: text for people, or one JSON object a line. Where stderr is the journal's, each
//! line says its priority, and the journal says the time.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use env_logger::Target;
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};
use serde::Serialize;

use crate::agent::config::{Config, LogFormat};

/// What is written, once the log has begun.
static FORM: OnceLock<Form> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    format: LogFormat,
    journal: bool,
}

/// Begins the log. `quiet` verbs keep their own output readable unless more is asked.
pub(super) fn start(config: &Config, quiet: bool) {
    begin(config, quiet, None);
}

/// Begins the log of a verb that draws on the terminal: where stderr is one too, what is said is held
/// until the value is dropped.
pub(super) fn start_held(config: &Config) -> HeldLog {
    let held = Held::default();
    let to = io::stderr().is_terminal().then(|| held.clone());
    begin(config, true, to);
    HeldLog(held)
}

/// What was said while something else was drawn; told when it is dropped.
#[derive(Debug)]
pub(super) struct HeldLog(Held);

impl HeldLog {
    /// How many events wait.
    pub(super) fn count(&self) -> usize {
        self.0.lock().count
    }
}

impl Drop for HeldLog {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.0.lock().lines);
        // Who closed stderr does not want to know.
        let _ = io::stderr().write_all(&lines);
    }
}

/// The logger's end of it.
#[derive(Debug, Clone, Default)]
struct Held(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    count: usize,
}

impl Held {
    /// No more is kept than so many bytes.
    const MOST: usize = 64 * 1024;

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One event a call, as the logger writes.
impl io::Write for Held {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.lock();
        waiting.count += 1;
        if waiting.lines.len() + line.len() <= Self::MOST {
            waiting.lines.extend_from_slice(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn begin(config: &Config, quiet: bool, held: Option<Held>) {
    let form = *FORM.get_or_init(|| Form {
        format: config.log_format,
        journal: is_journal(),
    });
    let mut builder = env_logger::Builder::new();
    // How much of them is shown is `set_level`'s business, also later.
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module("profiler", LevelFilter::Trace)
        .filter_module("profiler_ebpf", LevelFilter::Trace)
        .format_timestamp_millis()
        .format_target(false);
    if form.format == LogFormat::Json || form.journal {
        builder.format(move |out, record| write(form, out, record));
    }
    if let Some(held) = held {
        builder.target(Target::Pipe(Box::new(held)));
    }
    builder.init();
    set_level(config, quiet);
}

/// How much is shown from now on.
pub(super) fn set_level(config: &Config, quiet: bool) {
    let asked = config.log_level;
    // More than usual is asked for by who wants to see it.
    let level = if quiet && asked <= LevelFilter::Info {
        asked.min(LevelFilter::Warn)
    } else {
        asked
    };
    log::set_max_level(level);
}

/// Says why the program ends: as a line of the log where that is read by programs.
pub(super) fn fail(error: &anyhow::Error) {
    match FORM.get() {
        Some(form) if form.format == LogFormat::Json || form.journal => log::error!("{error:#}"),
        _ => eprintln!("perjoule: {error:#}"),
    }
}

/// One event.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    level: &'a str,
    target: &'a str,
    message: String,
}

fn write(form: Form, out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis().to_string();
    let line = line(form, time, record)?;
    writeln!(out, "{line}")
}

fn line(form: Form, time: String, record: &Record<'_>) -> io::Result<String> {
    let message = record.args().to_string();
    let text = match form.format {
        LogFormat::Json => serde_json::to_string(&Line {
            time,
            level: &record.level().as_str().to_lowercase(),
            target: record.target(),
            message,
        })?,
        // The journal takes each line for an event.
        LogFormat::Text => message.replace('\n', " "),
    };
    Ok(if form.journal {
        format!("<{}>{text}", priority(record.level()))
    } else {
        text
    })
}

/// As syslog(3) numbers them.
const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// True if stderr is the journal's, as systemd.exec(5) has one tell: `JOURNAL_STREAM=device:inode`.
fn is_journal() -> bool {
    let told = env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = rustix::fs::fstat(io::stderr());
    stderr.is_ok_and(|file| told == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(form: Form, message: &str) -> String {
        let mut record = Record::builder();
        record.level(Level::Warn).target("profiler::agent");
        let time = "2026-11-23T00:00:00.000Z".to_owned();
        line(form, time, &record.args(format_args!("{message}")).build()).unwrap()
    }

    #[test]
    fn each_event_is_one_line_whatever_its_message_is() {
        let json = Form {
            format: LogFormat::Json,
            journal: false,
        };
        let text = told(json, "a \"name\"\nof two lines");
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["time"], "2026-11-23T00:00:00.000Z");
        assert_eq!(line["level"], "warn");
        assert_eq!(line["target"], "profiler::agent");
        assert_eq!(line["message"], "a \"name\"\nof two lines");
        assert_eq!(line.as_object().map(serde_json::Map::len), Some(4));
    }

    #[test]
    fn the_journal_is_told_the_priority_and_no_time() {
        let journal = |format| Form {
            format,
            journal: true,
        };
        assert_eq!(told(journal(LogFormat::Text), "a\nb"), "<4>a b");
        assert!(told(journal(LogFormat::Json), "a").starts_with("<4>{\"time\":"));
        assert!(!is_journal(), "a test's stderr is not");
    }
}
