//! Servers of every shape: families, namespaces, workers, old connections, many streams.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd as _, IntoRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use end_to_end::network::in_another_network;
use profiler::ledger::Outcome;
use profiler::probes::requests::{Client, Losses};

use crate::watch::{Watch, outcome};
use crate::wire::{
    LAST_CHUNK, POST, chunk, connect, listen, read_request, read_until, stream_head,
};

pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A python process that talks with the test.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) into: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(script: &str) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let into = child.stdin.take().expect("a pipe");
        let from = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, into, from }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("it says a line");
        line.trim().to_owned()
    }

    pub(crate) fn ask(&mut self, what: &str) {
        writeln!(self.into, "{what}").expect("it reads");
        assert_eq!(self.line(), "done");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So many connections to `listener`, client and server.
pub(crate) fn connections(listener: &TcpListener, many: usize) -> Vec<(TcpStream, TcpStream)> {
    let limit = libc::rlimit {
        rlim_cur: 4_096,
        rlim_max: 4_096,
    };
    // SAFETY: reads a live struct.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(raised, 0);
    let port = listener.local_addr().expect("bound").port();
    (0..many)
        .map(|_| (connect(port), listener.accept().expect("a client").0))
        .collect()
}

#[test]
fn one_port_in_two_network_namespaces_is_two_ports() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let network = || {
        fs::metadata("/proc/thread-self/ns/net")
            .expect("a link")
            .ino()
    };
    let (listener, port) = listen();
    let serve = |listener: &TcpListener| {
        let mut client = connect(port);
        let (mut server, _) = listener.accept().expect("a client");
        client.write_all(POST).expect("sent");
        read_request(&mut server);
        server.write_all(OK).expect("sent");
        assert!(read_until(&mut client, b"ok"));
    };
    serve(&listener);
    let another = in_another_network(|| {
        serve(&TcpListener::bind(("127.0.0.1", port)).expect("free here"));
        network()
    });
    let seen = watch.wait(port, 2);
    let networks: Vec<u64> = seen.iter().map(|seen| u64::from(seen.network)).collect();
    assert_eq!(networks, [network(), another]);
    let own = Client::Own(std::process::id());
    assert!(seen.iter().all(|seen| seen.client == own));
}

/// Three workers that answer until they are ended; the parent tells the port.
fn workers(script: &str) -> (Process, u16) {
    let prelude = r#"
import os, socket, sys, threading
def serve(listener):
    while True:
        s, _ = listener.accept()
        s.recv(65536)
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        s.close()
def listen(port=0, reuse=False):
    s = socket.socket()
    if reuse: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", port)); s.listen(128); return s
def told(s):
    print(s.getsockname()[1], flush=True)
def wait():
    sys.stdin.read(); os._exit(0)
"#;
    let mut process = Process::start(&format!("{prelude}{script}"));
    let port = process.line().parse().expect("a port");
    (process, port)
}

#[test]
fn workers_share_a_port_in_every_way_that_servers_know() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    for (name, script, least) in [
        (
            "SO_REUSEPORT",
            "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
             first = listen(reuse=True); number = first.getsockname()[1]\n\
             ready, listens = os.pipe()\n\
             for _ in range(3):\n    \
                 if os.fork() == 0:\n        \
                     import ctypes; ctypes.CDLL(None).prctl(1, 9)\n        \
                     mine = listen(number, True); first.close()\n        \
                     os.write(listens, b'x'); serve(mine)\n\
             for _ in range(3): os.read(ready, 1)\n\
             first.close(); print(number, flush=True); wait()",
            2,
        ),
        (
            "pre-fork",
            "first = listen()\n\
             for _ in range(3):\n    \
                 if os.fork() == 0:\n        \
                     import ctypes; ctypes.CDLL(None).prctl(1, 9)\n        \
                     serve(first)\n\
             told(first); wait()",
            1,
        ),
        (
            "threads",
            "first = listen()\n\
             for _ in range(3): threading.Thread(target=serve, args=(first,), daemon=True).start()\n\
             told(first); wait()",
            1,
        ),
    ] {
        watch.serve(std::process::id());
        let (server, port) = workers(script);
        for _ in 0..200 {
            let mut client = connect(port);
            client.write_all(POST).expect("sent");
            assert!(read_until(&mut client, b"ok"));
        }
        let seen = watch.wait(port, 200);
        let processes: BTreeSet<u32> = seen.iter().map(|seen| seen.tgid).collect();
        println!("{name}: {} processes", processes.len());
        assert!(processes.len() >= least, "{name}");
        assert!(seen.iter().all(|seen| outcome(seen) == Some(Outcome::Done)));
        drop(server);
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_descriptor_that_is_used_again_is_another_request() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let (listener, port) = listen();
    let mut first = connect(port);
    let (mut server, _) = listener.accept().expect("a client");
    first.write_all(POST).expect("sent");
    read_request(&mut server);
    server
        .write_all(stream_head("text/event-stream").as_bytes())
        .expect("sent");
    let mut second = connect(port);
    let (next, _) = listener.accept().expect("a client");
    // The first socket's descriptor is the second's from here on; the first is gone.
    let descriptor = server.into_raw_fd();
    // SAFETY: both are this test's own; the result is the descriptor that was given up.
    let mut server = unsafe {
        assert_eq!(libc::dup2(next.as_raw_fd(), descriptor), descriptor);
        TcpStream::from_raw_fd(descriptor)
    };
    drop(next);
    second.write_all(POST).expect("sent");
    read_request(&mut server);
    server.write_all(OK).expect("sent");
    assert!(read_until(&mut second, b"ok"));
    drop(first);
    let mut seen = watch.wait(port, 2);
    seen.sort_by_key(|seen| seen.request.start);
    let outcomes: Vec<_> = seen.iter().filter_map(outcome).collect();
    assert_eq!(outcomes, [Outcome::Incomplete, Outcome::Done]);
    assert_ne!(seen[0].request.id, seen[1].request.id);
}

#[test]
fn a_thousand_streams_of_one_process_are_followed_at_once_and_leave_no_slot_taken() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let (streams, events) = (1_000, 10);
    let (listener, port) = listen();
    let mut ends = connections(&listener, streams);
    for (client, server) in &mut ends {
        client.write_all(POST).expect("sent");
        read_request(server);
        let head = stream_head("text/event-stream");
        server.write_all(head.as_bytes()).expect("sent");
    }
    watch.poll();
    let began = Instant::now();
    for event in 0..events {
        let event = chunk(&format!("data: {event}\n\n"));
        for (_, server) in &mut ends {
            server.write_all(event.as_bytes()).expect("sent");
        }
        watch.poll();
    }
    let took = began.elapsed();
    let open: BTreeSet<u64> = watch
        .told
        .iter()
        .filter(|seen| seen.port == port && seen.request.end.is_none())
        .map(|seen| seen.request.id.0)
        .collect();
    assert_eq!(open.len(), streams, "all are in flight at once");
    assert_eq!(watch.probe.sockets(), streams);
    // One in twenty leaves early.
    for (number, (client, server)) in ends.drain(..).enumerate() {
        let mut server = server;
        if number % 20 == 0 {
            drop(client);
            // Until the server has learned of it: on a busy CPU the reset comes a little later, and
            // a server that closes before it has ended the request itself.
            let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(2));
            while server.write_all(chunk("data: x\n\n").as_bytes()).is_ok() {
                assert!(Instant::now() < give_up, "the client's end is not noticed");
                thread::sleep(Duration::from_millis(1));
            }
        } else {
            server.write_all(LAST_CHUNK.as_bytes()).expect("sent");
        }
    }
    let seen = watch.wait(port, streams);
    let left = |wanted| {
        seen.iter()
            .filter(|seen| outcome(seen) == Some(wanted))
            .count()
    };
    assert_eq!((left(Outcome::Done), left(Outcome::Aborted)), (950, 50));
    let done = seen
        .iter()
        .filter(|seen| outcome(seen) == Some(Outcome::Done));
    assert!(done.into_iter().all(|seen| seen.request.chunks == events));
    let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(2));
    while watch.probe.sockets() > 0 && Instant::now() < give_up {
        thread::sleep(Duration::from_millis(10));
    }
    println!(
        "{streams} streams of {events} events in {took:?}; {} slots taken afterwards",
        watch.probe.sockets()
    );
    assert_eq!(watch.probe.sockets(), 0);
    assert_eq!(watch.probe.losses(), Losses::default());
}
