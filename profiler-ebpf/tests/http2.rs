//! The HTTP/2 walk on the host: whatever way the bytes are cut, the requests are the same.

#[path = "http2/script.rs"]
mod script;
#[path = "http2/walk.rs"]
mod walk;

use std::collections::HashMap;

use profiler_ebpf::http1::{FRONT, WINDOW, Window};
use profiler_ebpf::http2::{self, Found};
use profiler_ebpf::request::*;
use script::{Mark, PREFACE, Random, Script, frame};
use walk::Socket;

/// Cases of each property: 10⁶ where the code is optimised, as it runs; fewer where it is not.
const CASES: u64 = if cfg!(debug_assertions) {
    20_000
} else {
    1_000_000
};

/// Cuts what is sent and received into reads and writes; calls `moved` with each and its time,
/// and returns the time of each byte of each frame's first and last.
fn play(script: &Script, random: &mut Random, socket: &mut Socket) -> Vec<Vec<u64>> {
    let mut times = Vec::new();
    let mut pending: (bool, Vec<u8>) = (false, Vec::new());
    let mut clock = 1_000;
    let mut flush = |random: &mut Random, pending: &mut (bool, Vec<u8>), times: &mut Vec<u64>| {
        let mut rest = &pending.1[..];
        let most = match random.below(4) {
            0 => 1,
            1 => 12,
            2 => 300,
            _ => u64::MAX,
        };
        while !rest.is_empty() {
            let length = 1 + random.below(most.min(rest.len() as u64)) as usize;
            let (now, later) = rest.split_at(length);
            rest = later;
            clock += 1;
            if pending.0 {
                socket.send(now, clock);
            } else {
                socket.receive(now, clock);
            }
            times.extend(vec![clock; length]);
        }
        pending.1.clear();
    };
    let mut flat = Vec::new();
    for step in &script.steps {
        if step.sent != pending.0 {
            flush(random, &mut pending, &mut flat);
            pending.0 = step.sent;
        }
        pending.1.extend(&step.bytes);
    }
    flush(random, &mut pending, &mut flat);
    let mut at = 0;
    for step in &script.steps {
        times.push(flat[at..at + step.bytes.len()].to_vec());
        at += step.bytes.len();
    }
    times
}

fn check(seed: u64) {
    let mut random = Random(seed);
    let script = Script::random(&mut random);
    let window_size = if random.one_in(3) {
        1 + random.below(WINDOW as u64)
    } else {
        WINDOW as u64
    };
    let mut socket = Socket::new(window_size);
    let times = play(&script, &mut random, &mut socket);
    assert_eq!(socket.unreadable, 0, "seed {seed}");
    assert_eq!(socket.holes, 0, "seed {seed}");
    assert!(socket.open.is_empty(), "seed {seed}");
    for sent in [false, true] {
        let told: Vec<_> = socket
            .blocks
            .iter()
            .filter(|block| block.sent == sent)
            .map(|block| {
                assert!(block.whole, "seed {seed}");
                (block.stream, block.bytes.clone())
            })
            .collect();
        assert_eq!(told, script.blocks[usize::from(sent)], "seed {seed}");
    }
    let ended: HashMap<u32, &Facts> = socket
        .ended
        .iter()
        .map(|facts| (facts.stream, facts))
        .collect();
    assert_eq!(socket.ended.len(), script.streams.len(), "seed {seed}");
    for (stream, expected) in &script.streams {
        let facts = ended[stream];
        let mut want = Expectation::default();
        for (step, times) in script.steps.iter().zip(&times) {
            if step.stream == *stream {
                want.frame(step, times);
            }
        }
        let got = Expectation {
            outcome: facts.outcome.0,
            start: facts.start,
            request_end: facts.request_end,
            request_bytes: facts.request_bytes,
            response_bytes: facts.response_bytes,
            head: facts.head,
            first_data: facts.first_data,
            last_data: facts.last_data,
            end: facts.end,
        };
        assert_eq!(got, want, "seed {seed} stream {stream}");
        assert_eq!(facts.chunks, expected.chunks, "seed {seed} stream {stream}");
        assert_eq!(facts.flags & GRPC != 0, expected.grpc, "seed {seed}");
        assert_eq!(facts.flags & SSE != 0, expected.sse, "seed {seed}");
        assert_eq!(facts.flags & NDJSON != 0, expected.ndjson, "seed {seed}");
        assert_eq!(facts.flags & TRUNCATED, 0, "seed {seed}");
        assert_eq!((facts.connection, facts.phase), (77, Phase::IDLE));
    }
}

/// What a stream's frames come to, by a reading of the protocol that knows where each byte is.
#[derive(Debug, Default, PartialEq)]
struct Expectation {
    outcome: u8,
    start: u64,
    request_end: u64,
    request_bytes: u64,
    response_bytes: u64,
    head: u64,
    first_data: u64,
    last_data: u64,
    end: u64,
}

impl Expectation {
    fn frame(&mut self, step: &script::Step, times: &[u64]) {
        if self.outcome != 0 {
            return;
        }
        let (header, last) = (times[8], times[times.len() - 1]);
        let kind = step.bytes[3];
        let bytes = step.bytes.len() as u64;
        match (step.sent, kind) {
            (false, 0 | 1) => {
                self.request_bytes += bytes;
                self.request_end = if kind == 0 { last } else { header };
            }
            (true, 0 | 1) => {
                self.response_bytes += bytes;
                if kind == 1 && self.first_data == 0 {
                    self.head = header;
                }
            }
            _ => {}
        }
        if !step.content.is_empty() {
            if self.first_data == 0 {
                self.first_data = times[step.content.start];
            }
            self.last_data = times[step.content.end - 1];
        }
        let outcome = match step.mark {
            Mark::Request => {
                self.start = header;
                return;
            }
            Mark::End => Outcome::DONE,
            Mark::ResetByClient => Outcome::ABORTED,
            Mark::ResetByServer => Outcome::INCOMPLETE,
            _ => return,
        };
        self.outcome = outcome.0;
        self.end = last;
    }
}

#[test]
fn any_split_of_any_connection_gives_the_same_requests() {
    for seed in 0..CASES / 10 {
        check(seed);
    }
}

#[test]
fn garbage_never_panics_and_never_grows() {
    for seed in 0..CASES {
        let mut random = Random(seed);
        let mut socket = if random.one_in(2) {
            Socket::new(WINDOW as u64)
        } else {
            Socket::joined()
        };
        for now in 1..=1 + random.below(4) {
            let mut bytes = Vec::new();
            if now == 1 && random.one_in(2) {
                bytes.extend(PREFACE);
            }
            let length = random.below(80);
            for _ in 0..random.below(3) {
                let length = random.below(12);
                let kind = random.below(11) as u8;
                let (flags, stream) = (random.next() as u8, random.below(6) as u32);
                bytes.extend(frame(kind, flags, stream, &random.bytes(length)));
            }
            bytes.extend(random.bytes(length));
            if random.one_in(2) {
                socket.send(&bytes, now);
            } else {
                socket.receive(&bytes, now);
            }
        }
        assert!(socket.open.len() <= 16, "seed {seed}");
    }
}

#[test]
fn a_damaged_connection_still_ends_each_request_at_most_once() {
    for seed in 0..CASES / 20 {
        let mut random = Random(seed);
        let mut script = Script::random(&mut random);
        let step = random.below(script.steps.len() as u64) as usize;
        let bytes = &mut script.steps[step].bytes;
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        let mut socket = Socket::new(WINDOW as u64);
        play(&script, &mut random, &mut socket);
        let mut streams: Vec<u32> = socket.ended.iter().map(|facts| facts.stream).collect();
        let count = streams.len();
        streams.sort_unstable();
        streams.dedup();
        assert_eq!(streams.len(), count, "seed {seed}");
    }
}

fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(1, flags, stream, block)
}

/// `:method POST`, `:scheme http`, `:path` as it comes.
const REQUEST: &[u8] = &[0x83, 0x86, 0x44, 0x01, b'/', 0x41, 0x01, b'x'];

#[test]
fn a_connection_found_open_has_the_requests_that_begin_from_then_on() {
    let mut socket = Socket::joined();
    socket.receive(&headers(5, 9, REQUEST), 1);
    // The rest of a response to a stream from before, then ours.
    socket.send(&[b'x'; 40], 2);
    socket.send(&headers(4, 9, &[0x88]), 3);
    socket.send(&frame(0, 1, 9, b"{}"), 4);
    let [facts] = &socket.ended[..] else {
        panic!("one request")
    };
    assert_eq!(
        (facts.stream, facts.start, facts.head, facts.end),
        (9, 1, 3, 4)
    );
    assert_eq!(facts.outcome, Outcome::DONE);
    assert!(
        socket.holes >= 1,
        "the agent knows that it has missed blocks"
    );
}

#[test]
fn what_cannot_be_read_is_lost_and_found_again_without_a_request_too_many() {
    let mut socket = Socket::new(WINDOW as u64);
    socket.receive(&[PREFACE, &frame(4, 0, 0, &[])].concat(), 1);
    socket.receive(&headers(5, 1, REQUEST), 2);
    socket.receive(&headers(5, 3, REQUEST), 2);
    socket.send(&headers(4, 1, &[0x88]), 3);
    socket.send(&frame(0, 0, 1, &[0, 0, 0, 0, 9, 1, 2]), 4);
    socket.send_unreadable(100, 5);
    assert_eq!(socket.unreadable, 1);
    // In the midst of something, then at a frame.
    socket.send(&[0xff; 50], 6);
    socket.send(&headers(5, 3, &[0x88]), 7);
    socket.send(&frame(0, 1, 1, &[0, 0, 0, 0, 0]), 8);
    let ended: Vec<_> = socket
        .ended
        .iter()
        .map(|facts| (facts.stream, facts.end))
        .collect();
    assert_eq!(ended, [(3, 7), (1, 8)]);
    let one = socket.ended[1];
    assert_eq!((one.chunks, one.flags & TRUNCATED), (1, TRUNCATED));
    assert!(socket.holes >= 1);
}

#[test]
fn data_that_is_passed_over_needs_no_reading() {
    let mut socket = Socket::new(WINDOW as u64);
    socket.receive(&[PREFACE, &headers(5, 1, REQUEST)].concat(), 1);
    socket.send(&headers(4, 1, &[0x88]), 2);
    let body = frame(0, 0, 1, &[b'['; 16_384]);
    socket.send(&body[..100], 3);
    socket.send_unreadable(body.len() as u64 - 100, 4);
    socket.send(&frame(0, 1, 1, &[]), 5);
    assert_eq!(socket.unreadable, 0);
    let facts = socket.ended[0];
    assert_eq!((facts.first_data, facts.last_data, facts.end), (3, 4, 5));
}

#[test]
fn json_that_is_one_answer_is_not_read_to_its_end() {
    let mut socket = Socket::new(WINDOW as u64);
    socket.receive(&[PREFACE, &headers(5, 1, REQUEST)].concat(), 1);
    socket.send(&headers(4, 1, &[0x88]), 2);
    let body = frame(0, 0, 1, &[b'{'; 16_384]);
    socket.send(&body[..6_000], 3);
    socket.send_unreadable(body.len() as u64 - 6_000, 4);
    socket.send(&frame(0, 1, 1, &[]), 5);
    assert_eq!(socket.unreadable, 0);
    let facts = socket.ended[0];
    assert_eq!((facts.chunks, facts.flags & NDJSON), (0, 0));
    assert_eq!((facts.first_data, facts.last_data, facts.end), (3, 4, 5));
}

#[test]
fn a_preface_in_the_place_of_a_frame_is_another_connections() {
    let mut socket = Socket::new(WINDOW as u64);
    let preface = [PREFACE, &frame(4, 0, 0, &[])].concat();
    socket.receive(&preface, 1);
    assert!(!http2::is_restart(&socket.window, preface.len() as u64));
    socket.receive(&preface, 2);
    assert!(http2::is_restart(&socket.window, preface.len() as u64));
    socket.receive(&[0xff; 60], 3);
    assert!(!http2::is_restart(&socket.window, 60));
}

#[test]
fn a_server_that_goes_away_says_which_streams_it_still_serves() {
    let mut socket = Socket::new(WINDOW as u64);
    socket.receive(
        &[PREFACE, &headers(5, 1, REQUEST), &headers(5, 3, REQUEST)].concat(),
        1,
    );
    socket.send(
        &frame(7, 0, 0, &[0x80, 0, 0, 1, 0, 0, 0, 0, b'b', b'y', b'e']),
        2,
    );
    assert_eq!(socket.ends_above, [1]);
}

#[test]
fn an_open_connection_is_taken_for_one_only_at_a_request_for_certain() {
    let found = |bytes: &[u8]| {
        let mut window = Window::new();
        window.bytes()[FRONT..FRONT + bytes.len()].copy_from_slice(bytes);
        http2::find(&window, bytes.len() as u64)
    };
    let long = [REQUEST, &[0; 20]].concat();
    assert_eq!(found(&headers(4, 1, &long)), Found::Request);
    assert_eq!(found(&headers(5, 0x7fff_ffff, &long)), Found::Request);
    let (priority, padded) = ([&[0; 5], &long[..]].concat(), [&[3], &long[..]].concat());
    assert_eq!(found(&headers(0x24, 3, &priority)), Found::Request);
    assert_eq!(found(&headers(0x0c, 3, &padded)), Found::Request);
    // A client's own connection: what it receives are responses.
    let response = [&[0x88, 0xbf, 0xbe], &[0; 20][..]].concat();
    assert_eq!(found(&headers(4, 1, &response)), Found::Nothing);
    // An even stream, no stream, an unknown flag, a request without its headers' end.
    assert_eq!(found(&headers(4, 2, &long)), Found::Nothing);
    assert_eq!(found(&headers(4, 0, &long)), Found::Nothing);
    assert_eq!(found(&headers(6, 1, &long)), Found::Nothing);
    assert_eq!(found(&headers(1, 1, &long)), Found::Nothing);
    assert_eq!(found(&frame(0, 1, 1, &long)), Found::Nothing);
    assert_eq!(found(b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n"), Found::Nothing);
    let mut random = Random(1);
    let wrong = (0..CASES)
        .filter(|_| found(&random.bytes(60)) == Found::Request)
        .count();
    assert_eq!(wrong, 0);
}
