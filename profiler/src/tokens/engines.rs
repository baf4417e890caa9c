//! What each engine calls its counters: name maps as data files, and what an exposition says
//! under them.
//!
//! In: an exposition's text. Out: a [`Reading`] of the first engine that knows itself in it. A new
//! engine is a new file in `engines/`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use serde::Deserialize;

use super::exposition::{Sample, samples};
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
mod tests {
    use super::*;

    fn reading(text: &str) -> Reading {
        Reading::of(text).unwrap_or_else(|| panic!("not recognised: {text}"))
    }

    /// Engine, model, and (input, output, requests, running, waiting).
    fn check(text: &str, engine: &str, model: Option<&str>, counts: [Option<u64>; 5]) {
        let found = reading(text);
        assert_eq!(found.engine, engine);
        assert_eq!(found.model.as_deref(), model, "{engine}");
        let Reading {
            input,
            output,
            requests,
            running,
            waiting,
            ..
        } = found;
        assert_eq!(
            [input, output, requests, running, waiting],
            counts,
            "{engine}"
        );
    }

    #[test]
    fn every_map_can_be_read_and_names_are_unique() {
        for map in MAPS {
            toml::from_str::<Engine>(map).unwrap_or_else(|error| panic!("{error}: {map}"));
        }
        let names: HashSet<&str> = engines().iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names.len(), MAPS.len());
        assert_eq!(paths(), ["/metrics", "/prometheus/metrics", "/v1/metrics"]);
    }

    #[test]
    fn vllm_is_read_over_all_its_engines() {
        let text = r#"
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 3.0
vllm:num_requests_running{engine="1",model_name="llama"} 2.0
vllm:num_requests_waiting{engine="0",model_name="llama"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="llama"} 1.282888e+06
vllm:prompt_tokens_total{engine="1",model_name="llama"} 12.0
vllm:prompt_tokens_created{engine="1",model_name="llama"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="llama"} 337.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="llama"} 7.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="llama"} 4.0
process_start_time_seconds 1.7e+09
"#;
        let counts = [1_282_900, 337, 11, 5, 1].map(Some);
        check(text, "vllm", Some("llama"), counts);
        assert_eq!(reading(text).counts, Counts::Step);
        assert_eq!(reading(text).process_start, Some(1.7e9));
    }

    #[test]
    fn an_older_vllm_is_read_by_its_names() {
        // Without _total, as before Prometheus' client library was used; no requests yet.
        let text = "vllm:num_requests_running{model_name=\"opt\"} 0\n\
                    vllm:num_requests_waiting{model_name=\"opt\"} 0\n\
                    vllm:prompt_tokens{model_name=\"opt\"} 9\n\
                    vllm:generation_tokens{model_name=\"opt\"} 4\n";
        let counts = [Some(9), Some(4), None, Some(0), Some(0)];
        check(text, "vllm", Some("opt"), counts);
    }

    #[test]
    fn sglang_is_read() {
        let text = r#"
sglang:prompt_tokens_total{model_name="qwen"} 1.0e+03
sglang:generation_tokens_total{model_name="qwen"} 337.0
sglang:num_requests_total{model_name="qwen"} 33.0
sglang:num_running_reqs{engine_type="unified",model_name="qwen"} 2.0
sglang:num_queue_reqs{engine_type="unified",model_name="qwen"} 1.0
"#;
        check(
            text,
            "sglang",
            Some("qwen"),
            [1_000, 337, 33, 2, 1].map(Some),
        );
        assert_eq!(reading(text).counts, Counts::Finish);
        // With --enable-metrics-for-all-schedulers each rank shows the same.
        let ranks = r#"
sglang:num_running_reqs{dp_rank="0",model_name="qwen",tp_rank="0"} 3.0
sglang:num_running_reqs{dp_rank="0",model_name="qwen",tp_rank="1"} 3.0
sglang:num_running_reqs{dp_rank="1",model_name="qwen",tp_rank="2"} 1.0
sglang:num_running_reqs{dp_rank="1",model_name="qwen",tp_rank="3"} 1.0
"#;
        assert_eq!(reading(ranks).running, Some(4));
    }

    #[test]
    fn tgi_is_read_from_its_histograms_sums() {
        let text = r#"
tgi_request_count 12
tgi_request_success{kind="generate"} 11
tgi_queue_size 4
tgi_batch_current_size 8
tgi_request_input_length_bucket{le="1"} 0
tgi_request_input_length_sum 800
tgi_request_input_length_count 11
tgi_request_generated_tokens_sum 220
tgi_request_generated_tokens_count 11
"#;
        check(text, "tgi", None, [800, 220, 12, 8, 4].map(Some));
    }

    #[test]
    fn triton_counts_requests_and_tokens_where_a_backend_does() {
        let plain = r#"
nv_inference_request_success{model="bert",version="1"} 5
nv_inference_request_success{model="resnet",version="1"} 6
nv_inference_count{model="bert",version="1"} 50
nv_inference_pending_request_count{model="bert",version="1"} 3
"#;
        check(plain, "triton", None, [None, None, Some(11), None, Some(3)]);
        let with_tensorrt = r#"
nv_inference_request_success{model="tensorrt_llm",version="1"} 5
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 64
nv_llm_input_token_len_sum{model="tensorrt_llm",response_metric_type="total_input_tokens",version="1"} 128
nv_llm_output_token_len_sum{model="tensorrt_llm",response_metric_type="total_output_tokens",version="1"} 64
"#;
        let counts = [128, 64, 5, 2, 1].map(Some);
        check(with_tensorrt, "triton", Some("tensorrt_llm"), counts);
        let with_vllm = format!("{plain}vllm:generation_tokens_total{{model_name=\"m\"}} 8\n");
        assert_eq!(reading(&with_vllm).engine, "vllm");
    }

    #[test]
    fn llamacpp_is_read() {
        let text = "llamacpp:prompt_tokens_total 40\nllamacpp:prompt_seconds_total 0.5\n\
                    llamacpp:tokens_predicted_total 90\nllamacpp:requests_processing 1\n\
                    llamacpp:requests_deferred 0\n";
        let counts = [Some(40), Some(90), None, Some(1), Some(0)];
        check(text, "llama.cpp", None, counts);
    }

    #[test]
    fn nim_is_read_by_names_without_a_prefix() {
        let text = r#"
num_requests_running{model_name="meta/llama3"} 1
num_requests_waiting{model_name="meta/llama3"} 0
num_request_max{model_name="meta/llama3"} 256
prompt_tokens_total{model_name="meta/llama3"} 21
generation_tokens_total{model_name="meta/llama3"} 84
request_finish_total{finished_reason="stop",model_name="meta/llama3"} 2
"#;
        check(
            text,
            "nim",
            Some("meta/llama3"),
            [21, 84, 2, 1, 0].map(Some),
        );
    }

    #[test]
    fn tensorrt_llm_is_read_with_and_without_token_counters() {
        let old = "trtllm_request_success_total{finished_reason=\"stop\",model_name=\"m\"} 150.0\n";
        check(
            old,
            "tensorrt-llm",
            Some("m"),
            [None, None, Some(150), None, None],
        );
        let new = format!(
            "{old}trtllm_prompt_tokens_total{{model_name=\"m\"}} 7\n\
             trtllm_generation_tokens_total{{model_name=\"m\"}} 8\n"
        );
        check(
            &new,
            "tensorrt-llm",
            Some("m"),
            [Some(7), Some(8), Some(150), None, None],
        );
    }

    #[test]
    fn what_is_no_engines_exposition_is_not_taken_for_one() {
        for text in [
            "",
            "go_goroutines 9\nprocess_start_time_seconds 1.7e9\n",
            "<html>vllm:num_requests_running</html>",
            "prompt_tokens_total 4\ngeneration_tokens_total 5\n",
        ] {
            assert_eq!(Reading::of(text), None, "{text}");
        }
    }

    #[test]
    fn a_value_that_is_no_count_is_unknown() {
        for value in ["NaN", "-1", "+Inf", "1e300"] {
            let text =
                format!("vllm:num_requests_running 1\nvllm:generation_tokens_total {value}\n");
            assert_eq!(reading(&text).output, None, "{value}");
        }
    }
}
