//! Engines of other kinds: what each knob changes for clients, and in the truth.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::running::{Client, PROGRAM, Stack};

const COMPLETIONS: &str = "/v1/completions";

fn completion(prompt_tokens: usize, output_tokens: usize, stream: bool) -> String {
    let prompt = vec!["word"; prompt_tokens].join(" ");
    json!({"prompt": prompt, "max_tokens": output_tokens, "stream": stream}).to_string()
}

/// Tokens in each event of a stream.
fn tokens_by_event(client: &mut Client, output_tokens: usize) -> Vec<usize> {
    let response = client.post(COMPLETIONS, &completion(20, output_tokens, true));
    let events = response.events();
    let texts = events.iter().filter(|event| *event != "[DONE]");
    texts
        .map(|event| {
            let event: Value = serde_json::from_str(event).unwrap();
            let text = event["choices"][0]["text"].as_str().unwrap();
            text.split_whitespace().count()
        })
        .collect()
}

#[test]
fn coalesced_chunks_hold_as_many_tokens_as_told_after_the_first() {
    let stack = Stack::start(&["--tokens-a-chunk", "8"]);
    let mut client = Client::new(&stack.address);
    assert_eq!(tokens_by_event(&mut client, 20), [1, 8, 8, 3]);
    assert_eq!(stack.truth_of(1)[0].output_tokens, 20);
}

#[test]
fn a_speculating_engine_sends_the_tokens_of_a_step_in_one_event() {
    let stack = Stack::start(&["--speculates"]);
    let mut client = Client::new(&stack.address);
    let tokens = tokens_by_event(&mut client, 80);
    assert_eq!(tokens.iter().sum::<usize>(), 80);
    assert_eq!((tokens[0], tokens.iter().max()), (1, Some(&4)));
    assert_eq!(stack.truth_of(1)[0].output_tokens, 80);
    assert_eq!(stack.metric("vllm:generation_tokens_total"), 80.0);
}

#[test]
fn a_prompt_that_is_read_in_parts_does_not_stall_the_streams_beside_it() {
    let stack = Stack::start(&["--prompt-parts", "500"]);
    let mut stream = Client::new(&stack.address);
    stream.ask(COMPLETIONS, &completion(10, 60, true));
    stream.head();
    stream.chunk().unwrap();
    // Half a second of reading, were it read at once.
    let mut beside = Client::new(&stack.address);
    beside.ask(COMPLETIONS, &completion(7_000, 1, false));
    let mut longest = Duration::ZERO;
    let mut before = Instant::now();
    while stream.chunk().is_some() {
        longest = longest.max(before.elapsed());
        before = Instant::now();
    }
    assert!(longest < Duration::from_millis(300), "{longest:?}");
    assert_eq!(beside.receive().status, 200);
    let records = stack.truth_of(2);
    let long = records.iter().find(|record| record.prompt_tokens == 7_000);
    // Half a second at 397 W above idle, and none of the steps beside it.
    let joules = long.unwrap().energy_uj[0] as f64 * 1e-6;
    assert!((joules - 198.5).abs() < 0.1, "{joules}");
}

#[test]
fn a_prompt_whose_prefix_is_cached_costs_what_is_left_to_read() {
    let stack = Stack::start(&["--cached", "1"]);
    let mut client = Client::new(&stack.address);
    client.post(COMPLETIONS, &completion(7_000, 1, true));
    let record = &stack.truth_of(1)[0];
    assert_eq!((record.prompt_tokens, record.cached_tokens), (7_000, 5_600));
    assert_eq!(record.energy_uj, [39_700_000]);
}

#[test]
fn two_stacks_share_a_gpu_and_each_has_its_own_truth() {
    let mut one = Stack::start(&["--share"]);
    let mut two = one.start_beside(&["--share"]);
    std::thread::scope(|scope| {
        for stack in [&one, &two] {
            scope.spawn(move || {
                let mut client = Client::new(&stack.address);
                let response = client.post(COMPLETIONS, &completion(700, 40, true));
                assert_eq!(response.events().len(), 41);
            });
        }
    });
    let state = gpu_state::GpuState::open_or_create(&one.state_path()).unwrap();
    assert_eq!(state.processes(0).len(), 2);
    let (first, second) = (one.truth_of(1).remove(0), two.truth_of(1).remove(0));
    // A step is as long alone as in turns, so that each costs what it would alone.
    assert_eq!(first.energy_uj, [19_850_000 + 39 * 2_342_056]);
    assert_eq!(second.energy_uj, first.energy_uj);
    assert!(
        first.end_ns - first.start_ns > 39 * 11_560_000 * 3 / 2,
        "they took turns"
    );
    assert!(one.stop().success() && two.stop().success());
    assert_eq!(one.published_uj(0), 2 * first.energy_uj[0]);
}

#[test]
fn an_engine_that_shares_nothing_does_not_start_on_a_gpu_that_has_one() {
    let stack = Stack::start(&[]);
    let output = std::process::Command::new(PROGRAM)
        .arg("engine")
        .arg("--gpu-state")
        .arg(stack.state_path())
        .arg("--truth")
        .arg(stack.folder.path().join("second.jsonl"))
        .arg("--engine-socket")
        .arg(stack.folder.path().join("second"))
        .arg("--share")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("GPU 0 is driven by another engine"), "{said}");
}
