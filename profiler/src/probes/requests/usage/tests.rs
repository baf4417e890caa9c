use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Servers' last words, as they write them: body, input, output, nothing but counts.
const BODIES: &[(&str, Option<u64>, Option<u64>, bool)] = &[
    // vLLM, with `include_usage`.
    (
        "data: {\"id\":\"c-1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}],\"usage\":null}\n\n\
         data: {\"id\":\"c-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":21,\"total_tokens\":358,\"completion_tokens\":337}}\n\n\
         data: [DONE]\n\n",
        Some(21),
        Some(337),
        true,
    ),
    // With its chunks' framing.
    (
        "\r\nab\r\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":21,\"completion_tokens\":337}}\n\n\
         \r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
        Some(21),
        Some(337),
        true,
    ),
    // OpenAI: details, spaces, usage first.
    (
        "data: {\"usage\" : { \"completion_tokens_details\": {\"reasoning_tokens\": 5}, \"completion_tokens\": 9, \
         \"prompt_tokens_details\": {\"cached_tokens\": 2}, \"prompt_tokens\" : 8 } , \"choices\" : [ ] }\r\n\r\ndata: [DONE]\r\n\r\n",
        Some(8),
        Some(9),
        true,
    ),
    // Counts with each chunk.
    (
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
        Some(3),
        Some(2),
        false,
    ),
    // A body in one piece, on lines of its own.
    (
        "{\n  \"choices\": [{\"message\": {\"content\": \"{}\"}}],\n  \"usage\": {\n    \"prompt_tokens\": 4,\n    \"completion_tokens\": 6\n  }\n}\n",
        Some(4),
        Some(6),
        false,
    ),
    // Embeddings have no output.
    (
        "{\"data\":[{\"embedding\":[0.1,-2e-3]}],\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8}}",
        Some(8),
        None,
        false,
    ),
    // OpenAI Responses.
    (
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"text\":\"hi\"}],\
         \"usage\":{\"input_tokens\":36,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":87,\"total_tokens\":123},\
         \"user\":null,\"metadata\":{}},\"sequence_number\":4}\n\n",
        Some(36),
        Some(87),
        true,
    ),
    // Anthropic, newer and older.
    (
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\
         \"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":90,\"output_tokens\":15}}\n\n\
         event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        Some(100),
        Some(15),
        true,
    ),
    (
        "data: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":15}}\n\n\
         event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        None,
        Some(15),
        true,
    ),
    // TGI.
    (
        "data:{\"index\":20,\"token\":{\"id\":1,\"text\":\" a\",\"logprob\":-0.5,\"special\":false},\"generated_text\":\"a \\\"b\\\"\",\
         \"details\":{\"finish_reason\":\"length\",\"generated_tokens\":20,\"seed\":null,\"input_length\":7}}\n\n",
        Some(7),
        Some(20),
        false,
    ),
    // SGLang.
    (
        "data: {\"text\":\"a b\",\"meta_info\":{\"id\":\"x\",\"finish_reason\":{\"type\":\"length\",\"length\":16},\"prompt_tokens\":7,\
         \"completion_tokens\":16,\"cached_tokens\":1,\"e2e_latency\":0.5}}\n\ndata: [DONE]\n\n",
        Some(7),
        Some(16),
        false,
    ),
    // llama.cpp: its own route, and OpenAI's without `include_usage`.
    (
        "data: {\"index\":0,\"content\":\"\",\"stop\":true,\"tokens_predicted\":50,\"tokens_evaluated\":10,\
         \"generation_settings\":{\"seed\":1,\"stop\":[]},\"prompt\":\"x\",\"timings\":{\"prompt_n\":3,\"prompt_ms\":1.5,\"predicted_n\":50}}\n\n",
        Some(10),
        Some(50),
        true,
    ),
    (
        "data: {\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{}}],\"timings\":{\"cache_n\":7,\"prompt_n\":3,\"predicted_n\":50}}\n\n\
         data: [DONE]\n\n",
        Some(10),
        Some(50),
        false,
    ),
    // Ollama: generate with its long context, and chat.
    (
        "{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n\
         {\"model\":\"m\",\"response\":\"\",\"done\":true,\"done_reason\":\"stop\",\"context\":[1,2,3,128009],\"total_duration\":5,\
         \"prompt_eval_count\":26,\"prompt_eval_duration\":342546000,\"eval_count\":259,\"eval_duration\":4535599000}\n",
        Some(26),
        Some(259),
        true,
    ),
    (
        "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"eval_count\":259}\n",
        None,
        Some(259),
        true,
    ),
    (
        "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"Hello\"},\"done\":true,\"prompt_eval_count\":2,\"eval_count\":3}",
        Some(2),
        Some(3),
        false,
    ),
];

#[test]
fn every_servers_last_words_are_understood() {
    for (body, input, output, only) in BODIES {
        let counts = Usage {
            input: *input,
            output: *output,
        };
        let wanted = Some(Found {
            usage: counts,
            only: *only,
        });
        assert_eq!(usage(body.as_bytes()), wanted, "{body}");
    }
}

#[test]
fn a_body_cut_anywhere_shows_the_right_counts_or_none() {
    for (body, input, output, _) in BODIES {
        let mut shown = 0;
        for cut in 0..body.len() {
            let Some(found) = usage(&body.as_bytes()[cut..]) else {
                continue;
            };
            shown += 1;
            let right =
                |found: Option<u64>, wanted: &Option<u64>| found.is_none() || found == *wanted;
            assert!(
                right(found.usage.input, input),
                "{found:?}: {}",
                &body[cut..]
            );
            assert!(
                right(found.usage.output, output),
                "{found:?}: {}",
                &body[cut..]
            );
        }
        assert!(shown > 5, "{body}");
    }
}

#[test]
fn what_is_no_count_or_not_the_last_word_is_not_taken() {
    for body in [
        "",
        "\n\n",
        "}",
        "{}",
        "data: [DONE]\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\ndata: [DONE]\n\n",
        "{\"usage\":{}}",
        "{\"usage\":[1]}",
        "{\"usage\":{\"prompt_tokens\":-1}}",
        "{\"usage\":{\"prompt_tokens\":1.5}}",
        "{\"usage\":{\"prompt_tokens\":\"12\"}}",
        "{\"usage\":{\"completion_tokens\":99999999999999}}",
        "{\"usage\":{\"completion_tokens\":12",
        "{\"usage\":{\"completion_tokens\":12}",
        "{\"x\":{\"usage\":{\"completion_tokens\":12}}}",
        "[{\"usage\":{\"completion_tokens\":12}}]",
        "{\"usage\":{\"completion_tokens\":12}]}",
        "<p>{\"usage\":{\"completion_tokens\":12}}</p>",
        "id {\"usage\":{\"completion_tokens\":12}}",
        // Output behind it: more is to come.
        "data: {\"usage\":{\"completion_tokens\":1}}\n\ndata: {\"choices\":[{}]}\n\n",
        // Anthropic's first event.
        "data: {\"type\":\"message_start\",\"message\":{\"content\":[],\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n",
        "t\":[],\"stop\":null,\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n",
        // Ollama, still at it.
        "{\"done\":false,\"eval_count\":3}\n",
        // Chunk framing within the counts.
        "{\"usage\":{\"completion_tokens\":1\r\n2\r\n3}}",
        "{\"usage\":{\"completion_tokens\":\r\n2\r\n3}}",
    ] {
        assert_eq!(usage(body.as_bytes()), None, "{body}");
    }
}

#[test]
fn text_that_looks_like_counts_is_text_wherever_it_is_cut() {
    let fake = r#"","usage":{"prompt_tokens":1,"completion_tokens":2}} \" \\"#;
    for body in [
        json!({"choices": [{"text": fake}]}),
        json!({"choices": [{"text": fake}], "x": {"usage": fake}}),
        json!({"response": fake, "done": true}),
        json!({"message": {"tool_calls": [{"function": {"arguments": {
            "usage": {"prompt_tokens": 1, "completion_tokens": 2}}}}]}}),
    ] {
        let body = body.to_string();
        for cut in 0..body.len() {
            let found = usage(&body.as_bytes()[cut..]);
            assert_eq!(found, None, "{}", &body[cut..]);
        }
    }
}

/// Any JSON value, of a response's own words and of characters that mean something in JSON.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let text = prop_oneof![
        r#"[\\"{}\[\],:\n0-9a é]{0,24}"#,
        Just(r#"","usage":{"prompt_tokens":1,"completion_tokens":2}}"#.to_owned()),
        Just(r#"{"usage":{"input_tokens":1,"total_tokens":2}}"#.to_owned()),
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text.prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(r#"[a-z"\\]{1,3}"#, inner, 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    /// Whatever else a response holds, in whatever order, framed and cut however: the right
    /// counts or none, and the right ones where nothing is cut. Each case is cut everywhere.
    #[test]
    fn counts_are_right_or_unknown(
        before in prop::collection::vec(("[a-z\"\\\\]{1,3}", value()), 0..4),
        after in prop::collection::vec(("[a-z\"\\\\]{1,3}", value()), 0..3),
        input in 0_u64..1_000_000,
        output in 0_u64..1_000_000,
        place in 0..6_usize,
        pretty: bool,
        frame in prop::sample::select(&[
            ("", ""),
            ("data: ", "\n\n"),
            ("data:", "\n\ndata: [DONE]\n\n"),
            ("1ff\r\ndata: ", "\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"),
            ("{\"a\":1}\n", "\n"),
        ][..]),
    ) {
        let openai = json!({"prompt_tokens": input, "total_tokens": 1, "completion_tokens": output});
        let other = json!({"input_tokens": input, "total_tokens": 1, "output_tokens": output});
        let member = match place {
            0 => ("usage", openai),
            1 => ("usage", other),
            2 => ("response", json!({"usage": other, "z": [before.first().map(|(_, value)| value)]})),
            3 => ("details", json!({"generated_tokens": output, "input_length": input})),
            4 => ("meta_info", openai),
            _ => ("timings", json!({"cache_n": 0, "prompt_n": input, "predicted_n": output})),
        };
        // Written by hand: the order of the members is not the alphabet's.
        let mut members: Vec<String> = Vec::new();
        let own = std::iter::once((member.0.to_owned(), member.1));
        for (place, (key, value)) in before.into_iter().chain(own).chain(after).enumerate() {
            let key = if key == member.0 { key } else { format!("{key}{place}") };
            let value = if pretty { format!("{value:#}") } else { value.to_string() };
            members.push(format!("{}:{value}", serde_json::Value::from(key)));
        }
        let body = format!("{}{{{}}}{}", frame.0, members.join(if pretty { ",\n " } else { "," }), frame.1);
        let whole = usage(body.as_bytes()).map(|found| found.usage);
        prop_assert_eq!(whole, Some(Usage { input: Some(input), output: Some(output) }), "{}", body);
        for cut in 0..body.len() {
            if let Some(found) = usage(&body.as_bytes()[cut..]) {
                prop_assert!(found.usage.input.is_none_or(|count| count == input), "{}", &body[cut..]);
                prop_assert!(found.usage.output.is_none_or(|count| count == output), "{}", &body[cut..]);
            }
        }
    }

    /// No counts: none are found, wherever the body is cut.
    #[test]
    fn nothing_is_found_where_nothing_is_said(
        members in prop::collection::btree_map("[a-z]{1,3}", value(), 0..6),
        text in any::<String>(),
    ) {
        let body = json!({"choices": members, "text": text}).to_string();
        for cut in 0..body.len() {
            prop_assert_eq!(usage(&body.as_bytes()[cut..]), None, "{}", body);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = usage(&bytes);
    }

    #[test]
    fn no_text_made_of_its_own_words_makes_it_panic(
        text in r#"([{}\[\]":,\\]|"usage":|"eval_count":1|data: |\n|\r\n|[0-9]{1,22}|\[DONE\]| ){0,40}\}?"#,
    ) {
        let bytes = text.as_bytes();
        for cut in 0..bytes.len() {
            let _ = usage(&bytes[cut..]);
        }
    }
}
