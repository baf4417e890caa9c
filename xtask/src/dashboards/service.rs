//! What a service's requests cost, and what is served.

use super::panel::{lines, quantiles, stat};
use super::{Dashboard, NODE_CHOICES, Row};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "inference-service",
        title: "Inference service",
        description: "What each request costs in joules, and what is served.",
        choices: NODE_CHOICES,
        from: "now-1h",
        rows: vec![cost(), served()],
    }
}

fn cost() -> Row {
    let mean = "sum by (service) (rate(perjoule_request_energy_joules_sum{@service}[$__rate_interval])) \
                / (sum by (service) (rate(perjoule_request_energy_joules_count{@service}[$__rate_interval])) > 0)";
    let quantile = |quantile: &str| {
        format!(
            "histogram_quantile({quantile}, sum by (le, service) \
             (rate(perjoule_request_energy_joules_bucket{{@service}}[$__rate_interval]))) and on (service) \
             (sum by (service) (rate(perjoule_request_energy_joules_count{{@service}}[$__rate_interval])) > 0)"
        )
    };
    Row {
        title: "What a request costs",
        panels: vec![
            stat(
                "Energy per request",
                "suffix:J/req",
                "Active joules of all requests in the time range ÷ these requests. Aborted requests count; idle \
                 is nobody's; health checks are left out.",
                "sum(increase(perjoule_request_energy_joules_sum{@service}[$__range])) \
                 / (sum(increase(perjoule_request_energy_joules_count{@service}[$__range])) > 0)",
            ),
            stat(
                "Energy per output token",
                "suffix:J/token",
                "Active joules of the requests whose output tokens are counted ÷ these tokens, over the time range.",
                "sum(increase(perjoule_token_energy_joules_total{@service}[$__range])) \
                 / (sum(increase(perjoule_tokens_total{@service,kind=\"output\"}[$__range])) > 0)",
            ),
            stat(
                "Requests",
                "reqps",
                "Requests that ended, health checks left out, mean over the time range.",
                "sum(rate(perjoule_requests_total{@service,route!=\"health\"}[$__range]))",
            ),
            stat(
                "Power of the services",
                "watt",
                "Energy given to requests and overhead, mean over the time range.",
                "sum(rate(perjoule_service_energy_joules_total{@service}[$__range]))",
            ),
            stat(
                "Idle share of the GPUs",
                "percentunit",
                "Idle energy ÷ energy of the GPUs over the time range, on the chosen nodes. More requests would \
                 share it.",
                "sum(increase(perjoule_energy_account_joules_total{@node,component=\"gpu\",account=\"idle\"}[$__range])) \
                 / (sum(increase(perjoule_meter_energy_joules_total{@node,component=\"gpu\"}[$__range])) > 0)",
            ),
            stat(
                "Bound of the energy",
                "percentunit",
                "Half-width of a 95 % interval ÷ energy, the worst of the chosen services. The sensors' own gain \
                 error comes on top.",
                "max(perjoule_attribution_error_ratio{@service})",
            )
            .warning_from(&[("yellow", 0.1), ("red", 0.5)]),
            lines(
                "Energy per request",
                "joule",
                "Mean (sum of joules ÷ sum of requests), median and 95th percentile of single requests, with \
                 single requests as points where Prometheus stores exemplars. Quantiles are interpolated inside \
                 buckets of 1, 2.5, 5.",
            )
            .line(mean, "{{service}} mean")
            .line(&quantile("0.5"), "{{service}} p50")
            .line(&quantile("0.95"), "{{service}} p95")
            .with_exemplars()
            .wide(12),
            lines(
                "Energy per token",
                "suffix:J/token",
                "Joules of the requests whose tokens are counted ÷ output tokens; and ÷ input and output tokens, \
                 where input is known. Batch and length of prompts move it.",
            )
            .line(
                "sum by (service) (rate(perjoule_token_energy_joules_total{@service}[$__rate_interval])) \
                 / (sum by (service) (rate(perjoule_tokens_total{@service,kind=\"output\"}[$__rate_interval])) > 0)",
                "{{service}} output",
            )
            .line(
                "sum by (service) (rate(perjoule_token_energy_joules_total{@service}[$__rate_interval]) \
                 and on (job, instance, service, source) \
                 rate(perjoule_tokens_total{@service,kind=\"input\"}[$__rate_interval]) > 0) \
                 / (sum by (service) (rate(perjoule_tokens_total{@service}[$__rate_interval]) \
                 and on (job, instance, service, source) \
                 rate(perjoule_tokens_total{@service,kind=\"input\"}[$__rate_interval]) > 0) > 0)",
                "{{service}} input and output",
            )
            .wide(12),
            lines(
                "Power by service",
                "watt",
                "Energy given to each service per second, by component: its requests, and its overhead with \
                 nothing in flight.",
            )
            .line(
                "sum by (service, component, part) (rate(perjoule_service_energy_joules_total{@service}[$__rate_interval]))",
                "{{service}} {{component}} {{part}}",
            )
            .stacked()
            .wide(12),
            lines(
                "Power that no request caused",
                "watt",
                "Idle floor, parked contexts, other processes, and energy with no known user, of the chosen nodes.",
            )
            .line(
                "sum by (component, account) (rate(perjoule_energy_account_joules_total{@node,\
                 account=~\"idle|context|other|unattributed|gap\"}[$__rate_interval]))",
                "{{component}} {{account}}",
            )
            .stacked()
            .wide(12),
        ],
    }
}

fn served() -> Row {
    Row {
        title: "What is served",
        panels: vec![
            lines(
                "Requests by service and route",
                "reqps",
                "Requests that ended, per second.",
            )
            .line(
                "sum by (service, route) (rate(perjoule_requests_total{@service}[$__rate_interval]))",
                "{{service}} {{route}}",
            ),
            lines(
                "Errors and aborts",
                "percentunit",
                "Share of requests that ended with 4xx or 5xx, whose client left before the end, or whose end was \
                 not seen. Their energy counts.",
            )
            .line(
                "sum by (service, code) (rate(perjoule_requests_total{@service,code=~\"4xx|5xx\"}[$__rate_interval])) \
                 / on (service) group_left () \
                 (sum by (service) (rate(perjoule_requests_total{@service}[$__rate_interval])) > 0)",
                "{{service}} {{code}}",
            )
            .line(
                "sum by (service, outcome) \
                 (rate(perjoule_requests_total{@service,outcome=~\"aborted|incomplete\"}[$__rate_interval])) \
                 / on (service) group_left () \
                 (sum by (service) (rate(perjoule_requests_total{@service}[$__rate_interval])) > 0)",
                "{{service}} {{outcome}}",
            ),
            lines(
                "Tokens",
                "suffix:tokens/s",
                "Tokens per second by how they were counted: the engine's own counters, usage at a response's end, \
                 streamed chunks.",
            )
            .line(
                "sum by (service, kind, source) (rate(perjoule_tokens_total{@service}[$__rate_interval]))",
                "{{service}} {{kind}} from {{source}}",
            ),
            quantiles(
                "Time to first token",
                "s",
                "From the first byte of the request to the first byte of the body, streamed responses only.",
                "perjoule_time_to_first_token_seconds",
                "@service",
            ),
            quantiles(
                "Request duration",
                "s",
                "From the first byte of the request to the last byte of the response; health checks left out.",
                "perjoule_request_duration_seconds",
                "@service,route!=\"health\"",
            ),
            lines(
                "Requests in the engine",
                "short",
                "By the engine's own metrics: in a batch, and waiting for one.",
            )
            .line(
                "sum by (service, state) (perjoule_engine_requests{@service})",
                "{{service}} {{state}}",
            ),
        ],
    }
}
