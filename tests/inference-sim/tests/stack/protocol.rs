//! What a client sees of the stack, and what truth it leaves.

use std::process::Command;
use std::time::{Duration, Instant};

use inference_sim::truth::Outcome;
use serde_json::{Value, json};

use crate::running::{Client, PROGRAM, Stack, listening, signal, truth};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn words(count: usize) -> String {
    vec!["word"; count].join(" ")
}

fn completion(prompt_tokens: usize, output_tokens: usize, stream: bool) -> String {
    json!({"prompt": words(prompt_tokens), "max_tokens": output_tokens, "stream": stream})
        .to_string()
}

#[test]
fn a_chat_streams_its_role_one_event_a_token_usage_and_done() {
    let stack = Stack::start(&[]);
    let mut client = Client::new(&stack.address);
    let body = json!({
        "messages": [{"role": "user", "content": words(50)}],
        "max_tokens": 6, "stream": true, "stream_options": {"include_usage": true},
    });
    let response = client.post(CHAT, &body.to_string());
    assert_eq!(response.status, 200);
    assert!(response.head.contains("content-type: text/event-stream"));
    let events = response.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let events: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    assert_eq!(events.len(), 1 + 6 + 1);
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    for event in &events[1..7] {
        assert_eq!(event["object"], "chat.completion.chunk");
        let content = event["choices"][0]["delta"]["content"].as_str().unwrap();
        assert_eq!(content.split_whitespace().count(), 1, "{content:?}");
    }
    assert_eq!(events[5]["choices"][0]["finish_reason"], Value::Null);
    assert_eq!(events[6]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[7]["choices"], json!([]));
    assert_eq!(
        events[7]["usage"],
        json!({"prompt_tokens": 50, "completion_tokens": 6, "total_tokens": 56})
    );
    assert_eq!(stack.truth_of(1)[0].id, events[0]["id"]);
}

#[test]
fn the_head_goes_out_at_once_and_the_first_token_after_its_prefill() {
    let stack = Stack::start(&[]);
    let mut client = Client::new(&stack.address);
    let begun = Instant::now();
    client.ask(COMPLETIONS, &completion(7_000, 3, true));
    client.head();
    let head = begun.elapsed();
    let first = client.chunk().unwrap();
    let first_token = begun.elapsed();
    assert!(String::from_utf8(first).unwrap().starts_with("data: {"));
    assert!(head < Duration::from_millis(250), "head after {head:?}");
    let expected = Duration::from_millis(500);
    assert!(
        (expected..2 * expected).contains(&first_token),
        "first token after {first_token:?}"
    );
}

#[test]
fn one_connection_serves_many_requests_streamed_or_whole() {
    let stack = Stack::start(&[]);
    let mut client = Client::new(&stack.address);
    for stream in [false, true, false] {
        let response = client.post(COMPLETIONS, &completion(20, 4, stream));
        assert_eq!(response.status, 200);
        if stream {
            assert_eq!(response.events().len(), 4 + 1);
        } else {
            let answer = response.json();
            assert_eq!(answer["object"], "text_completion");
            assert_eq!(
                answer["choices"][0]["text"]
                    .as_str()
                    .unwrap()
                    .split(' ')
                    .count(),
                5
            );
            assert_eq!(answer["usage"]["completion_tokens"], 4);
        }
    }
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    let answer = client.post(CHAT, &chat.to_string()).json();
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(stack.truth_of(4)[3].output_tokens, 1);
}

#[test]
fn health_models_and_errors_have_the_shapes_clients_expect() {
    let stack = Stack::start(&["--model", "tiny"]);
    let mut client = Client::new(&stack.address);
    assert_eq!(client.get("/health").status, 200);
    assert_eq!(client.get("/v1/models").json()["data"][0]["id"], "tiny");
    assert_eq!(client.get("/nothing").status, 404);
    assert_eq!(client.get(CHAT).status, 405);
    let refused = client.post(COMPLETIONS, r#"{"prompt": "a", "max_tokens": 0}"#);
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["type"], "BadRequestError");
    assert_eq!(
        stack.truth().len(),
        0,
        "what is refused never reaches the engine"
    );
}

#[test]
fn a_client_that_leaves_early_is_aborted_and_still_charged() {
    let stack = Stack::start(&[]);
    let mut stream = Client::new(&stack.address);
    stream.ask(COMPLETIONS, &completion(1_400, 1_000, true));
    stream.head();
    for _ in 0..3 {
        stream.chunk().unwrap();
    }
    assert_eq!(stack.metric("vllm:num_requests_running"), 1.0);
    drop(stream);
    let mut whole = Client::new(&stack.address);
    whole.ask(COMPLETIONS, &completion(1_400, 1_000, false));
    std::thread::sleep(Duration::from_millis(200));
    drop(whole);
    for record in stack.truth_of(2) {
        assert_eq!(record.outcome, Outcome::Aborted);
        assert!((3..200).contains(&record.output_tokens), "{record:?}");
        // The prefill alone is 39.7 J; a decode step above idle is about 2.3 J.
        let joules = record.energy_uj[0] / 1_000_000;
        let steps = record.output_tokens;
        assert!(
            (39 + 2 * (steps - 1)..50 + 3 * steps).contains(&joules),
            "{record:?}"
        );
    }
    assert_eq!(stack.metric("vllm:num_requests_running"), 0.0);
    let aborted = "vllm:request_success_total{engine=\"0\",finished_reason=\"abort\"";
    assert_eq!(stack.metric(aborted), 2.0);
}

#[test]
fn metrics_count_what_was_served_under_vllms_names() {
    let stack = Stack::start(&[]);
    let mut client = Client::new(&stack.address);
    client.post(COMPLETIONS, &completion(30, 5, true));
    client.post(COMPLETIONS, &json!({"prompt": words(10)}).to_string());
    for (name, value) in [
        ("vllm:prompt_tokens_total", 40.0),
        ("vllm:generation_tokens_total", 5.0 + 128.0),
        ("vllm:num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        (
            "vllm:request_success_total{engine=\"0\",finished_reason=\"length\"",
            1.0,
        ),
        (
            "vllm:request_success_total{engine=\"0\",finished_reason=\"stop\"",
            1.0,
        ),
        ("vllm:time_to_first_token_seconds_count", 2.0),
        ("vllm:inter_token_latency_seconds_count", 4.0 + 127.0),
        ("vllm:e2e_request_latency_seconds_count", 2.0),
        ("vllm:request_generation_tokens_sum", 133.0),
    ] {
        assert_eq!(stack.metric(name), value, "{name}");
    }
    let labels = "vllm:prompt_tokens_total{engine=\"0\",model_name=\"simulated-8b\"}";
    assert_eq!(stack.metric(labels), 40.0);
}

#[test]
fn sigterm_ends_cleanly_and_writes_the_truth_of_what_is_in_flight() {
    for kind in [libc::SIGTERM, libc::SIGINT] {
        let mut stack = Stack::start(&["--devices", "0,1"]);
        let mut clients = [(); 3].map(|()| Client::new(&stack.address));
        for client in &mut clients {
            client.ask(COMPLETIONS, &completion(1_000, 1_000, true));
            client.head();
        }
        clients[0].chunk().unwrap();
        signal(&stack.child, kind);
        assert!(stack.child.wait().unwrap().success());
        let records = stack.truth();
        assert_eq!(records.len(), 3);
        assert!(
            records
                .iter()
                .all(|record| record.outcome == Outcome::Shutdown),
            "{records:?}"
        );
        for device in [0, 1] {
            let sum: u64 = records.iter().map(|record| record.energy_uj[device]).sum();
            assert_eq!(stack.published_uj(device), sum);
        }
    }
}

#[test]
fn a_front_whose_engine_dies_does_not_go_on() {
    let mut stack = Stack::start(&[]);
    let mut client = Client::new(&stack.address);
    client.ask(COMPLETIONS, &completion(1_000, 1_000, true));
    client.head();
    let state = gpu_state::GpuState::open_or_create(&stack.state_path()).unwrap();
    let engine = state.processes(0)[0].pid;
    assert_ne!(engine, stack.child.id());
    // SAFETY: sending a signal touches no memory; the engine is the stack's own and alive.
    assert_eq!(unsafe { libc::kill(engine as i32, libc::SIGKILL) }, 0);
    assert!(!stack.child.wait().unwrap().success());
    assert_eq!(state.processes(0), [], "the dead hold no context");
}

#[test]
fn front_and_engine_can_be_started_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let mut engine = Command::new(PROGRAM)
        .arg("engine")
        .arg("--gpu-state")
        .arg(file("gpu"))
        .arg("--truth")
        .arg(file("truth.jsonl"))
        .arg("--engine-socket")
        .arg(file("socket"))
        .spawn()
        .unwrap();
    let mut front = Command::new(PROGRAM);
    front
        .args(["front", "--listen", "127.0.0.1:0", "--engine-socket"])
        .arg(file("socket"));
    let (mut front, address) = listening(front);
    let mut client = Client::new(&address);
    assert_eq!(
        client.post(COMPLETIONS, &completion(9, 2, false)).status,
        200
    );
    signal(&front, libc::SIGTERM);
    assert!(front.wait().unwrap().success());
    assert!(
        engine.wait().unwrap().success(),
        "an engine without a front ends"
    );
    assert_eq!(truth(&file("truth.jsonl")).len(), 1);
}
