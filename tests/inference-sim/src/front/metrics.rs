//! `/metrics` with vLLM's names (vllm/v1/metrics/loggers.py), labels and buckets.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// vLLM's buckets.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0,
];

/// The front's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    requests: IntCounterVec,
    first_token_seconds: Histogram,
    inter_token_seconds: Histogram,
    request_seconds: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(model: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let options = |name: &str, help: &str| {
            Opts::new(name, help)
                .const_label("engine", "0")
                .const_label("model_name", model)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::with_opts(options(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::with_opts(options(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::from(options(name, help)).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            prometheus::Result::Ok(histogram)
        };
        let requests = IntCounterVec::new(
            options(
                "vllm:request_success_total",
                "Count of successfully processed requests.",
            ),
            &["finished_reason"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        for reason in ["stop", "length", "abort"] {
            requests.with_label_values(&[reason]);
        }
        Ok(Self {
            requests,
            running: gauge(
                "vllm:num_requests_running",
                "Number of requests in model execution batches.",
            )?,
            waiting: gauge(
                "vllm:num_requests_waiting",
                "Number of requests waiting to be processed.",
            )?,
            prompt_tokens: counter(
                "vllm:prompt_tokens_total",
                "Number of prefill tokens processed.",
            )?,
            generation_tokens: counter(
                "vllm:generation_tokens_total",
                "Number of generation tokens processed.",
            )?,
            first_token_seconds: histogram(
                "vllm:time_to_first_token_seconds",
                "Histogram of time to first token in seconds.",
                FIRST_TOKEN_SECONDS,
            )?,
            inter_token_seconds: histogram(
                "vllm:inter_token_latency_seconds",
                "Histogram of inter-token latency in seconds.",
                TOKEN_SECONDS,
            )?,
            request_seconds: histogram(
                "vllm:e2e_request_latency_seconds",
                "Histogram of e2e request latency in seconds.",
                REQUEST_SECONDS,
            )?,
            request_prompt_tokens: histogram(
                "vllm:request_prompt_tokens",
                "Number of prefill tokens processed.",
                TOKENS,
            )?,
            request_generation_tokens: histogram(
                "vllm:request_generation_tokens",
                "Number of generation tokens processed.",
                TOKENS,
            )?,
            registry,
        })
    }

    /// A prompt has been read, and its first token has come.
    pub(crate) fn first_token(&self, seconds: f64, prompt_tokens: u64) {
        self.prompt_tokens.inc_by(prompt_tokens);
        self.generation_tokens.inc();
        self.first_token_seconds.observe(seconds);
    }

    /// Later tokens have come, all in one step.
    pub(crate) fn next_tokens(&self, seconds: f64, count: u64) {
        self.generation_tokens.inc_by(count);
        self.inter_token_seconds.observe(seconds);
    }

    /// A request has had its last token.
    pub(crate) fn finished(
        &self,
        reason: &str,
        seconds: f64,
        prompt_tokens: u64,
        output_tokens: u64,
    ) {
        self.requests.with_label_values(&[reason]).inc();
        self.request_seconds.observe(seconds);
        self.request_prompt_tokens.observe(prompt_tokens as f64);
        self.request_generation_tokens.observe(output_tokens as f64);
    }

    /// A client has left before its last token.
    pub(crate) fn aborted(&self) {
        self.requests.with_label_values(&["abort"]).inc();
    }

    /// The text format.
    pub(crate) fn render(&self, (running, waiting): (usize, usize)) -> Vec<u8> {
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
        let mut text = Vec::new();
        // The only error is that of the writer, and a vector has none.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }
}
