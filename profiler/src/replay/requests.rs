//! `requests.jsonl`: one request a line, in the order in which they started.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::ReplayError;
use super::moment::moment;
use crate::clock::Timestamp;

/// No request has more tokens.
const MOST_TOKENS: u64 = 1_000_000_000_000;
const ORDER: &str = "sort the lines by start_s, as in `jq -sc 'sort_by(.start_s)[]' R.jsonl`";
const KEYS: &str = "each line must be one JSON object with id, service, start_s, first_token_s, \
    end_s, input_tokens and output_tokens, and null for what is not known";

/// A line as it is written. The keys must be there, and null says that a value is not known: a
/// misspelled key is not taken for one that is not known.
#[derive(Debug, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "Option::deserialize")]
    service: Option<Cow<'a, str>>,
    start_s: f64,
    #[serde(deserialize_with = "Option::deserialize")]
    first_token_s: Option<f64>,
    #[serde(deserialize_with = "Option::deserialize")]
    end_s: Option<f64>,
    #[serde(deserialize_with = "Option::deserialize")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "Option::deserialize")]
    output_tokens: Option<u64>,
    #[serde(default)]
    chunks_s: Option<Vec<f64>>,
    #[serde(borrow, default)]
    devices: Option<Vec<Cow<'a, str>>>,
}

/// One request as the log tells it.
#[derive(Debug)]
pub(super) struct Logged {
    /// Where it stands.
    pub(super) line: u64,
    pub(super) id: String,
    /// `unknown` where the log does not say.
    pub(super) service: String,
    pub(super) start: Timestamp,
    pub(super) first_token: Option<Timestamp>,
    pub(super) end: Option<Timestamp>,
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    /// In order; `None` where nobody saw them.
    pub(super) chunks: Option<Vec<Timestamp>>,
    /// `None`: all.
    pub(super) devices: Option<Vec<String>>,
}

/// The log, read in order.
#[derive(Debug)]
pub(super) struct RequestLog {
    path: PathBuf,
    reader: BufReader<File>,
    text: String,
    line: u64,
    latest: Timestamp,
}

impl RequestLog {
    pub(super) fn open(path: &Path) -> Result<Self, ReplayError> {
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, super::open(path)?),
            text: String::new(),
            line: 0,
            latest: Timestamp(0),
        })
    }

    /// An error in one of its lines.
    pub(super) fn error(&self, line: u64, cause: String, next: &'static str) -> ReplayError {
        ReplayError::line(&self.path, line, cause, next)
    }

    /// The next request; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Logged>, ReplayError> {
        loop {
            self.text.clear();
            self.line += 1;
            match self.reader.read_line(&mut self.text) {
                Ok(0) => return Ok(None),
                Ok(_) if self.text.trim().is_empty() => {}
                Ok(_) => break,
                Err(error) => {
                    return Err(self.error(self.line, error.to_string(), "is it a text file?"));
                }
            }
        }
        let fail = |(cause, next): (String, &'static str)| self.error(self.line, cause, next);
        let line: Line<'_> =
            serde_json::from_str(&self.text).map_err(|error| fail((json_cause(&error), KEYS)))?;
        let logged = check(line, self.line).map_err(fail)?;
        if logged.start < self.latest {
            let cause = format!("request `{}` started before the one above", logged.id);
            return Err(fail((cause, ORDER)));
        }
        self.latest = logged.start;
        Ok(Some(logged))
    }
}

/// What is wrong, with the column: serde_json counts lines in what it is given, which is one.
fn json_cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let cause = text
        .rfind(" at line ")
        .map_or(text.as_str(), |end| &text[..end]);
    format!("{cause}, at column {}", error.column())
}

fn check(line: Line<'_>, number: u64) -> Result<Logged, (String, &'static str)> {
    let id = line.id.into_owned();
    let start = moment("start_s", line.start_s)?;
    let time = |key, seconds: Option<f64>| seconds.map(|at| moment(key, at)).transpose();
    let first_token = time("first_token_s", line.first_token_s)?;
    let end = time("end_s", line.end_s)?;
    let clocks = "both must be of one clock; null says that one is not known";
    if end.is_some_and(|end| end < start) {
        return Err((format!("request `{id}` ends before it starts"), clocks));
    }
    if first_token.is_some_and(|first| first < start || end.is_some_and(|end| first > end)) {
        let cause = format!("first_token_s of request `{id}` is not between its start and its end");
        return Err((cause, clocks));
    }
    let chunks = match line.chunks_s {
        None => None,
        Some(times) => {
            let mut chunks = Vec::with_capacity(times.len());
            for seconds in times {
                let at = moment("chunks_s", seconds)?;
                let least = chunks.last().copied().or(first_token).unwrap_or(start);
                if at < least || end.is_some_and(|end| at > end) {
                    let cause = format!(
                        "chunk {} of request `{id}` is out of order, or not between first_token_s \
                         and end_s",
                        chunks.len() + 1
                    );
                    return Err((cause, clocks));
                }
                chunks.push(at);
            }
            Some(chunks)
        }
    };
    for (key, tokens) in [
        ("input_tokens", line.input_tokens),
        ("output_tokens", line.output_tokens),
    ] {
        if tokens.is_some_and(|tokens| tokens > MOST_TOKENS) {
            let cause = format!("{key} of request `{id}` is beyond 10¹²");
            return Err((
                cause,
                "no request has so many; null says that it is not known",
            ));
        }
    }
    if line.devices.as_ref().is_some_and(Vec::is_empty) {
        let cause = format!("devices of request `{id}` is empty");
        return Err((cause, "name at least one, or leave the key out for all"));
    }
    Ok(Logged {
        line: number,
        id,
        service: line
            .service
            .map_or_else(|| "unknown".to_owned(), Cow::into_owned),
        start,
        first_token,
        end,
        input: line.input_tokens,
        output: line.output_tokens,
        chunks,
        devices: line
            .devices
            .map(|devices| devices.into_iter().map(Cow::into_owned).collect()),
    })
}
