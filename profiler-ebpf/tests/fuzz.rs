//! A million seeded cases and more for each parser that the kernel runs too: none panics, none
//! keeps more than its state, and every split of the same bytes says the same.
//!
//! The seed is fixed, so a failure is found again; `FUZZ_SEED` and `FUZZ_CASES` try others.

#[path = "http1/socket.rs"]
mod socket;

use profiler_ebpf::http1::{self, FRONT, KEPT, Start, WINDOW, Window, trace};
use profiler_ebpf::request::*;
use socket::Socket;

const CASES: u64 = 1_000_000;

/// xorshift64*: enough to choose with.
struct Random(u64);

impl Random {
    fn new(stream: u64) -> Self {
        let seed = std::env::var("FUZZ_SEED").ok();
        let seed: u64 = seed.and_then(|seed| seed.parse().ok()).unwrap_or(1);
        Self((seed << 8 | stream).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn choose<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len())]
    }
}

fn cases() -> u64 {
    let told = std::env::var("FUZZ_CASES").ok();
    told.and_then(|cases| cases.parse().ok()).unwrap_or(CASES)
}

fn beginning(bytes: &[u8]) -> Start {
    let mut words = [0xa5; 16];
    let length = bytes.len().min(16);
    words[..length].copy_from_slice(&bytes[..length]);
    let first = u64::from_le_bytes(words[..8].try_into().unwrap());
    let second = u64::from_le_bytes(words[8..].try_into().unwrap());
    http1::request_line(first, second, bytes.len() as u64)
}

#[test]
fn a_request_line_is_never_taken_back() {
    let mut random = Random::new(1);
    let words: [&[u8]; 14] = [
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"PUT ",
        b"PATCH ",
        b"DELETE ",
        b"OPTIONS ",
        b"TRACE ",
        b"/",
        b"* ",
        b"http://",
        b"HTTP/1.1",
        b"\r\n",
        b"\0",
    ];
    for _ in 0..cases() {
        let mut line = Vec::new();
        while line.len() < 20 {
            if random.below(3) == 0 {
                line.push(random.next() as u8);
            } else {
                line.extend_from_slice(random.choose(&words));
            }
        }
        // More bytes turn what may be a request into one or none, and change nothing else.
        let mut before = Start::Partial;
        for length in 1..=20 {
            let now = beginning(&line[..length]);
            assert!(before == Start::Partial || before == now, "{line:?}");
            before = now;
        }
        assert_ne!(before, Start::Partial, "16 bytes say it: {line:?}");
    }
}

const PIECES: [&[u8]; 34] = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\n\r\n",
    b"HTTP/1.1 204 \r\n",
    b"HTTP/1.0 500 \n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\n",
    b"Content-Length: 30\r\n",
    b"content-length:7\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: gzip, chunked\r\n",
    b"Content-Encoding: br\r\n",
    b"Content-Type: text/event-stream\r\n",
    b"Content-Type: application/x-ndjson\r\n",
    b"content-type: application/json\r\n",
    b"data: ",
    b"data:{\"a\":{\"b\":1}}\n",
    b"data: [DONE]\n\n",
    b"event: x\n",
    b": ping\n\n",
    b"{\"eval_count\":12}\n",
    b"{\"usage\":{\"n\":1}}\r\n",
    b"\"}}\n\n",
    b"}}",
    b"5}",
    b"1e\r\n",
    b"7;a=b\r\n",
    b"0\r\n",
    b"0\r\n\r\n",
    b"fffffffffffffffff\r\n",
    b"ff\r\n",
    b"Trailer: data: x\r\n",
];

/// What a split of the bytes must not change.
type Seen = (u16, Outcome, Phase, u32, u16, Option<(u32, Vec<u8>)>, u64);

fn response(bytes: &[u8], window: usize, mut cut: impl FnMut() -> usize) -> (usize, Seen) {
    let mut socket = Socket::new(b"POST / HTTP/1.1", window);
    let mut at = 0;
    while at < bytes.len() && socket.facts().phase != Phase::IDLE {
        let next = at.saturating_add(cut()).min(bytes.len());
        at = next - socket.send(&bytes[at..next], 5) as usize;
    }
    let facts = socket.facts();
    assert!(socket.slot.cursor.line_len <= 40 && socket.slot.cursor.data_len <= 16);
    let seen = (
        facts.status,
        facts.outcome,
        facts.phase,
        facts.chunks,
        facts.flags,
        socket.kept(),
        socket.slot.cursor.left,
    );
    (at, seen)
}

#[test]
fn any_split_of_any_response_says_the_same() {
    let mut random = Random::new(2);
    let mut bytes = Vec::new();
    for case in 0..cases() {
        bytes.clear();
        if case % 4 != 0 {
            bytes.extend_from_slice(PIECES[0]);
            bytes.extend_from_slice(random.choose(&PIECES[8..17]));
            bytes.extend_from_slice(random.choose(&PIECES[8..17]));
            bytes.extend_from_slice(b"\r\n");
        }
        for _ in 0..random.below(8) {
            match random.below(8) {
                0 => bytes.push(random.next() as u8),
                1 => {
                    let length = random.below(12);
                    bytes.resize(bytes.len() + length, b'x');
                }
                _ => bytes.extend_from_slice(random.choose(&PIECES)),
            }
        }
        if case % 64 == 0 {
            let at = random.below(bytes.len() + 1);
            let long = vec![b'y'; random.below(2_500)];
            bytes.splice(at..at, long);
        }
        let whole = response(&bytes, WINDOW, || usize::MAX);
        let most = 1 + random.below(40);
        let window = 1 + random.below(WINDOW);
        let cut = response(&bytes, window, || 1 + random.below(most));
        assert_eq!(whole, cut, "case {case}: {}", bytes.escape_ascii());
    }
}

#[test]
fn a_stream_taken_send_by_send_is_what_its_bytes_are() {
    let mut random = Random::new(3);
    let text: [&[u8]; 12] = [
        b"{\"choices\":[{\"text\":\" token\"}]}",
        b"{\"x\":{\"y\":1}}",
        b"\"}}",
        b"}}",
        b"7}",
        b"null}",
        b"[DONE]",
        b"0123456789012345678901234567890123456789",
        b"\xc3\xa9",
        b"\t",
        b"\r",
        b"\n",
    ];
    let mut sends = Vec::new();
    for case in 0..cases() {
        let ndjson = case % 3 == 0;
        let kind = if ndjson { "x-ndjson" } else { "event-stream" };
        let kind = format!("{}/{kind}", if ndjson { "application" } else { "text" });
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        sends.clear();
        for _ in 0..1 + random.below(5) {
            let mut data = random
                .choose(&[b"data: ", b"data:", b": ", b"event: "])
                .to_vec();
            for _ in 0..1 + random.below(4) {
                data.extend_from_slice(random.choose(&text));
            }
            data.extend_from_slice(random.choose(&[b"\n\n", b"\n\n", b"\r\n\r\n", b"\n"]));
            let mut send = format!("{:x}\r\n", data.len()).into_bytes();
            send.extend_from_slice(&data);
            send.extend_from_slice(b"\r\n");
            if random.below(12) == 0 {
                let at = random.below(send.len());
                send[at] = random.next() as u8;
            }
            sends.push(send);
        }
        let mut fast = Socket::new(b"POST / HTTP/1.1", WINDOW);
        let mut slow = Socket::new(b"POST / HTTP/1.1", 9 + random.below(30));
        fast.send(head.as_bytes(), 1);
        slow.send(head.as_bytes(), 1);
        for (now, send) in (2..).zip(&sends) {
            fast.send(send, now);
            slow.send(send, now);
            let (one, other) = (fast.facts(), slow.facts());
            let what = |facts: &Facts| {
                (
                    facts.chunks,
                    facts.first_chunks,
                    facts.first_data,
                    facts.last_data,
                    facts.flags,
                    facts.phase,
                )
            };
            assert_eq!(what(&one), what(&other), "case {case}");
            assert_eq!(fast.kept(), slow.kept(), "case {case}");
        }
    }
}

/// The end of a stream as one who has all of it would tell it: chunks, and the kept line.
fn told(lines: &[(Vec<u8>, bool)]) -> (u32, Option<Vec<u8>>) {
    let (mut chunks, mut held, mut kept) = (0, false, None);
    for (line, may_count) in lines {
        chunks += u32::from(held);
        held = *may_count && chunks != 0;
        chunks += u32::from(!held);
        if *may_count {
            kept = Some(line[line.len().saturating_sub(KEPT)..].to_vec());
        }
    }
    (chunks, kept)
}

#[test]
fn the_kept_end_is_the_last_line_that_may_count() {
    let mut random = Random::new(4);
    let ends: [(&[u8], bool); 8] = [
        (b"\"n\":1}}", true),
        (b"\"n\":{}}}", true),
        (b"\"eval_count\":12}", true),
        (b"\"text\":\"x\"}}", false),
        (b"null}", false),
        (b"[]}", false),
        (b"5} ", false),
        (b"true}}", false),
    ];
    for case in 0..cases() {
        let mut lines = Vec::new();
        let mut body = Vec::new();
        for _ in 0..1 + random.below(4) {
            let mut line = b"data: {".to_vec();
            let length = if random.below(40) == 0 {
                random.below(1_500)
            } else {
                random.below(30)
            };
            line.extend((0..length).map(|at| b'a' + (at % 26) as u8));
            let (end, may_count) = ends[random.below(ends.len())];
            // A word before two braces counts, a text does not.
            let may_count = may_count || end == b"true}}";
            line.extend_from_slice(end);
            let feed: &[u8] = random.choose(&[b"\n", b"\r\n"]);
            body.extend_from_slice(&line);
            body.extend_from_slice(feed);
            body.extend_from_slice(feed);
            if feed.len() == 2 {
                line.push(b'\r');
            }
            lines.push((line, may_count));
            if random.below(4) == 0 {
                body.extend_from_slice(random.choose(&[
                    b"data: [DONE]\n\n",
                    b": ping\n\n",
                    b"event: e\n",
                ]));
            }
        }
        let mut bytes = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        let most = 1 + random.below(200);
        let (_, seen) = response(&bytes, 1 + random.below(WINDOW), || 1 + random.below(most));
        let (chunks, kept) = told(&lines);
        assert_eq!((seen.1, seen.3), (Outcome::DONE, chunks), "case {case}");
        assert_eq!(seen.5.map(|(_, bytes)| bytes), kept, "case {case}");
    }
}

/// The header's value as the kernel side finds it in receives of these sizes.
fn traced(head: &[u8], window: &mut Window, mut cut: impl FnMut() -> usize) -> Option<Vec<u8>> {
    // SAFETY: plain integers, for which zero is a value.
    let mut slot: Slot = unsafe { std::mem::zeroed() };
    http1::begin_request(&mut slot, 0);
    let mut rest = head;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(cut().min(rest.len()).min(WINDOW));
        window.bytes()[FRONT..FRONT + now.len()].copy_from_slice(now);
        window.set_cursor(FRONT as u64);
        window.set_end(now.len() as u64);
        let mut steps = 0;
        while !trace::step(window, &mut slot.facts) {
            steps += 1;
            assert!(steps <= WINDOW, "every step takes a byte");
        }
        rest = later;
    }
    let facts = slot.facts;
    (usize::from(facts.trace_len) == TRACE).then(|| facts.trace.to_vec())
}

/// The same by whole lines.
fn header(head: &[u8]) -> Option<Vec<u8>> {
    for line in head.split_inclusive(|byte| *byte == b'\n').skip(1) {
        if line == b"\n" || line == b"\r\n" {
            return None;
        }
        let name = line.get(..12).unwrap_or_default();
        if name.eq_ignore_ascii_case(b"traceparent:") {
            let blanks = line[12..]
                .iter()
                .take_while(|byte| matches!(byte, b' ' | b'\t'))
                .count();
            let value = line[12 + blanks..].get(..TRACE).unwrap_or_default();
            if value.len() == TRACE && value.iter().all(|byte| *byte > b' ') {
                return Some(value.to_vec());
            }
        }
    }
    None
}

#[test]
fn a_trace_is_found_in_any_split_of_a_head_and_nowhere_behind_it() {
    let mut random = Random::new(5);
    let value = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let parts: [&[u8]; 12] = [
        b"traceparent: ",
        b"TraceParent:",
        b"traceparent:\t",
        b"tracepar",
        value,
        value,
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"Host: x\r\n",
        b"traceparents: ",
        &value[..30],
    ];
    let mut window = Box::<Window>::default();
    for case in 0..cases() {
        let mut head = b"POST / HTTP/1.1\r\n".to_vec();
        for _ in 0..random.below(9) {
            if random.below(8) == 0 {
                // Below a letter's case bit some controls read as letters: a head holds none.
                head.push(b' ' + (random.next() % 95) as u8);
            } else {
                head.extend_from_slice(random.choose(&parts));
            }
        }
        let expected = header(&head);
        let most = 1 + random.below(50);
        let cut = traced(&head, &mut window, || 1 + random.below(most));
        assert_eq!(
            cut,
            expected,
            "case {case}: {}",
            String::from_utf8_lossy(&head)
        );
    }
}

#[test]
fn raw_bytes_harm_no_parser() {
    let mut random = Random::new(6);
    let mut window = Box::<Window>::default();
    let mut bytes = Vec::new();
    for _ in 0..cases() {
        bytes.clear();
        for _ in 0..random.below(12) {
            bytes.extend_from_slice(&random.next().to_le_bytes()[..6]);
        }
        beginning(&bytes);
        let whole = response(&bytes, WINDOW, || usize::MAX);
        let cut = response(&bytes, 1 + random.below(60), || 1 + random.below(9));
        assert_eq!(whole, cut);
        let one = traced(&bytes, &mut window, || usize::MAX);
        assert_eq!(one, traced(&bytes, &mut window, || 1 + random.below(9)));
    }
}
