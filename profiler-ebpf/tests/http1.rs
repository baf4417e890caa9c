//! The HTTP/1.1 state machine on the host: whatever way the bytes are cut, the request is the
//! same.

#[path = "http1/response.rs"]
mod response;
#[path = "http1/socket.rs"]
mod socket;

use profiler_ebpf::http1::{self, FRONT, Start, WINDOW};
use profiler_ebpf::request::*;
use proptest::prelude::*;
use response::{POST, Response, response};
use socket::Socket;

/// What a split of the bytes must not change, with the offset of the byte that completed each.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    outcome: Outcome,
    chunks: u32,
    flags: u16,
    response_bytes: u64,
}

fn seen(facts: &Facts) -> Seen {
    Seen {
        status: facts.status,
        outcome: facts.outcome,
        chunks: facts.chunks,
        flags: facts.flags,
        response_bytes: facts.response_bytes,
    }
}

/// Cuts `bytes` at the given points (taken modulo what is left) and sends piece `i` at
/// 1,000 + i; returns the socket and each piece's range.
fn exchange(response: &Response, cuts: &[usize], window: usize) -> (Socket, Vec<(usize, usize)>) {
    let mut socket = Socket::new(response.request.as_bytes(), window);
    let mut pieces = Vec::new();
    let (mut at, mut i) = (0, 0);
    while at < response.bytes.len() {
        let size = cuts.get(i).copied().unwrap_or(usize::MAX);
        let next = at.saturating_add(size.max(1)).min(response.bytes.len());
        let over = socket.send(&response.bytes[at..next], 1_000 + i as u64);
        assert_eq!(over, 0, "nothing lies behind the end");
        pieces.push((at, next));
        at = next;
        i += 1;
    }
    (socket, pieces)
}

fn check(response: &Response, cuts: &[usize], window: usize) {
    let (mut socket, pieces) = exchange(response, cuts, window);
    let piece_of = |offset: usize| {
        let index = pieces
            .iter()
            .position(|(from, to)| (*from..*to).contains(&offset));
        1_000 + index.unwrap() as u64
    };
    let last_piece = 1_000 + pieces.len() as u64 - 1;
    if response.until_close {
        assert_eq!(socket.facts().outcome, Outcome::OPEN);
        http1::closed(&mut socket.slot, false, 1_000_000);
    }
    let facts = socket.facts();
    assert_eq!(facts.outcome, Outcome::DONE, "{facts:?}");
    assert_eq!(facts.phase, Phase::IDLE);
    assert_eq!(facts.status, response.status);
    assert_eq!(
        facts.chunks,
        response.chunks,
        "{}",
        String::from_utf8_lossy(&response.bytes)
    );
    assert_eq!(facts.response_bytes, response.bytes.len() as u64);
    assert_eq!(facts.flags & TRUNCATED, 0);
    assert_eq!(facts.first_data, response.first_body.map_or(0, piece_of));
    assert_eq!(facts.last_data, response.last_body.map_or(0, piece_of));
    assert_eq!(facts.end, last_piece);
    assert_eq!(facts.head, piece_of(response.head - 1));
    if facts.first_data == last_piece {
        assert_eq!(facts.first_chunks, facts.chunks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_a_response_gives_the_same_request(
        response in response(),
        cuts in prop::collection::vec(1usize..300, 0..60),
        window in prop_oneof![Just(WINDOW), 1usize..WINDOW],
    ) {
        check(&response, &[], WINDOW);
        check(&response, &cuts, WINDOW);
        check(&response, &cuts, window);
    }

    #[test]
    fn a_stream_sent_chunk_by_chunk_gives_the_same_request(
        ndjson in any::<bool>(),
        events in prop::collection::vec(
            prop_oneof![
                "[ -~é]{40,200}",
                "[ -~]{800,1100}",
                "[ -~]{20,60}\\r?\\ndata: [ -~]{20,60}",
                "[\t -~]{40,60}",
                Just("[DONE]".to_owned()),
            ].prop_flat_map(|text| (
                prop_oneof![Just("data: "), Just("data:"), Just(": "), Just("event: ")],
                Just(text),
                prop_oneof![Just("\n\n"), Just("\r\n\r\n"), Just("\n")],
            )),
            1..8,
        ),
        damage in prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let kind = if ndjson { "application/x-ndjson" } else { "text/event-stream" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let mut sends = vec![head.into_bytes()];
        for (name, text, end) in &events {
            let data = format!("{name}{text}{end}");
            sends.push(format!("{:x}\r\n{data}\r\n", data.len()).into_bytes());
        }
        if let Some((index, byte)) = damage {
            let send = index.index(sends.len() - 1) + 1;
            let at = index.index(sends[send].len());
            sends[send][at] = byte;
        }
        let mut whole = Socket::new(POST.as_bytes(), WINDOW);
        let mut pieces = Socket::new(POST.as_bytes(), 7);
        for (now, send) in (1_000..).zip(&sends) {
            whole.send(send, now);
            pieces.send(send, now);
            let (one, other) = (whole.facts(), pieces.facts());
            prop_assert_eq!(seen(&one), seen(&other));
            prop_assert_eq!(
                (one.first_data, one.last_data, one.first_chunks, one.phase),
                (other.first_data, other.last_data, other.first_chunks, other.phase)
            );
        }
        prop_assert_eq!((pieces.events, pieces.heads), (0, 0));
        prop_assert_eq!(whole.heads, 1);
    }

    #[test]
    fn a_head_taken_at_once_leaves_what_its_lines_one_by_one_leave(
        response in response(),
        stale in any::<u8>(),
        damage in prop::option::weighted(0.3, (0..400usize, any::<u8>())),
        cut in prop::option::of(0..500usize),
    ) {
        let mut bytes = response.bytes;
        if let Some((at, byte)) = damage && let Some(old) = bytes.get_mut(at) {
            *old = byte;
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let mut whole = Socket::new(response.request.as_bytes(), WINDOW);
        // What an earlier send has left in the buffer is not this one's.
        whole.window.bytes()[FRONT..].fill(stale);
        let mut lines = Socket::new(response.request.as_bytes(), WINDOW - 1);
        let left_over = (whole.send(&bytes, 9), lines.send(&bytes, 9));
        prop_assert_eq!(lines.heads, 0);
        prop_assert_eq!(left_over.0, left_over.1);
        let (one, other) = (whole.facts(), lines.facts());
        prop_assert_eq!(seen(&one), seen(&other));
        prop_assert_eq!(
            (one.head, one.first_data, one.last_data, one.end, one.first_chunks, one.phase),
            (other.head, other.first_data, other.last_data, other.end, other.first_chunks, other.phase)
        );
        let cursor = |slot: &Slot| (slot.cursor.left, slot.cursor.line_len, slot.cursor.data_len);
        prop_assert_eq!(cursor(&whole.slot), cursor(&lines.slot));
    }

    #[test]
    fn a_response_sent_byte_by_byte_gives_the_same_request(response in response()) {
        check(&response, &vec![1; response.bytes.len()], WINDOW);
    }

    #[test]
    fn malformed_bytes_never_panic_and_any_split_reads_them_alike(
        bytes in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..50),
                Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
                Just(b"HTTP/1.1 101 Switching\r\n".to_vec()),
                Just(b"\r\n".to_vec()),
                Just(b"content-length: 99999999999999999999\r\n".to_vec()),
                Just(b"content-length: -1\r\n".to_vec()),
                Just(b"transfer-encoding: chunked\r\n".to_vec()),
                Just(b"content-type: text/event-stream\r\n".to_vec()),
                Just(b"fffffffffffffffffffff\r\n".to_vec()),
                Just(b"fffffffffffffff\r\n".to_vec()),
                Just(b"data: x\n\n".to_vec()),
                Just(b"0\r\n".to_vec()),
            ], 0..30).prop_map(|parts| parts.concat()),
        cuts in prop::collection::vec(1usize..40, 0..60),
    ) {
        let run = |cuts: &[usize]| {
            let mut socket = Socket::new(POST.as_bytes(), WINDOW);
            let (mut at, mut i) = (0, 0);
            while at < bytes.len() && socket.facts().phase != Phase::IDLE {
                let size = cuts.get(i).copied().unwrap_or(usize::MAX);
                let next = at.saturating_add(size).min(bytes.len());
                at = next - socket.send(&bytes[at..next], 5) as usize;
                i += 1;
            }
            (at, seen(&socket.facts()))
        };
        let (whole_at, mut whole) = run(&[]);
        let (cut_at, mut cut) = run(&cuts);
        prop_assert_eq!(whole_at, cut_at);
        // What is sent behind the end in one write is counted with it.
        whole.response_bytes = 0;
        cut.response_bytes = 0;
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn a_method_is_known_from_any_beginning(
        method in prop_oneof![
            Just("GET"), Just("POST"), Just("HEAD"), Just("PUT"),
            Just("PATCH"), Just("DELETE"), Just("OPTIONS"), Just("TRACE"),
        ],
        target in prop_oneof![
            Just(("/v1/completions", 1)), Just(("http://host:8000/v1/models", 4)), Just(("*", 2)),
        ],
        length in 1usize..20,
    ) {
        let (target, least) = target;
        let line = format!("{method} {target} HTTP/1.1\r\n");
        let length = length.min(line.len());
        let start = beginning(&line.as_bytes()[..length]);
        if length >= method.len() + 1 + least {
            prop_assert!(matches!(start, Start::Request(_)));
        } else {
            prop_assert_eq!(start, Start::Partial);
        }
    }

    #[test]
    fn other_bytes_begin_no_request(bytes in prop::collection::vec(any::<u8>(), 16)) {
        prop_assert_eq!(beginning(&bytes), Start::No);
    }
}

#[test]
fn what_is_almost_a_request_is_none() {
    for line in [
        "get / HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
        "GET key\r\n",
        "GET hkey value\r\n",
        "GET *\r\n...........",
        "POST\t/ HTTP/1.1\r\n",
        "CONNECT host:443 HTTP/1.1\r\n",
        "GETS /........\r\n",
        "HTTP/1.1 200 OK\r\n",
    ] {
        assert_eq!(beginning(line.as_bytes()), Start::No, "{line}");
    }
}

/// What the first bytes of a receive are; what lies behind them is anything.
fn beginning(bytes: &[u8]) -> Start {
    let mut words = [0xff; 16];
    let length = bytes.len().min(16);
    words[..length].copy_from_slice(&bytes[..length]);
    let first = u64::from_le_bytes(words[..8].try_into().unwrap());
    let second = u64::from_le_bytes(words[8..].try_into().unwrap());
    http1::request_line(first, second, bytes.len() as u64)
}

fn fixed(request: &'static str, bytes: &str, status: u16, first_body: Option<usize>) -> Response {
    Response {
        bytes: bytes.as_bytes().to_vec(),
        chunks: 0,
        status,
        head: bytes.find("\r\n\r\n").unwrap() + 4,
        first_body,
        last_body: first_body.map(|_| bytes.len() - 1),
        request,
        until_close: false,
    }
}

#[test]
fn a_response_without_a_body_ends_with_its_head() {
    let get = "GET / HTTP/1.1\r\n";
    let head = "HEAD / HTTP/1.1\r\n";
    for (request, bytes, status) in [
        (get, "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", 204),
        (
            get,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            304,
        ),
        (
            get,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            404,
        ),
        (head, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 200),
        (
            head,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            200,
        ),
    ] {
        let response = fixed(request, bytes, status, None);
        check(&response, &[], WINDOW);
        check(&response, &vec![1; bytes.len()], WINDOW);
    }
}

#[test]
fn a_send_that_is_one_event_is_taken_at_once() {
    for (kind, data) in [
        (
            "text/event-stream",
            "data: {\"choices\":[{\"text\":\" a token\"}]}\n\n",
        ),
        (
            "application/x-ndjson",
            "{\"response\":\" a token, and what is told of it\"}\n",
        ),
    ] {
        let mut socket = Socket::new(POST.as_bytes(), WINDOW);
        let head = format!("Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
        socket.send(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes(), 1);
        for now in 2..9 {
            socket.send(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes(), now);
        }
        socket.send(b"0\r\n\r\n", 9);
        let facts = socket.facts();
        assert_eq!((socket.events, facts.chunks), (7, 7), "{kind}");
        assert_eq!((facts.first_data, facts.last_data, facts.end), (2, 8, 9));
        assert_eq!((facts.first_chunks, facts.outcome), (1, Outcome::DONE));
    }
}

#[test]
fn a_change_of_protocol_ends_the_request_and_begins_a_session() {
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let frames = "\u{1}\u{5}HTTP/1.1 200 OK\r\n";
    for cut in [head.len() + frames.len(), head.len(), head.len() - 1, 3] {
        let mut socket = Socket::new(b"GET /chat HTTP/1.1", WINDOW);
        let bytes = format!("{head}{frames}");
        let mut over = socket.send(&bytes.as_bytes()[..cut], 7);
        if socket.facts().phase != Phase::IDLE {
            over = socket.send(&bytes.as_bytes()[cut..], 7);
        }
        assert_eq!(
            over as usize,
            if cut == head.len() { 0 } else { frames.len() }
        );
        let facts = socket.facts();
        assert!(http1::is_session(&socket.slot));
        assert_eq!(
            (facts.status, facts.outcome, facts.end),
            (101, Outcome::DONE, 7)
        );
        assert_eq!((facts.first_data, facts.chunks), (0, 0));
    }
}

#[test]
fn a_last_line_of_json_may_lack_its_newline() {
    for (body, chunks) in [("{}\n{}", 2), ("{}\n{}\n", 2), ("{}\r\n\r", 1), ("{}", 1)] {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/jsonl\r\nContent-Length:";
        let bytes = format!("{head}{}\r\n\r\n{body}", body.len());
        let mut response = fixed(
            "GET / HTTP/1.1\r\n",
            &bytes,
            200,
            Some(bytes.len() - body.len()),
        );
        response.chunks = chunks;
        check(&response, &[], WINDOW);
        check(&response, &vec![1; bytes.len()], WINDOW);
    }
}

#[test]
fn a_second_response_behind_the_end_is_left_over() {
    let one = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut socket = Socket::new(b"GET / HTTP/1.1", WINDOW);
    assert_eq!(
        socket.send(format!("{one}{one}").as_bytes(), 7),
        one.len() as u64
    );
    assert_eq!(socket.facts().outcome, Outcome::DONE);
}

#[test]
fn an_unreadable_body_of_known_length_still_ends() {
    let mut socket = Socket::new(b"GET / HTTP/1.1", WINDOW);
    socket.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", 7);
    assert!(http1::passes(&socket.slot));
    assert_eq!(http1::pass(&mut socket.slot, 8_000, 8), 8_000);
    assert_eq!(http1::pass(&mut socket.slot, 2_000, 9), 1_000);
    let facts = socket.facts();
    assert_eq!(
        (facts.outcome, facts.first_data, facts.end),
        (Outcome::DONE, 8, 9)
    );
}

#[test]
fn an_unreadable_stream_is_marked_and_ends_with_its_connection() {
    let mut socket = Socket::new(b"GET / HTTP/1.1", WINDOW);
    socket.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 7);
    http1::unread(&mut socket.slot, 100, 8);
    assert_eq!(socket.facts().phase, Phase::LOST);
    http1::closed(&mut socket.slot, false, 99);
    let facts = socket.facts();
    assert_eq!((facts.outcome, facts.end), (Outcome::INCOMPLETE, 8));
    assert_ne!(facts.flags & TRUNCATED, 0);
}

#[test]
fn a_client_that_closes_before_the_end_has_aborted() {
    let mut socket = Socket::new(b"GET / HTTP/1.1", WINDOW);
    socket.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nhalf", 7);
    socket.slot.facts.end = 9;
    socket.slot.facts.flags |= CLIENT_CLOSED;
    http1::closed(&mut socket.slot, false, 99);
    assert_eq!(
        (socket.facts().outcome, socket.facts().end),
        (Outcome::ABORTED, 9)
    );
}

#[test]
fn a_client_that_closes_its_side_alone_still_gets_its_response() {
    let mut socket = Socket::new(b"GET / HTTP/1.0", WINDOW);
    socket.slot.facts.end = 5;
    socket.slot.facts.flags |= CLIENT_CLOSED;
    socket.send(b"HTTP/1.0 200 OK\r\n\r\nbody", 7);
    http1::closed(&mut socket.slot, false, 99);
    assert_eq!(
        (socket.facts().outcome, socket.facts().end),
        (Outcome::DONE, 7)
    );
}

#[test]
fn an_event_of_several_lines_is_one_chunk_and_one_of_counts_alone_is_held_back() {
    let body = ": ping\n\ndata: a\ndata: b\n\nid: 7\r\ndata: c\r\n\r\ndata: {\"n\":{\"x\":1}}\n\ndata: [DONE]\n\n";
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length:";
    let bytes = format!("{head}{}\r\n\r\n{body}", body.len());
    for cut in [bytes.len(), 1, 7] {
        let mut socket = Socket::new(POST.as_bytes(), WINDOW);
        for piece in bytes.as_bytes().chunks(cut) {
            socket.send(piece, 5);
        }
        let facts = socket.facts();
        assert_eq!((facts.chunks, facts.outcome), (2, Outcome::DONE), "{cut}");
        assert_ne!(facts.flags & HELD, 0);
        assert_eq!(
            socket.kept(),
            Some((2, b"data: {\"n\":{\"x\":1}}".to_vec()))
        );
    }
}
