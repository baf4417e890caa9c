//! Responses that stream: chunks, time to first data, what is in flight.

use std::io::Write;
use std::thread;
use std::time::Duration;

use profiler::ledger::{Input, Outcome, Route};
use profiler::probes::requests::Losses;

use crate::watch::{SERVICE, Watch, outcome};
use crate::wire::{
    LAST_CHUNK, POST, chunk, connect, exchange, listen, read_all, read_request, read_until,
    send_cut, stream_head,
};

#[test]
fn a_streamed_response_is_counted_for_any_cut_of_its_sends() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    for sizes in [
        &[1usize][..],
        &[7],
        &[300, 1, 40],
        &[5_000],
        &[63, 64, 65],
        &[1 << 20],
    ] {
        let port = exchange(
            |mut stream| {
                read_request(&mut stream);
                let mut response = stream_head("text/event-stream");
                for token in 0..120 {
                    response += &chunk(&format!("data: {{\"token\":\"{token}\"}}\n\n"));
                }
                response += &chunk("data: [DONE]\n\n");
                response += LAST_CHUNK;
                send_cut(&mut stream, response.as_bytes(), sizes);
            },
            |mut stream| {
                stream.write_all(POST).expect("sent");
                assert!(read_until(&mut stream, LAST_CHUNK.as_bytes()));
            },
        );
        let [seen] = watch.wait(port, 1)[..] else {
            unreachable!()
        };
        assert_eq!(outcome(&seen), Some(Outcome::Done), "{sizes:?}");
        assert_eq!(seen.request.chunks, 120, "{sizes:?}");
        assert_eq!((seen.request.status, seen.request.streamed), (200, true));
        assert_eq!(seen.request.route, Route::Completions);
        assert_eq!(seen.request.service, SERVICE);
        assert!(!seen.truncated);
        assert!(matches!(seen.request.input, Input::Bytes(bytes) if bytes == POST.len() as u64));
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn events_cut_by_chunk_borders_are_counted_once() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            let body: String = (0..50).map(|n| format!("data: event {n}\n\n")).collect();
            let mut response = stream_head("text/event-stream");
            // A proxy that forwards what it reads puts chunk borders anywhere.
            for piece in body.as_bytes().chunks(7) {
                response += &chunk(std::str::from_utf8(piece).expect("ASCII"));
            }
            response += LAST_CHUNK;
            send_cut(&mut stream, response.as_bytes(), &[100, 3]);
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, LAST_CHUNK.as_bytes()));
        },
    );
    assert_eq!(watch.wait(port, 1)[0].request.chunks, 50);
}

#[test]
fn lines_of_json_are_counted_and_trailers_are_not() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            let mut response = stream_head("application/x-ndjson");
            for n in 0..30 {
                response += &chunk(&format!("{{\"response\":\"{n}\"}}\n"));
            }
            response += "0\r\nDigest: abc\r\nX-More: 1\r\n\r\n";
            send_cut(&mut stream, response.as_bytes(), &[50, 11]);
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, b"X-More: 1\r\n\r\n"));
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(
        (seen.request.chunks, outcome(&seen)),
        (30, Some(Outcome::Done))
    );
}

#[test]
fn time_to_first_data_ends_at_the_body_not_at_the_status_line() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let pause = Duration::from_millis(60);
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream
                .write_all(stream_head("text/event-stream").as_bytes())
                .expect("sent");
            thread::sleep(pause);
            stream
                .write_all(chunk("data: a\n\ndata: b\n\n").as_bytes())
                .expect("sent");
            thread::sleep(pause);
            stream
                .write_all(chunk("data: c\n\n").as_bytes())
                .expect("sent");
            thread::sleep(pause);
            stream.write_all(LAST_CHUNK.as_bytes()).expect("sent");
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, LAST_CHUNK.as_bytes()));
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    let request = seen.request;
    let after = |nanos: u64| nanos >= pause.as_nanos() as u64;
    assert!(after(
        request.first_data.expect("a body").since(request.start)
    ));
    assert!(after(
        request
            .last_data
            .expect("a body")
            .since(request.first_data.expect("a body"))
    ));
    assert!(after(
        request
            .end
            .expect("ended")
            .at
            .since(request.last_data.expect("a body"))
    ));
    assert_eq!((request.chunks, seen.first_chunks), (3, 2));
}

#[test]
fn a_request_in_flight_is_told_as_it_stands() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let (listener, port) = listen();
    let mut client = connect(port);
    let (mut server, _) = listener.accept().expect("a client");
    client.write_all(POST).expect("sent");
    read_request(&mut server);
    watch.poll();
    let alive = |watch: &Watch| {
        let last = watch.told.iter().rfind(|seen| seen.port == port);
        last.map(|seen| {
            (
                seen.request.status,
                seen.request.chunks,
                seen.request.end.is_some(),
            )
        })
    };
    assert_eq!(alive(&watch), Some((0, 0, false)));
    server
        .write_all(stream_head("text/event-stream").as_bytes())
        .expect("sent");
    for chunks in 1..4 {
        server
            .write_all(chunk("data: x\n\n").as_bytes())
            .expect("sent");
        watch.poll();
        assert_eq!(alive(&watch), Some((200, chunks, false)));
    }
    let told = watch.told.len();
    watch.poll();
    assert_eq!(
        watch.told.len(),
        told,
        "what has not changed is not told again"
    );
    server.write_all(LAST_CHUNK.as_bytes()).expect("sent");
    assert!(read_until(&mut client, LAST_CHUNK.as_bytes()));
    watch.poll();
    assert_eq!(alive(&watch), Some((200, 3, true)));
}

#[test]
fn a_response_that_ends_with_its_connection_is_done() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream
                .write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                .expect("sent");
            send_cut(&mut stream, "data: x\n\n".repeat(40).as_bytes(), &[13]);
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            read_all(&mut stream);
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(
        (outcome(&seen), seen.request.chunks),
        (Some(Outcome::Done), 40)
    );
    assert_eq!(seen.request.end.map(|end| end.at), seen.request.last_data);
}

#[test]
fn interleaved_connections_keep_their_own_requests() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let (listener, port) = listen();
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut client = connect(port);
        let (mut server, _) = listener.accept().expect("a client");
        client.write_all(POST).expect("sent");
        read_request(&mut server);
        ends.push((client, server));
    }
    for (_, server) in &mut ends {
        server
            .write_all(stream_head("text/event-stream").as_bytes())
            .expect("sent");
    }
    let chunks = [17, 4];
    for round in 0..20 {
        for ((_, server), chunks) in ends.iter_mut().zip(chunks) {
            if round < chunks {
                server
                    .write_all(chunk("data: x\n\n").as_bytes())
                    .expect("sent");
            } else if round == chunks {
                server.write_all(LAST_CHUNK.as_bytes()).expect("sent");
            }
        }
    }
    let mut seen: Vec<_> = watch
        .wait(port, 2)
        .iter()
        .map(|seen| seen.request.chunks)
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [4, 17]);
}
