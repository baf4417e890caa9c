//! Servers that use an io_uring: what goes through it is followed, and never taken for another.

#[path = "io_uring/server.rs"]
mod server;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use io_uring::{IoUring, opcode, types};
use profiler::clock::Timestamp;
use profiler::ledger::{Input, Outcome};
use profiler::probes::health::{Tier, Verdict};
use profiler::probes::requests::Observed;

use self::server::{Logged, Server, Way};
use crate::watch::{self, Watch, alone, outcome};
use crate::wire::{POST, connect, exchange, listen, read_request, read_until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A ring; `None`, with the reason printed, where the kernel gives none.
fn ring() -> Option<IoUring> {
    match IoUring::new(8) {
        Ok(ring) => Some(ring),
        Err(error) => {
            end_to_end::skipped(&format!("io_uring: {error}"));
            None
        }
    }
}

fn submit(ring: &mut IoUring, entry: &io_uring::squeue::Entry) {
    // SAFETY: the callers' buffers outlive the operation, which they wait for.
    unsafe { ring.submission().push(entry).expect("room") };
    ring.submit().expect("submitted");
}

/// The result of the ring's next finished operation.
fn result(ring: &mut IoUring) -> i32 {
    ring.submit_and_wait(1).expect("finished");
    ring.completion().next().expect("one").result()
}

fn receive(fd: RawFd, into: &mut [u8]) -> io_uring::squeue::Entry {
    opcode::Recv::new(types::Fd(fd), into.as_mut_ptr(), into.len() as u32).build()
}

fn send(fd: RawFd, from: &[u8]) -> io_uring::squeue::Entry {
    opcode::Send::new(types::Fd(fd), from.as_ptr(), from.len() as u32).build()
}

/// The probe, with rings followed.
fn watch_rings() -> Option<(Watch, IoUring)> {
    let mut watch = Watch::this_process()?;
    let ring = notice_a_ring(&mut watch)?;
    Some((watch, ring))
}

/// Has the probe see a ring at work in this process, which it follows from then on.
pub(crate) fn notice_a_ring(watch: &mut Watch) -> Option<IoUring> {
    let mut ring = ring()?;
    if watch.probe.choice().tier() == Tier::RawTp {
        end_to_end::skipped("raw_tp: what goes through an io_uring is not seen at all");
        return None;
    }
    let (listener, port) = listen();
    let mut client = connect(port);
    let (server, _) = listener.accept().expect("a client");
    let mut buffer = [0; 256];
    client.write_all(POST).expect("sent");
    submit(&mut ring, &receive(server.as_raw_fd(), &mut buffer));
    assert_eq!(result(&mut ring), POST.len() as i32);
    // It is noticed by what could not be read.
    watch.wait(port, 0);
    assert_eq!(watch.probe.losses().unreadable, 1);
    for program in watch.loader.health() {
        if program.program.starts_with("io_uring") {
            assert_eq!(program.verdict, Verdict::Ok, "{}", program.text);
        }
    }
    Some(ring)
}

#[test]
fn requests_through_a_ring_are_followed_once_one_was_seen() {
    let Some((mut watch, mut ring)) = watch_rings() else {
        return;
    };
    let (listener, port) = listen();
    let mut client = connect(port);
    let (server, _) = listener.accept().expect("a client");
    let mut buffer = [0; 256];
    for _ in 0..3 {
        client.write_all(POST).expect("sent");
        submit(&mut ring, &receive(server.as_raw_fd(), &mut buffer));
        assert_eq!(result(&mut ring), POST.len() as i32);
        submit(&mut ring, &send(server.as_raw_fd(), OK));
        assert_eq!(result(&mut ring), OK.len() as i32);
        assert!(read_until(&mut client, b"ok"));
    }
    for seen in watch.wait(port, 3) {
        assert_eq!(
            (outcome(&seen), seen.request.status),
            (Some(Outcome::Done), 200)
        );
    }
    assert_eq!(watch.probe.losses().events(), 1);
}

#[test]
fn a_ring_that_works_during_another_call_is_not_taken_for_that_call() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let Some(mut ring) = ring() else { return };
    let (listener, port) = listen();
    let mut client = connect(port);
    let (server, _) = listener.accept().expect("a client");
    let (mut never, mut other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let waker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        client.write_all(POST).expect("sent");
        thread::sleep(Duration::from_millis(100));
        other.write_all(b"now").expect("sent");
        client
    });
    let mut buffer = [0; 256];
    submit(&mut ring, &receive(server.as_raw_fd(), &mut buffer));
    // While this call waits, the ring receives; what lies here looks like a request.
    let mut decoy = *b"GET /decoy HTTP/1.1\r\nHost: decoy\r\nContent-Length: 0\r\n\r\n";
    let length = never.read(&mut decoy).expect("bytes");
    assert_eq!(&decoy[..length], b"now");
    assert_eq!(result(&mut ring), POST.len() as i32);
    let _client = waker.join().expect("the client");
    watch.wait(port, 0);
    assert_eq!((watch.probe.started(), watch.ended(0).len()), (0, 0));
}

#[test]
fn plain_calls_of_a_thread_that_also_has_a_ring_are_read() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let Some(mut ring) = ring() else { return };
    submit(&mut ring, &opcode::Nop::new().build());
    assert_eq!(result(&mut ring), 0);
    let mut ring = Some(ring);
    let port = exchange(
        |mut stream| {
            // A ring belongs to who uses it.
            let mut ring = ring.take().expect("the ring");
            submit(&mut ring, &opcode::Nop::new().build());
            assert_eq!(result(&mut ring), 0);
            read_request(&mut stream);
            stream.write_all(OK).expect("sent");
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, b"ok"));
        },
    );
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(outcome(&seen), Some(Outcome::Done));
}

#[test]
fn plain_calls_and_a_ring_in_one_thread_are_each_told_once() {
    let Some((mut watch, mut ring)) = watch_rings() else {
        return;
    };
    let (listener, port) = listen();
    let mut clients = [connect(port), connect(port)];
    let (by_ring, _) = listener.accept().expect("a client");
    let (mut by_calls, _) = listener.accept().expect("a client");
    let clients = thread::spawn(move || {
        for client in &mut clients {
            thread::sleep(Duration::from_millis(50));
            client.write_all(POST).expect("sent");
        }
        assert!(clients.iter_mut().all(|client| read_until(client, b"ok")));
    });
    let (mut first, mut second) = ([0; 256], [0; 256]);
    submit(&mut ring, &receive(by_ring.as_raw_fd(), &mut first));
    // While this call waits, the ring receives on the other socket.
    assert_eq!(by_calls.read(&mut second).expect("a request"), POST.len());
    assert_eq!(result(&mut ring), POST.len() as i32);
    submit(&mut ring, &send(by_ring.as_raw_fd(), OK));
    by_calls.write_all(OK).expect("sent");
    assert_eq!(result(&mut ring), OK.len() as i32);
    clients.join().expect("the clients");
    for seen in watch.wait(port, 2) {
        assert_eq!(outcome(&seen), Some(Outcome::Done));
        assert!(matches!(seen.request.input, Input::Bytes(n) if n == POST.len() as u64));
        assert_eq!(seen.response_bytes, OK.len() as u64);
    }
    assert_eq!(watch.probe.losses().events(), 1);
}

/// Four connections at once, each with three requests, kept alive: a stream, an answer, an error.
fn ask(port: u16) -> Vec<Asked> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn(move || {
                    let mut client = connect(port);
                    let peer_port = client.local_addr().expect("connected").port();
                    let stream = format!("POST /v1/completions?chunks={} HTTP/1.1\r\n\r\n", n + 3);
                    let requests: [(&str, &[u8]); 3] = [
                        (&stream, b"0\r\n\r\n"),
                        ("GET /v1/models HTTP/1.1\r\n\r\n", b"body"),
                        ("GET /health HTTP/1.1\r\n\r\n", b"body"),
                    ];
                    requests.map(|(request, end)| {
                        let sent = Timestamp::now();
                        client.write_all(request.as_bytes()).expect("sent");
                        assert!(read_until(&mut client, end));
                        Asked {
                            peer_port,
                            sent,
                            answered: Timestamp::now(),
                        }
                    })
                })
            })
            .collect();
        let all = clients.into_iter();
        all.flat_map(|client| client.join().expect("a client"))
            .collect()
    })
}

/// What a client says of its request.
struct Asked {
    peer_port: u16,
    sent: Timestamp,
    answered: Timestamp,
}

/// Each request is as server and client say: status, chunks, and times between theirs.
fn serve(watch: &mut Watch, way: Way) {
    let Some(mut server) = Server::new(way) else {
        return;
    };
    let before = watch.probe.losses();
    let (listener, port) = listen();
    let asked = thread::scope(|scope| {
        let clients = scope.spawn(|| ask(port));
        server.serve(&listener, 4);
        clients.join().expect("the clients")
    });
    let log = server.log;
    let told = watch.wait(port, asked.len());
    for peer_port in asked.iter().map(|asked| asked.peer_port) {
        let log = log.iter().filter(|logged| logged.peer_port == peer_port);
        let told = told.iter().filter(|seen| seen.peer_port == peer_port);
        let asked = asked.iter().filter(|asked| asked.peer_port == peer_port);
        for ((logged, seen), asked) in log.zip(told).zip(asked) {
            check(way, logged, seen, asked);
        }
    }
    assert_eq!(watch.probe.losses(), before, "{way:?}");
}

fn check(way: Way, logged: &Logged, seen: &Observed, asked: &Asked) {
    let request = &seen.request;
    assert_eq!(outcome(seen), Some(Outcome::Done), "{way:?}");
    assert_eq!(
        (request.status, request.chunks),
        (logged.status, logged.chunks),
        "{way:?}"
    );
    let first = request.first_data.expect("a body");
    let end = request.end.expect("an end").at;
    assert!(
        asked.sent <= request.start && request.start <= logged.read,
        "{way:?}: start"
    );
    assert!(logged.first <= first, "{way:?}: first data");
    assert!(first <= end && end <= logged.end, "{way:?}: end");
    let late = end_to_end::scaled(LATE).as_nanos() as u64;
    assert!(
        end.since(asked.sent) <= asked.answered.since(asked.sent) + late,
        "{way:?}"
    );
}

/// A completion may come behind the client's read.
const LATE: Duration = Duration::from_millis(20);

#[test]
fn a_server_on_a_ring_is_followed_however_it_moves_its_bytes() {
    let Some((mut watch, _)) = watch_rings() else {
        return;
    };
    for way in [
        Way::Plain,
        Way::Message,
        Way::File,
        Way::FileSegments,
        Way::ZeroCopy,
        Way::Workers,
        Way::Polled,
        Way::Epoll,
        Way::Registered,
    ] {
        println!("{way:?}");
        serve(&mut watch, way);
    }
}

/// The kernel has forgotten where the bytes are when it says that they have come.
#[test]
fn requests_in_buffers_that_the_kernel_chose_are_counted_as_unreadable() {
    let Some((mut watch, _)) = watch_rings() else {
        return;
    };
    for way in [Way::Provided, Way::Multishot] {
        if way == Way::Multishot && !end_to_end::is_linux(6, 13) {
            // Such a completion names no request, and there no bytes either.
            end_to_end::skipped("what multishot receives bring is not counted on this kernel");
            return;
        }
        let before = watch.probe.losses();
        let Some(mut server) = Server::new(way) else {
            return;
        };
        let (listener, port) = listen();
        let asked = thread::scope(|scope| {
            let clients = scope.spawn(|| ask(port));
            server.serve(&listener, 4);
            clients.join().expect("the clients")
        });
        watch.wait(port, 0);
        let losses = watch.probe.losses();
        assert_eq!(
            losses.unreadable - before.unreadable,
            asked.len() as u64,
            "{way:?}"
        );
        assert_eq!(
            losses.events() - losses.unreadable,
            before.events() - before.unreadable
        );
    }
}

#[test]
fn the_agent_follows_a_service_that_turns_out_to_use_a_ring() {
    if !end_to_end::is_root("the agent") || ring().is_none() {
        return;
    }
    // The agent is told the tier in the same way as these tests.
    if watch::tier() == Some(Tier::RawTp) {
        end_to_end::skipped("raw_tp: what goes through an io_uring is not seen at all");
        return;
    }
    let _turn = alone();
    let (listener, port) = listen();
    let mut agent = Agent::start(&["--port", &port.to_string()]);
    let serve = || {
        let mut server = Server::new(Way::Plain).expect("a ring");
        thread::scope(|scope| {
            scope.spawn(|| ask(port));
            server.serve(&listener, 4);
        });
    };
    // Until it is noticed, nothing of it can be read.
    serve();
    let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(10));
    while !agent.log().contains("its completions are followed") {
        assert!(Instant::now() < give_up, "{}", agent.log());
        thread::sleep(Duration::from_millis(50));
        serve();
    }
    // What was seen so far is booked by then.
    thread::sleep(Duration::from_secs(2));
    let before = agent.requests().len();
    serve();
    agent.end_with(libc::SIGTERM);
    assert_eq!(agent.requests().len() - before, 12, "{}", agent.log());
}
