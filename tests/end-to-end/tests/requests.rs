//! Requests on the real kernel, from servers that do what servers do. Root.

#[path = "requests/clients.rs"]
mod clients;
#[path = "requests/heads.rs"]
mod heads;
#[path = "requests/http2.rs"]
mod http2;
#[path = "requests/io_uring.rs"]
mod io_uring;
#[path = "requests/ktls.rs"]
mod ktls;
#[path = "requests/limits.rs"]
mod limits;
#[path = "requests/servers.rs"]
mod servers;
#[path = "requests/shapes.rs"]
mod shapes;
#[path = "requests/streams.rs"]
mod streams;
#[path = "requests/usage.rs"]
mod usage;
#[path = "requests/watch.rs"]
mod watch;
#[path = "requests/wire.rs"]
mod wire;

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use profiler::ledger::{Input, Outcome, Route};
use profiler::probes::health::{Tier, Verdict};
use profiler::probes::requests::Losses;
use watch::{Watch, outcome};
use wire::{
    POST, chunk, connect, exchange, listen, read_all, read_request, read_until, stream_head,
};

#[test]
fn the_programs_and_maps_stay_within_their_bounds() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let _ring = io_uring::notice_a_ring(&mut watch);
    // The kernel refuses at 1,000,000.
    let programs = watch.loader.health();
    let attached = programs.iter().filter(|program| {
        program.verdict == Verdict::Ok && program.program != "sched_process_fork"
    });
    let mut programs_attached = 0;
    for program in attached {
        let verified = watch.loader.verified_instructions(program.program);
        println!("{}: {verified:?} instructions verified", program.program);
        let most = match program.program {
            "tcp_destroy_sock" | "inet_sock_set_state" => 2_000,
            "sys_exit" => 200_000,
            // Verifiers differ: 37,000 and 100,000 on 6.18, 61,000 on 6.1, 124,000 on 6.12.
            name if name.contains("recv") || name.contains("receive") => 80_000,
            _ => 150_000,
        };
        // Kernels before 5.16 do not say.
        assert!(verified.is_none_or(|verified| verified < most));
        programs_attached += 1;
    }
    assert!(programs_attached >= 2, "{programs:?}");
    let bytes: u64 = watch
        .loader
        .map_bytes()
        .iter()
        .filter(|(name, _)| name.starts_with("REQUEST_"))
        .inspect(|(name, bytes)| println!("{name}: {bytes} bytes"))
        .map(|(_, bytes)| bytes)
        .sum();
    assert!(bytes <= 16 << 20, "{bytes} bytes of maps");
}

#[test]
fn the_first_tier_that_works_is_in_use_and_told_by_its_programs() {
    let Some(watch) = Watch::attach() else { return };
    let choice = watch.probe.choice();
    println!("chosen: {}", choice.story());
    assert!(choice.is_tested());
    if let Some(forced) = watch::tier() {
        assert_eq!(choice.tier(), forced);
    } else {
        // Those before it do not work here, and are told why.
        let before: Vec<Tier> = choice.refused().iter().map(|(tier, _)| *tier).collect();
        let all = Tier::ALL.iter().copied();
        assert_eq!(
            before,
            all.take_while(|tier| *tier != choice.tier())
                .collect::<Vec<_>>()
        );
    }
    let health = watch.loader.health();
    let attached = health
        .iter()
        .filter(|program| program.verdict == Verdict::Ok);
    let others = [
        "sched_process_fork",
        "tcp_destroy_sock",
        "inet_sock_set_state",
    ];
    for program in attached.filter(|program| !others.contains(&program.program)) {
        assert_eq!(program.tier, choice.tier(), "{}", program.program);
        println!("{}: {} runs", program.program, program.runs);
    }
    // Nothing of the self-test is told or counted.
    assert_eq!(watch.probe.losses(), Losses::default());
    assert_eq!((watch.probe.started(), watch.probe.sockets()), (0, 0));
}

#[test]
fn hooks_are_taken_off_while_nobody_is_followed_and_put_back() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let ask = || {
        exchange(
            |mut stream| {
                read_request(&mut stream);
                let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(ok).expect("sent");
            },
            |mut stream| {
                stream.write_all(POST).expect("sent");
                assert!(read_until(&mut stream, b"ok"));
            },
        )
    };
    let port = ask();
    watch.wait(port, 1);
    watch.probe.pause(&mut watch.loader);
    let port = ask();
    watch.wait(port, 0);
    for _ in 0..2 {
        let start = std::time::Instant::now();
        watch
            .probe
            .resume(&mut watch.loader)
            .expect("attached again");
        println!("put back in {:?}", start.elapsed());
    }
    let port = ask();
    watch.wait(port, 1);
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_client_that_leaves_early_is_aborted_at_that_moment() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    // A server that only writes learns it from its writes; one that reads, from its reads.
    for reads in [false, true] {
        let port = exchange(
            |mut stream| {
                read_request(&mut stream);
                stream
                    .write_all(stream_head("text/event-stream").as_bytes())
                    .expect("sent");
                for _ in 0..20 {
                    if stream.write_all(chunk("data: x\n\n").as_bytes()).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                if reads {
                    read_request(&mut stream);
                }
            },
            |mut stream| {
                stream.write_all(POST).expect("sent");
                assert!(read_until(&mut stream, b"data: x"));
                if reads {
                    // Reads all, so that no reset is sent: the server reads the end.
                    let mut more = stream.try_clone().expect("a socket");
                    stream.shutdown(Shutdown::Write).expect("a socket");
                    thread::sleep(Duration::from_millis(200));
                    more.set_nonblocking(true).expect("a socket");
                    let _ = read_all(&mut more);
                }
            },
        );
        let [seen] = watch.wait(port, 1)[..] else {
            unreachable!()
        };
        assert_eq!(outcome(&seen), Some(Outcome::Aborted), "reads: {reads}");
        assert!(seen.request.chunks >= 1);
    }
}

#[test]
fn a_server_that_closes_before_the_end_leaves_an_incomplete_request() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                .expect("sent");
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            read_all(&mut stream);
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(outcome(&seen), Some(Outcome::Incomplete));
    assert_eq!(seen.request.end.map(|end| end.at), seen.request.last_data);
}

#[test]
fn a_request_that_comes_byte_by_byte_is_one_request() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    for request in [POST, b"GET /health?probe=1 HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let port = exchange(
            |mut stream| {
                let mut byte = [0];
                for _ in request {
                    std::io::Read::read_exact(&mut stream, &mut byte).expect("a byte");
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .expect("sent");
            },
            |mut stream| {
                for byte in request {
                    stream.write_all(&[*byte]).expect("sent");
                }
                assert!(read_until(&mut stream, b"ok"));
            },
        );
        let [seen] = watch.wait(port, 1)[..] else {
            unreachable!()
        };
        let expected = if request == POST {
            Route::Completions
        } else {
            Route::Health
        };
        assert_eq!(
            (outcome(&seen), seen.request.route),
            (Some(Outcome::Done), expected)
        );
        assert!(matches!(seen.request.input, Input::Bytes(n) if n == request.len() as u64));
    }
}

#[test]
fn a_large_body_is_one_request_whose_bytes_are_counted() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    // Its text looks like requests where a read may begin.
    let body = "GET / HTTP/1.1\r\n".repeat(300_000);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let total = head.len() + body.len();
    let port = exchange(
        |mut stream| {
            let mut left = total;
            // Reads end where a line does.
            let mut buffer = vec![0; 16 * 512];
            while left > 0 {
                let length = std::io::Read::read(&mut stream, &mut buffer).expect("bytes");
                left -= length;
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .expect("sent");
        },
        |mut stream| {
            stream.write_all(head.as_bytes()).expect("sent");
            stream.write_all(body.as_bytes()).expect("sent");
            assert!(read_until(&mut stream, b"ok"));
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert!(matches!(seen.request.input, Input::Bytes(bytes) if bytes == total as u64));
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn requests_on_one_connection_are_told_apart() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let responses: [(&[u8], &[u8], u16); 6] = [
        (
            b"GET / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length:  3\r\n\r\nabc",
            200,
        ),
        (
            b"HEAD / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
            200,
        ),
        (
            b"DELETE /x HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            204,
        ),
        (
            b"GET / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
            304,
        ),
        (
            b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            404,
        ),
        (
            b"OPTIONS /y HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 500 Oops\r\nTRANSFER-ENCODING: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            500,
        ),
    ];
    let port = exchange(
        |mut stream| {
            for (_, response, _) in responses {
                read_request(&mut stream);
                stream.write_all(response).expect("sent");
            }
        },
        |mut stream| {
            for (request, response, _) in responses {
                stream.write_all(request).expect("sent");
                assert!(read_until(&mut stream, response));
            }
        },
    );
    let seen = watch.wait(port, responses.len());
    for (seen, (_, _, status)) in seen.iter().zip(responses) {
        assert_eq!(
            (outcome(seen), seen.request.status),
            (Some(Outcome::Done), status)
        );
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_change_of_protocol_is_a_session_and_no_further_request() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi";
    // Whatever the session says is no request, and no response.
    let frames = b"GET / HTTP/1.1\r\n\r\n";
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream.write_all(switch).expect("sent");
            for _ in 0..3 {
                let mut said = [0; 18];
                std::io::Read::read_exact(&mut stream, &mut said).expect("a frame");
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("sent");
            }
        },
        |mut stream| {
            let ask = b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(ask).expect("sent");
            assert!(read_until(&mut stream, b"hi"));
            for _ in 0..3 {
                stream.write_all(frames).expect("sent");
                assert!(read_until(&mut stream, b"\r\n\r\n"));
            }
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(
        (outcome(&seen), seen.request.status),
        (Some(Outcome::Done), 101)
    );
    assert_eq!((watch.probe.sessions(), watch.probe.started()), (1, 1));
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_body_that_waits_to_be_asked_for_belongs_to_its_request() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let body = b"GET / HTTP/1.1\r\n\r\n";
    let head = b"POST /v1/completions HTTP/1.1\r\nExpect: 100-continue\r\n\r\n";
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            for hint in ["100 Continue", "103 Early Hints\r\nContent-Length: 5"] {
                let interim = format!("HTTP/1.1 {hint}\r\n\r\n");
                stream.write_all(interim.as_bytes()).expect("sent");
            }
            let mut said = [0; 18];
            std::io::Read::read_exact(&mut stream, &mut said).expect("a body");
            let response = format!("{}{}", stream_head("text/plain"), "2;x=\"y\"\r\nok\r\n");
            stream.write_all(response.as_bytes()).expect("sent");
            stream.write_all(b"0;z\r\nDigest: 1\r\n\r\n").expect("sent");
        },
        |mut stream| {
            stream.write_all(head).expect("sent");
            assert!(read_until(&mut stream, b"Length: 5\r\n\r\n"));
            stream.write_all(body).expect("sent");
            assert!(read_until(&mut stream, b"Digest: 1\r\n\r\n"));
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(
        (outcome(&seen), seen.request.status),
        (Some(Outcome::Done), 200)
    );
    let bytes = (head.len() + body.len()) as u64;
    assert!(matches!(seen.request.input, Input::Bytes(n) if n == bytes));
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_client_that_does_not_wait_is_noticed() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let get = b"GET / HTTP/1.1\r\n\r\n";
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let port = exchange(
        |mut stream| {
            let mut both = [0; 36];
            std::io::Read::read_exact(&mut stream, &mut both).expect("two requests");
            stream.write_all(ok).expect("sent");
            stream.write_all(ok).expect("sent");
        },
        |mut stream| {
            stream.write_all(&[&get[..], get].concat()).expect("sent");
            assert!(read_until(&mut stream, &[&ok[..], ok].concat()));
        },
    );
    watch.wait(port, 1);
    assert_eq!(watch.probe.losses().pipelined, 1);
    assert_eq!(watch.probe.losses().requests(), 1);
}

#[test]
fn peeks_and_empty_reads_change_nothing() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let (listener, port) = listen();
    let mut client = connect(port);
    let (mut server, _) = listener.accept().expect("a client");
    server.set_nonblocking(true).expect("a socket");
    let mut byte = [0; 32];
    assert!(
        std::io::Read::read(&mut server, &mut byte).is_err(),
        "nothing to read yet"
    );
    client.write_all(POST).expect("sent");
    thread::sleep(Duration::from_millis(20));
    for _ in 0..3 {
        assert!(server.peek(&mut byte).expect("bytes") > 0);
    }
    server.set_nonblocking(false).expect("a socket");
    read_request(&mut server);
    server
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .expect("sent");
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert!(matches!(seen.request.input, Input::Bytes(bytes) if bytes == POST.len() as u64));
}

#[test]
fn what_a_closing_server_throws_away_is_no_request() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .expect("sent");
            stream.shutdown(Shutdown::Write).expect("a socket");
            read_request(&mut stream);
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, b"ok"));
            thread::sleep(Duration::from_millis(20));
            stream.write_all(POST).expect("sent");
        },
    );
    watch.wait(port, 1);
    assert_eq!(watch.probe.losses().drained, 1);
    assert_eq!(watch.probe.losses().requests(), 0);
}

#[test]
fn requests_on_a_unix_socket_are_seen_and_have_no_port() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    let mut client = UnixStream::connect(&path).expect("connected");
    let (mut server, _) = listener.accept().expect("a client");
    client
        .write_all(b"GET /health HTTP/1.1\r\n\r\n")
        .expect("sent");
    let mut request = [0; 24];
    std::io::Read::read_exact(&mut server, &mut request).expect("a request");
    server
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .expect("sent");
    let [seen] = watch.wait(0, 1)[..] else {
        unreachable!()
    };
    assert_eq!((seen.family, seen.request.route), (1, Route::Health));
}

#[test]
fn a_foreign_process_is_not_followed() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .expect("sent");
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, b"ok"));
        },
    );
    watch.wait(port, 0);
    assert_eq!(watch.probe.started(), 0);
}

#[test]
fn what_is_in_flight_at_the_end_is_told_incomplete() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let (listener, port) = listen();
    let mut client = connect(port);
    let (mut server, _) = listener.accept().expect("a client");
    client.write_all(POST).expect("sent");
    read_request(&mut server);
    let mut told = Vec::new();
    watch
        .probe
        .finish(&watch.owners, |_| Route::Other, &mut told);
    let ended: Vec<_> = told
        .iter()
        .filter(|seen| seen.port == port)
        .filter_map(outcome)
        .collect();
    assert_eq!(ended, [Outcome::Incomplete]);
}
