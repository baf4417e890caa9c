//! What each engine calls its counters: name maps as data files, and what an exposition says
//! under them.
//!
//! In: an exposition's text. Out: a [`Reading`] of the first engine that knows itself in it. A new
//! engine is a new file in `engines/`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use serde::Deserialize;

use crate::exposition::{Sample, samples};
use crate::ledger::Counts;

/// Where an engine's metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// On the port of its API.
    Service,
    /// On a port of its own.
    Other,
}

/// One engine's name map. Of several names for one thing the first that is there counts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Its name, as a label has it.
    #[serde(rename = "engine")]
    pub name: String,
    /// Metric names of which any one shows that it is this engine.
    recognise: Vec<String>,
    /// Where it serves them.
    pub port: Port,
    /// At which paths.
    pub paths: Vec<String>,
    /// When its token counters move.
    pub counts: Counts,
    input: Vec<Series>,
    output: Vec<Series>,
    #[serde(default)]
    requests: Vec<Series>,
    running: Vec<Series>,
    waiting: Vec<Series>,
    /// The label that holds the model's name.
    model_label: Option<String>,
    /// Where its version is, if it has a place: JSON with a `version`.
    version_path: Option<String>,
    /// Series that agree in these labels are copies of one, one a worker; without it none are.
    copies_agree_in: Option<Vec<String>>,
}

/// A metric's name, or `name{label=value}` for those of its series with this label.
#[derive(Debug, Deserialize)]
#[serde(from = "String")]
struct Series {
    name: String,
    label: Option<(String, String)>,
}

impl From<String> for Series {
    fn from(text: String) -> Self {
        let selected = text
            .strip_suffix('}')
            .and_then(|text| text.split_once('{'))
            .and_then(|(name, label)| Some((name, label.split_once('=')?)));
        match selected {
            Some((name, (label, value))) => Self {
                name: name.to_owned(),
                label: Some((label.to_owned(), value.to_owned())),
            },
            None => Self {
                name: text,
                label: None,
            },
        }
    }
}

/// The maps, in the order in which they are tried: engines that run inside another's server first.
const MAPS: [&str; 7] = [
    include_str!("engines/vllm.toml"),
    include_str!("engines/sglang.toml"),
    include_str!("engines/tgi.toml"),
    include_str!("engines/llamacpp.toml"),
    include_str!("engines/tensorrt_llm.toml"),
    include_str!("engines/nim.toml"),
    include_str!("engines/triton.toml"),
];

static ENGINES: LazyLock<Vec<Engine>> = LazyLock::new(|| {
    // That each can be read is a test's business.
    MAPS.iter()
        .filter_map(|map| toml::from_str(map).ok())
        .collect()
});

/// The names that any map knows; all other samples are skipped.
static NAMES: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let mut names = HashSet::from([PROCESS_START]);
    for engine in ENGINES.iter() {
        names.extend(engine.recognise.iter().map(String::as_str));
        names.extend(engine.series().map(|series| series.name.as_str()));
    }
    names
});

/// Tells one process behind a port from another; Prometheus' client libraries show it.
const PROCESS_START: &str = "process_start_time_seconds";

/// No counter of tokens has got so far, and above it a double skips numbers.
const MOST: f64 = 9_007_199_254_740_992.0;

/// All engines that are known, in the order in which they are tried.
pub fn engines() -> &'static [Engine] {
    &ENGINES
}

/// The paths at which any engine serves its metrics, the most usual first.
pub(super) fn paths() -> Vec<&'static str> {
    let mut paths = vec!["/metrics"];
    for path in engines().iter().flat_map(|engine| &engine.paths) {
        if !paths.contains(&path.as_str()) {
            paths.push(path);
        }
    }
    paths
}

/// What an engine's exposition says. `None`: it says nothing of the kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    pub(super) engine: &'static str,
    pub(super) counts: Counts,
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    pub(super) requests: Option<u64>,
    pub(super) running: Option<u64>,
    pub(super) waiting: Option<u64>,
    /// Unless it serves several.
    pub(super) model: Option<String>,
    pub(super) version_path: Option<&'static str>,
    /// Seconds since 1970, as the process behind the exposition says.
    pub(super) process_start: Option<f64>,
}

impl Reading {
    /// `None` if no engine knows itself in the text.
    pub(super) fn of(text: &str) -> Option<Self> {
        let mut by_name: HashMap<&str, Vec<Sample<'_>>> = HashMap::new();
        for sample in samples(text).filter(|sample| NAMES.contains(sample.name)) {
            by_name.entry(sample.name).or_default().push(sample);
        }
        let found = Found(by_name);
        let engine = engines().iter().find(|engine| {
            let mut names = engine.recognise.iter();
            names.any(|name| found.0.contains_key(name.as_str()))
        })?;
        Some(Self {
            engine: &engine.name,
            counts: engine.counts,
            input: found.sum(engine, &engine.input),
            output: found.sum(engine, &engine.output),
            requests: found.sum(engine, &engine.requests),
            running: found.sum(engine, &engine.running),
            waiting: found.sum(engine, &engine.waiting),
            model: found.label(engine, engine.model_label.as_deref()),
            version_path: engine.version_path.as_deref(),
            process_start: found
                .0
                .get(PROCESS_START)
                .and_then(|samples| samples.first())
                .map(|sample| sample.value),
        })
    }
}

impl Engine {
    fn series(&self) -> impl Iterator<Item = &Series> {
        [
            &self.input,
            &self.output,
            &self.requests,
            &self.running,
            &self.waiting,
        ]
        .into_iter()
        .flatten()
    }
}

/// The samples under known names.
struct Found<'a>(HashMap<&'a str, Vec<Sample<'a>>>);

impl Found<'_> {
    /// The sum over all label sets of the first name that is there; `None` also if a value is no
    /// count.
    fn sum(&self, engine: &Engine, alternatives: &[Series]) -> Option<u64> {
        alternatives.iter().find_map(|series| {
            let samples = self.0.get(series.name.as_str())?;
            let mut chosen = samples
                .iter()
                .filter(|sample| match &series.label {
                    Some((label, value)) => sample.labels.get(label).as_ref() == Some(value),
                    None => true,
                })
                .peekable();
            chosen.peek()?;
            // Copies lag each other by an update at most: the furthest is right.
            let mut distinct: BTreeMap<Vec<Option<String>>, u64> = BTreeMap::new();
            for (place, sample) in chosen.enumerate() {
                if !(0.0..MOST).contains(&sample.value) {
                    return None;
                }
                let key = match &engine.copies_agree_in {
                    Some(labels) => labels.iter().map(|name| sample.labels.get(name)).collect(),
                    None => vec![Some(place.to_string())],
                };
                let furthest = distinct.entry(key).or_default();
                *furthest = (*furthest).max(sample.value.round() as u64);
            }
            Some(distinct.into_values().fold(0, u64::saturating_add))
        })
    }

    /// The one value that a label has in all of an engine's series.
    fn label(&self, engine: &Engine, label: Option<&str>) -> Option<String> {
        let label = label?;
        let values: BTreeSet<String> = engine
            .series()
            .filter_map(|series| self.0.get(series.name.as_str()))
            .flatten()
            .filter_map(|sample| sample.labels.get(label))
            .filter(|value| !value.is_empty())
            .collect();
        let mut values = values.into_iter();
        values.next().filter(|_| values.next().is_none())
    }
}

#[cfg(test)]
mod tests;
