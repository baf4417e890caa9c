//! The server's own token counts at a response's end.

use std::io::Write;
use std::os::fd::AsRawFd;

use profiler::ledger::{Outcome, Usage};
use profiler::probes::requests::{Losses, Observed, RequestProbe};

use crate::watch::{Watch, outcome};
use crate::wire::{
    LAST_CHUNK, POST, chunk, exchange, read_request, read_until, send_cut, stream_head,
};

const TOKEN: &str =
    "data: {\"choices\":[{\"text\":\" a token of output\",\"finish_reason\":null}]}\n\n";
const COUNTS: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"total_tokens\":27,\"completion_tokens\":20}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn counts(seen: &Observed) -> Option<(Option<u64>, Option<u64>)> {
    seen.usage.map(|Usage { input, output }| (input, output))
}

/// Serves `response` in pieces of `sizes`; `last` is its end.
fn serve(watch: &mut Watch, response: &str, last: &str, sizes: &[usize]) -> Observed {
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            send_cut(&mut stream, response.as_bytes(), sizes);
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, last.as_bytes()));
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(outcome(&seen), Some(Outcome::Done), "{sizes:?}");
    seen
}

#[test]
fn the_counts_of_a_stream_are_read_and_their_event_is_no_output_for_any_cut() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let mut response = stream_head("text/event-stream");
    for _ in 0..20 {
        response += &chunk(TOKEN);
    }
    response = response + &chunk(COUNTS) + &chunk(DONE) + LAST_CHUNK;
    for sizes in [
        &[1usize][..],
        &[7, 90],
        &[300, 1, 40],
        &[63, 64, 65],
        &[1 << 20],
    ] {
        let seen = serve(&mut watch, &response, LAST_CHUNK, sizes);
        assert_eq!(counts(&seen), Some((Some(7), Some(20))), "{sizes:?}");
        assert_eq!(seen.request.chunks, 20, "{sizes:?}");
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn counts_come_with_output_or_alone_in_any_dialect() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let ollama =
        |text: &str, end: &str| format!("{{\"model\":\"m\",\"response\":\"{text}\",{end}}}\n");
    let more = ollama(" a token", "\"done\":false");
    let long = format!("data: {{\"x\":\"{}\",{}", "y".repeat(3_000), &COUNTS[7..]);
    for (kind, output, last, chunks, expected) in [
        (
            "text/event-stream",
            TOKEN,
            COUNTS,
            2,
            Some((Some(7), Some(20))),
        ),
        (
            "text/event-stream",
            TOKEN,
            &long,
            2,
            Some((Some(7), Some(20))),
        ),
        (
            "text/event-stream",
            TOKEN,
            "data: {\"choices\":[{\"text\":\"x\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n",
            3,
            Some((Some(3), Some(4))),
        ),
        (
            "application/x-ndjson",
            &more,
            &ollama("", "\"done\":true,\"prompt_eval_count\":9,\"eval_count\":2"),
            2,
            Some((Some(9), Some(2))),
        ),
        (
            "text/event-stream",
            TOKEN,
            "data: {\"n\":{\"x\":[{\"y\":1}]}}\n\n",
            3,
            None,
        ),
        ("text/event-stream", TOKEN, TOKEN, 3, None),
    ] {
        let port = exchange(
            |mut stream| {
                read_request(&mut stream);
                // Each piece in a send of its own, as servers do.
                let head = stream_head(kind);
                for piece in [
                    &head,
                    &chunk(output),
                    &chunk(output),
                    &chunk(last),
                    LAST_CHUNK,
                ] {
                    stream.write_all(piece.as_bytes()).expect("sent");
                }
            },
            |mut stream| {
                stream.write_all(POST).expect("sent");
                assert!(read_until(&mut stream, LAST_CHUNK.as_bytes()));
            },
        );
        let [seen] = watch.wait(port, 1)[..] else {
            unreachable!()
        };
        assert_eq!(
            (counts(&seen), seen.request.chunks),
            (expected, chunks),
            "{last}"
        );
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_json_response_that_does_not_stream_says_its_counts() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let text = "x".repeat(2_000);
    let body = format!(
        "{{\"choices\":[{{\"text\":\"{text}\"}}],{}",
        COUNTS[20..].trim_end()
    );
    let length = body.len();
    let expected = Some((Some(7), Some(20)));
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let whole = format!("{head}Content-Length: {length}\r\n\r\n{body}");
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{}{LAST_CHUNK}",
        chunk(&body)
    );
    for (response, last) in [(&whole, &body[length - 9..]), (&chunked, LAST_CHUNK)] {
        for sizes in [&[1usize << 20][..], &[1_500], &[64]] {
            let seen = serve(&mut watch, response, last, sizes);
            // A last send that is too short says nothing: absent, never wrong.
            if sizes[0] > 64 {
                assert_eq!(counts(&seen), expected, "{sizes:?}");
            }
            assert!(counts(&seen).is_none() || counts(&seen) == expected);
            assert_eq!((seen.request.chunks, seen.request.streamed), (0, false));
        }
    }
    // In several buffers, as asyncio sends it.
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            let (start, end) = whole.split_at(whole.len() - 40);
            let pieces = [start, end].map(|piece| libc::iovec {
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            });
            // SAFETY: two live buffers of these lengths.
            let sent = unsafe { libc::writev(stream.as_raw_fd(), pieces.as_ptr(), 2) };
            assert_eq!(sent, whole.len() as isize);
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, &body.as_bytes()[length - 9..]));
        },
    );
    assert_eq!(counts(&watch.wait(port, 1)[0]), expected);
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn with_usage_off_nothing_is_kept_and_every_event_counts() {
    let Some(mut watch) = Watch::attach_with(RequestProbe::without_usage) else {
        return;
    };
    watch.serve(std::process::id());
    let events = [TOKEN, COUNTS, DONE].map(chunk).concat();
    let response = stream_head("text/event-stream") + &events + LAST_CHUNK;
    let seen = serve(&mut watch, &response, LAST_CHUNK, &[1 << 20]);
    assert_eq!((counts(&seen), seen.request.chunks), (None, 2));
    let tails = watch.loader.map_bytes();
    let tails = tails.iter().find(|(name, _)| name == "REQUEST_TAILS");
    assert!(tails.expect("the map").1 < 8_192, "{tails:?}");
}

#[test]
fn a_request_after_one_with_counts_has_none_of_them() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let first =
        stream_head("text/event-stream") + &[TOKEN, TOKEN, COUNTS].map(chunk).concat() + LAST_CHUNK;
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let port = exchange(
        |mut stream| {
            for response in [&first, second] {
                read_request(&mut stream);
                stream.write_all(response.as_bytes()).expect("sent");
            }
        },
        |mut stream| {
            for last in [LAST_CHUNK, "ok"] {
                stream.write_all(POST).expect("sent");
                assert!(read_until(&mut stream, last.as_bytes()));
            }
        },
    );
    let seen = watch.wait(port, 2);
    assert_eq!(counts(&seen[0]), Some((Some(7), Some(20))));
    assert_eq!((counts(&seen[1]), seen[1].request.chunks), (None, 0));
}
