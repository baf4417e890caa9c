//! HTTP/2 on the real kernel: frames that the test writes itself, and real stacks.

#[path = "http2/stacks.rs"]
mod stacks;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use profiler::ledger::{Outcome, Route};
use profiler::probes::health::Tier;

use crate::watch::{Watch, outcome};
use crate::wire::{connect, exchange, listen, read_all, send_cut};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// `POST /v1/completions` in fields that need no table.
const REQUEST: &[u8] = b"\x83\x86\x04\x0f/v1/completions\x01\x01x";
/// `200`, an event stream.
const EVENTS: &[u8] = b"\x88\x0f\x10\x11text/event-stream";
/// `200`, gRPC.
const GRPC: &[u8] = b"\x88\x0f\x10\x10application/grpc";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, REQUEST)
}

fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

fn message(text: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Reads exactly so many bytes, a few at a time.
fn read(stream: &mut TcpStream, bytes: usize, at_once: usize) {
    let mut left = bytes;
    let mut buffer = vec![0; at_once];
    while left > 0 {
        let most = left.min(at_once);
        let read = stream.read(&mut buffer[..most]).expect("bytes");
        assert!(read > 0, "closed with {left} bytes to come");
        left -= read;
    }
}

#[test]
fn padding_priority_and_continuation_are_seen_through_in_any_pieces() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let mut sent = opening();
    let mut padded = vec![4];
    padded.extend([0, 0, 0, 0, 15]);
    padded.extend(&REQUEST[..5]);
    padded.extend([0; 4]);
    let flags = PADDED | WITH_PRIORITY;
    sent.extend(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]));
    sent.extend(frame(HEADERS, flags, 1, &padded));
    sent.extend(frame(CONTINUATION, 0, 1, &REQUEST[5..9]));
    sent.extend(frame(CONTINUATION, END_HEADERS, 1, &REQUEST[9..]));
    let body = [&[3u8][..], b"{\"prompt\": 1}", &[0; 3]].concat();
    sent.extend(frame(DATA, PADDED | END_STREAM, 1, &body));
    let mut answer = frame(SETTINGS, 0, 0, &[]);
    answer.extend(frame(HEADERS, 0, 1, &EVENTS[..4]));
    answer.extend(frame(CONTINUATION, END_HEADERS, 1, &EVENTS[4..]));
    let text = b"data: one\n\ndata: two\n\n: comment\n\ndata: [DONE]\n\n";
    for piece in text.chunks(7) {
        let padded = [&[2], piece, &[0, 0]].concat();
        answer.extend(frame(DATA, PADDED, 1, &padded));
    }
    answer.extend(frame(DATA, END_STREAM, 1, &[]));
    for pieces in [&[1_000_000][..], &[1], &[3, 8, 20], &[10, 1, 9]] {
        let port = exchange(
            |mut stream| {
                read(&mut stream, sent.len(), pieces[0]);
                send_cut(&mut stream, &answer, pieces);
            },
            |mut stream| {
                send_cut(&mut stream, &sent, pieces);
                read(&mut stream, answer.len(), 65_536);
            },
        );
        let [seen] = watch.wait(port, 1)[..] else {
            unreachable!()
        };
        assert_eq!(outcome(&seen), Some(Outcome::Done), "{pieces:?}");
        assert_eq!(seen.request.route, Route::Completions, "{pieces:?}");
        assert_eq!((seen.request.status, seen.request.chunks), (200, 2));
        assert!(seen.request.streamed && !seen.truncated);
    }
    let losses = watch.probe.losses();
    assert_eq!((losses.unreadable, losses.malformed), (0, 0), "{losses:?}");
}

#[test]
fn resets_and_closes_end_streams_as_what_they_are() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let requests: Vec<u8> = (0..4).flat_map(|n| request(2 * n + 1)).collect();
    let requests = [opening(), requests].concat();
    // The client resets 1, the server 3; 5 is done; 7 is open when one of the two closes.
    for client_closes in [false, true] {
        let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
        let answer = [
            frame(RST_STREAM, 0, 3, &[0, 0, 0, 2]),
            frame(HEADERS, END_HEADERS, 5, GRPC),
            frame(DATA, END_STREAM, 5, &message("hello")),
            frame(HEADERS, END_HEADERS, 7, GRPC),
            frame(DATA, 0, 7, &message("hello")),
        ]
        .concat();
        let port = exchange(
            |mut stream| {
                read(&mut stream, requests.len() + reset.len(), 65_536);
                stream.write_all(&answer).expect("sent");
                if client_closes {
                    assert_eq!(read_all(&mut stream).len(), 0);
                }
            },
            |mut stream| {
                stream.write_all(&requests).expect("sent");
                thread::sleep(Duration::from_millis(50));
                watch.poll();
                stream.write_all(&reset).expect("sent");
                read(&mut stream, answer.len(), 65_536);
                if client_closes {
                    stream.shutdown(Shutdown::Write).expect("a socket");
                }
                read_all(&mut stream);
            },
        );
        let mut seen = watch.wait(port, 4);
        seen.sort_by_key(|seen| seen.request.id);
        let outcomes: Vec<_> = seen.iter().filter_map(outcome).collect();
        let last = if client_closes {
            Outcome::Aborted
        } else {
            Outcome::Incomplete
        };
        let expected = [Outcome::Aborted, Outcome::Incomplete, Outcome::Done, last];
        assert_eq!(outcomes, expected, "client closes: {client_closes}");
        // One message is an answer, not a stream.
        assert!(
            seen.iter()
                .all(|seen| seen.request.chunks == 0 && !seen.request.streamed)
        );
    }
}

#[test]
fn streams_that_a_server_going_away_does_not_serve_end_there() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let requests = [opening(), request(1), request(3)].concat();
    let (listener, port) = listen();
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            read(&mut stream, requests.len(), 65_536);
            let goaway = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
            stream.write_all(&goaway).expect("sent");
            told.recv().expect("told");
            let answer = frame(HEADERS, END_HEADERS | END_STREAM, 1, GRPC);
            stream.write_all(&answer).expect("sent");
            read_all(&mut stream);
        });
        let requests = [opening(), request(1), request(3)].concat();
        let mut stream = connect(port);
        stream.write_all(&requests).expect("sent");
        let [seen] = watch.wait(port, 1)[..] else {
            unreachable!()
        };
        assert_eq!(outcome(&seen), Some(Outcome::Incomplete));
        tell.send(()).expect("the server");
        let seen = watch.wait(port, 2);
        assert_eq!(outcome(&seen[1]), Some(Outcome::Done));
        assert_eq!(seen[1].request.status, 200);
    });
}

#[test]
fn a_connection_older_than_the_probe_has_its_requests_from_then_on() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let (listener, port) = listen();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.set_nodelay(true).expect("a socket");
            read(&mut stream, opening().len(), 65_536);
            for n in 0..3 {
                read(&mut stream, request(1).len(), 65_536);
                thread::sleep(Duration::from_millis(20));
                let number = 2 * n + 1;
                let head = frame(HEADERS, END_HEADERS, number, GRPC);
                stream.write_all(&head).expect("sent");
                thread::sleep(Duration::from_millis(20));
                let body = [message("a"), message("b")].concat();
                stream
                    .write_all(&frame(DATA, END_STREAM, number, &body))
                    .expect("sent");
            }
        });
        let mut stream = connect(port);
        let answer = frame(HEADERS, 0, 1, GRPC).len() + 9 + 12;
        stream.write_all(&opening()).expect("sent");
        stream.write_all(&request(1)).expect("sent");
        read(&mut stream, answer, 65_536);
        // The server waits in its next receive by then.
        thread::sleep(end_to_end::scaled(Duration::from_millis(50)));
        watch.serve(std::process::id());
        for number in [3, 5] {
            stream.write_all(&request(number)).expect("sent");
            read(&mut stream, answer, 65_536);
        }
    });
    let seen_are = if watch.probe.choice().tier() == Tier::Kprobe {
        end_to_end::skipped("kprobe: what a thread gets that waits when its service is found");
        1
    } else {
        2
    };
    for seen in watch.wait(port, seen_are) {
        assert_eq!(outcome(&seen), Some(Outcome::Done));
        assert_eq!((seen.request.chunks, seen.request.status), (2, 200));
        let first = seen.request.first_data.expect("data");
        let wait = Duration::from_nanos(first.since(seen.request.start));
        assert!(wait >= Duration::from_millis(39), "{wait:?}");
        assert!(
            wait < end_to_end::scaled(Duration::from_millis(500)),
            "{wait:?}"
        );
    }
}

#[test]
fn unix_sockets_that_come_and_go_have_each_its_own_requests() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    const CONNECTIONS: u32 = 20;
    for _ in 0..CONNECTIONS {
        // The kernel gives a socket the address of the one before, whose end nobody sees.
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut buffer = [0; 4_096];
                assert!(stream.read(&mut buffer).expect("a request") > 0);
                let answer = frame(HEADERS, END_HEADERS | END_STREAM, 1, GRPC);
                stream.write_all(&answer).expect("sent");
            });
            let mut stream = UnixStream::connect(&path).expect("the server listens");
            let sent = [opening(), request(1)].concat();
            stream.write_all(&sent).expect("sent");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("an answer");
        });
    }
    let seen = watch.wait(0, CONNECTIONS as usize);
    for seen in seen {
        assert_eq!(outcome(&seen), Some(Outcome::Done));
        assert_eq!(
            (seen.request.status, seen.request.route),
            (200, Route::Completions)
        );
    }
}

#[test]
fn a_protocol_that_is_not_http2_has_no_requests() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            let mut buffer = [0; 4_096];
            while let Ok(1..) = stream.read(&mut buffer) {
                stream
                    .write_all(&frame(HEADERS, END_HEADERS, 1, GRPC))
                    .expect("sent");
            }
        },
        |mut stream| {
            for bytes in [
                &b"*1\r\n$4\r\nPING\r\n"[..],
                &frame(SETTINGS, 0, 0, &[]),
                &frame(HEADERS, END_HEADERS, 1, GRPC),
                &frame(DATA, END_STREAM, 1, &[0x83; 40]),
                &[0; 200],
                &[1; 200],
            ] {
                stream.write_all(bytes).expect("sent");
                read(&mut stream, 9 + GRPC.len(), 100);
            }
        },
    );
    watch.wait(port, 0);
    assert_eq!(watch.probe.http2_connections(), 0);
}
