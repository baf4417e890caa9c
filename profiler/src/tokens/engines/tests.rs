//! What each engine's exposition is taken for.

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
        let text = format!("vllm:num_requests_running 1\nvllm:generation_tokens_total {value}\n");
        assert_eq!(reading(&text).output, None, "{value}");
    }
}
