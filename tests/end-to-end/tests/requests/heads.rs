//! What heads of requests and responses say, and what of it is told.

use std::io::Write;

use profiler::ledger::{Outcome, Route};
use profiler::probes::requests::{Losses, RequestProbe};

use crate::watch::{Watch, outcome};
use crate::wire::{
    LAST_CHUNK, POST, chunk, exchange, read_all, read_request, read_until, send_cut, stream_head,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn traced(before: usize) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nX-Long: {}\r\nTraceParent:  00-{TRACE}-00f067aa0ba902b7-01\r\n\
         Content-Length: 2\r\n\r\n{{}}",
        "x".repeat(before)
    )
}

/// The traces that are told of these requests, each in a connection of its own.
fn traces(watch: &mut Watch, request: &str, sizes: &[usize]) -> Option<String> {
    let port = exchange(
        |mut stream| {
            if sizes == [1] {
                let mut byte = [0];
                for _ in 0..request.len() {
                    std::io::Read::read_exact(&mut stream, &mut byte).expect("a byte");
                }
            } else {
                read_request(&mut stream);
            }
            stream.write_all(OK).expect("sent");
        },
        |mut stream| {
            send_cut(&mut stream, request.as_bytes(), sizes);
            assert!(read_until(&mut stream, b"ok"));
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    seen.trace.map(|trace| trace.to_string())
}

#[test]
fn trace_ids_are_told_where_they_are_asked_for_and_nowhere_else() {
    let Some(mut watch) = Watch::attach_with(RequestProbe::with_trace_ids) else {
        return;
    };
    for program in ["sock_recv_length", "sock_send_length"] {
        println!(
            "{program}: {:?} verified",
            watch.loader.verified_instructions(program)
        );
    }
    watch.serve(std::process::id());
    for (before, sizes) in [
        (0, &[1usize << 20][..]),
        (0, &[1]),
        (900, &[1 << 20]),
        (2_100, &[500, 3]),
        (3_500, &[1 << 20]),
    ] {
        let told = traces(&mut watch, &traced(before), sizes);
        assert_eq!(told.as_deref(), Some(TRACE), "{before} {sizes:?}");
    }
    // Beyond what is looked at; in a body; not there.
    assert_eq!(traces(&mut watch, &traced(5_000), &[1 << 20]), None);
    let body = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n");
    let request = format!(
        "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(traces(&mut watch, &request, &[1 << 20]), None);
    assert_eq!(watch.probe.losses(), Losses::default());
    drop(watch);
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    assert_eq!(traces(&mut watch, &traced(0), &[1 << 20]), None);
}

#[test]
fn targets_and_methods_of_every_form_are_requests() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let requests: [(&[u8], Route); 5] = [
        (
            b"GET http://host:8000/health?x=1 HTTP/1.1\r\n\r\n",
            Route::Health,
        ),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", Route::Other),
        (b"TRACE / HTTP/1.1\r\n\r\n", Route::Other),
        (
            b"PATCH /v1/completions HTTP/1.1\r\n\r\n",
            Route::Completions,
        ),
        (b"PUT /health HTTP/1.0\r\n\r\n", Route::Health),
    ];
    let port = exchange(
        |mut stream| {
            for _ in requests {
                read_request(&mut stream);
                stream.write_all(OK).expect("sent");
            }
        },
        |mut stream| {
            for (request, _) in requests {
                stream.write_all(request).expect("sent");
                assert!(read_until(&mut stream, b"ok"));
            }
        },
    );
    let seen = watch.wait(port, requests.len());
    for (seen, (request, route)) in seen.iter().zip(requests) {
        assert_eq!(seen.request.route, route, "{request:?}");
        assert_eq!(outcome(seen), Some(Outcome::Done));
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_compressed_stream_is_marked_and_not_miscounted() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            let head = stream_head("text/event-stream");
            let head = head.replace("server: t", "Content-Encoding: gzip");
            stream.write_all(head.as_bytes()).expect("sent");
            for _ in 0..9 {
                // Bytes of a compressor may look like anything.
                let piece = chunk("data: x\n\n\x01\x02data: y\n\n");
                stream.write_all(piece.as_bytes()).expect("sent");
            }
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
    assert_eq!((seen.truncated, seen.request.chunks), (true, 0));
    assert!(!seen.request.streamed, "it cannot be weighed by its chunks");
    assert_eq!(outcome(&seen), Some(Outcome::Done));
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn framing_that_is_told_twice_ends_where_the_body_does() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 900\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nok",
    ] {
        let port = exchange(
            |mut stream| {
                read_request(&mut stream);
                stream.write_all(response.as_bytes()).expect("sent");
            },
            |mut stream| {
                stream.write_all(POST).expect("sent");
                read_all(&mut stream);
            },
        );
        let [seen] = watch.wait(port, 1)[..] else {
            unreachable!()
        };
        assert_eq!(outcome(&seen), Some(Outcome::Done), "{response}");
        assert!(seen.request.first_data.is_some());
        assert_eq!(seen.response_bytes, response.len() as u64);
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}
