//! What happens at the probe's limits: all of it is counted.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use profiler::ledger::{Input, Outcome, Owner};
use profiler::probes::health::Tier;
use profiler::probes::requests::Losses;

use crate::watch::{SERVICE, Watch, outcome};
use crate::wire::{
    LAST_CHUNK, POST, chunk, connect, exchange, listen, read_request, read_until, stream_head,
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn records_that_find_the_ring_full_are_counted_to_the_last() {
    let small = |options: &mut profiler::probes::loader::Options| {
        options.map_entries("REQUEST_RING", 256 * 1024);
    };
    let Some(mut watch) = Watch::attach_with(small) else {
        return;
    };
    watch.serve(std::process::id());
    let requests = 4_000;
    let port = exchange(
        |mut stream| {
            for _ in 0..requests {
                read_request(&mut stream);
                stream.write_all(OK).expect("sent");
            }
        },
        |mut stream| {
            for _ in 0..requests {
                stream.write_all(POST).expect("sent");
                assert!(read_until(&mut stream, b"ok"));
            }
        },
    );
    watch.poll();
    let losses = watch.probe.losses();
    assert!(losses.ring_full > 0);
    assert_eq!(watch.ended(port).len() as u64 + losses.requests(), requests);
    assert_eq!(watch.probe.started(), requests);
}

#[test]
fn requests_for_which_there_is_no_slot_are_counted() {
    let few = |options: &mut profiler::probes::loader::Options| {
        options.map_entries("REQUEST_SLOTS", 2);
    };
    let Some(mut watch) = Watch::attach_with(few) else {
        return;
    };
    watch.serve(std::process::id());
    let (listener, port) = listen();
    let mut ends: Vec<_> = (0..3)
        .map(|_| (connect(port), listener.accept().expect("a client").0))
        .collect();
    for (client, server) in &mut ends {
        client.write_all(POST).expect("sent");
        read_request(server);
        server.write_all(OK).expect("sent");
    }
    watch.wait(port, 2);
    assert_eq!(watch.probe.losses().slots_exhausted, 1);
    drop(ends);
    // A slot that a socket leaves is there for the next one.
    thread::sleep(Duration::from_millis(50));
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream.write_all(OK).expect("sent");
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, b"ok"));
        },
    );
    watch.wait(port, 1);
}

#[test]
fn sockets_are_forgotten_when_they_are_gone() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            read_request(&mut stream);
            stream.write_all(OK).expect("sent");
        },
        |mut stream| {
            stream.write_all(POST).expect("sent");
            assert!(read_until(&mut stream, b"ok"));
        },
    );
    watch.wait(port, 1);
    assert_eq!(watch.probe.sockets(), 0, "a TCP socket has an end");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    let mut client = UnixStream::connect(&path).expect("connected");
    let (mut server, _) = listener.accept().expect("a client");
    let mut ask = || {
        client
            .write_all(b"GET /health HTTP/1.1\r\n\r\n")
            .expect("sent");
        server.read_exact(&mut [0; 24]).expect("a request");
        server.write_all(OK).expect("sent");
        client.read_exact(&mut [0; 40]).expect("a response");
    };
    ask();
    watch.wait(0, 1);
    assert_eq!(watch.probe.sockets(), 1);
    watch.probe.forget_sockets_after(Duration::ZERO);
    thread::sleep(Duration::from_millis(1_100));
    watch.poll();
    assert_eq!(watch.probe.sockets(), 0);
    // A forgotten socket that speaks again is followed again.
    ask();
    watch.wait(0, 2);
    assert_eq!(watch.probe.sockets(), 1);
}

#[test]
fn requests_of_a_forgotten_service_are_counted_not_told() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let (listener, port) = listen();
    let mut client = connect(port);
    let (mut server, _) = listener.accept().expect("a client");
    client.write_all(POST).expect("sent");
    read_request(&mut server);
    watch.owners.set(std::process::id(), Owner::Other);
    watch.owners.forget(&[SERVICE]);
    server.write_all(OK).expect("sent");
    if matches!(watch.probe.choice().tier(), Tier::Kprobe | Tier::RawTp) {
        // These ask who sends before they ask on which socket: the end is not seen.
        end_to_end::skipped("the last send of a process that has left its service: tier");
        return;
    }
    watch.wait(port, 0);
    assert_eq!(watch.probe.losses().unowned, 1);
}

/// The pieces as the kernel takes them.
fn vectors(pieces: &[&[u8]]) -> Vec<libc::iovec> {
    let vector = |piece: &&[u8]| libc::iovec {
        iov_base: piece.as_ptr().cast_mut().cast(),
        iov_len: piece.len(),
    };
    pieces.iter().map(vector).collect()
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: plain data, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

#[test]
fn scattered_buffers_are_read_as_one() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let head = stream_head("text/event-stream");
    let (first, second) = head.split_at(30);
    let events: String = (0..90)
        .map(|n| chunk(&format!("data: event {n}\n\n")))
        .collect();
    let (third, fourth) = events.split_at(1_111);
    let pieces = [first, "", second, third, fourth, LAST_CHUNK].map(str::as_bytes);
    let total: usize = pieces.iter().map(|piece| piece.len()).sum();
    for by_message in [false, true] {
        let port = exchange(
            |stream| {
                let mut parts = [[0u8; 5], [0; 5]];
                let mut rest = [0u8; 200];
                let [one, two] = &mut parts;
                let mut into = vectors(&[&one[..], &two[..], &rest[..]]);
                let fd = stream.as_raw_fd();
                let mut from = vectors(&pieces);
                // SAFETY: the vectors name live buffers of these lengths; those read into are
                // not otherwise used meanwhile.
                let (received, sent) = unsafe {
                    if by_message {
                        (
                            libc::recvmsg(fd, &mut message(&mut into), 0),
                            libc::sendmsg(fd, &message(&mut from), 0),
                        )
                    } else {
                        (
                            libc::readv(fd, into.as_ptr(), 3),
                            libc::writev(fd, from.as_ptr(), 6),
                        )
                    }
                };
                assert_eq!(received, POST.len() as isize);
                assert_eq!(sent, total as isize);
                std::hint::black_box((&mut parts, &mut rest));
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
            (outcome(&seen), seen.request.chunks),
            (Some(Outcome::Done), 90)
        );
        assert_eq!(seen.response_bytes, total as u64);
        assert!(matches!(seen.request.input, Input::Bytes(bytes) if bytes == POST.len() as u64));
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}
