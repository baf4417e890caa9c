//! Servers that use an io_uring: what goes through it is counted, and never taken for another.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use profiler::ledger::Outcome;
use profiler::probes::health::{Tier, Verdict};

use crate::watch::{Watch, outcome};
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

/// The probe, with rings followed: it has seen one at work.
fn watch_rings() -> Option<(Watch, IoUring)> {
    let mut watch = Watch::this_process()?;
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
    // The ring is noticed by what could not be read.
    watch.wait(port, 0);
    assert_eq!(watch.probe.losses().unreadable, 1);
    for program in watch.loader.health() {
        if program.program.starts_with("io_uring") {
            assert_eq!(program.verdict, Verdict::Ok, "{}", program.text);
        }
    }
    Some((watch, ring))
}

#[test]
fn requests_through_a_ring_are_followed_once_one_was_seen() {
    let Some((mut watch, mut ring)) = watch_rings() else {
        return;
    };
    for program in ["io_uring_sent", "io_uring_received"] {
        println!("{program}: {:?}", watch.loader.verified_instructions(program));
    }
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
        assert_eq!((outcome(&seen), seen.request.status), (Some(Outcome::Done), 200));
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
