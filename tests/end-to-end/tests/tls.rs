//! Requests inside TLS on the real kernel, from servers as they come. Root.

#[path = "tls/guard.rs"]
mod guard;
#[path = "tls/http2.rs"]
mod http2;
#[path = "tls/machine_code.rs"]
mod machine_code;
#[path = "tls/servers.rs"]
mod servers;
#[path = "tls/stack.rs"]
mod stack;
#[path = "requests/watch.rs"]
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod watch;

use std::time::{Duration, Instant};

use profiler::ledger::Outcome;
use profiler::probes::requests::{Losses, Observed};
use profiler::probes::tls::{TlsLosses, TlsProbe};
use servers::{Client, Server};
use watch::{SERVICE, Watch, outcome};

/// The request probe with TLS.
pub(crate) struct TlsWatch {
    pub(crate) tls: TlsProbe,
    pub(crate) watch: Watch,
}

impl TlsWatch {
    pub(crate) fn attach() -> Option<Self> {
        let mut watch = Watch::attach_with(TlsProbe::configure)?;
        let tls = TlsProbe::attach(&mut watch.loader).expect("the TLS probe");
        Some(Self { tls, watch })
    }

    /// Follows these processes, until their library is probed.
    pub(crate) fn serve(&mut self, pids: &[u32]) {
        for pid in pids {
            self.watch.serve(*pid);
            self.tls.join(*pid, SERVICE);
        }
        let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(10));
        while self.tls.libraries().count() == 0 {
            assert!(Instant::now() < give_up, "no TLS library is found");
            std::thread::sleep(Duration::from_millis(10));
            self.poll();
        }
    }

    pub(crate) fn poll(&mut self) {
        self.tls.poll(&mut self.watch.loader, &self.watch.owners);
    }

    fn assert_nothing_lost(&self) {
        assert_eq!(self.watch.probe.losses(), Losses::default());
        assert_eq!(self.tls.losses(), TlsLosses::default());
    }
}

fn count(seen: &[Observed], outcome_is: Outcome) -> usize {
    let with = |seen: &&Observed| outcome(seen) == Some(outcome_is);
    seen.iter().filter(with).count()
}

/// Two connections with every kind of request, on a server of its own.
fn every_kind_of_request(server: Option<Server>) {
    let Some(server) = server else { return };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    let words = ["20*/plain", "3*/large", "4*stream", "new", "2*stream"];
    let told = Client::start(server.port, &words).finish();
    assert_eq!(told.len(), 29);
    let seen = watch.watch.wait(server.port, 29);
    assert_eq!(server.logged(), 29);
    assert_eq!(count(&seen, Outcome::Done), 29);
    let mut closest = f64::MAX;
    for (seen, told) in seen.iter().zip(&told) {
        let request = &seen.request;
        assert_eq!(request.status, 200);
        let bytes = told["bytes"].as_u64().unwrap_or(0);
        assert!(
            seen.response_bytes > bytes,
            "{} of {bytes}",
            seen.response_bytes
        );
        assert!(seen.response_bytes < bytes + 4_000);
        assert_eq!(Some(request.chunks), told["chunks"].as_u64().or(Some(0)));
        if let Some(client) = told["first"].as_f64() {
            let first = request.first_data.expect("data");
            let server = first.since(request.start) as f64 * 1e-9;
            // Servers' timers are some tenths of a millisecond early; clients on a busy machine
            // are late.
            assert!(
                server >= 0.028,
                "data came 30 ms after the request: {server}"
            );
            assert!(
                server <= client + 0.001,
                "{server} s, the client's {client} s"
            );
            closest = closest.min(client - server);
        }
    }
    assert!(
        closest < end_to_end::scaled(Duration::from_millis(20)).as_secs_f64(),
        "{closest} s from the client's, at the closest"
    );
    watch.assert_nothing_lost();

    // A client that leaves, without a word or with one.
    for word in ["leave", "goodbye"] {
        let before = watch.watch.ended(server.port).len();
        let told = Client::start(server.port, &[word, "/plain"]).finish();
        assert_eq!(told.len(), 2);
        let seen = watch.watch.wait(server.port, before + 2);
        let mut here = seen[before..].to_vec();
        here.sort_by_key(|seen| seen.request.start.0);
        assert_eq!(outcome(&here[0]), Some(Outcome::Aborted), "{word}");
        assert!((2..20).contains(&here[0].request.chunks), "{word}");
        assert_eq!(outcome(&here[1]), Some(Outcome::Done), "{word}");
    }
    watch.assert_nothing_lost();
}

#[test]
fn a_server_whose_library_never_sees_the_socket() {
    every_kind_of_request(Server::start("python3", "asyncio_server.py", &[]));
}

#[test]
fn a_server_whose_library_reads_the_socket_itself() {
    every_kind_of_request(Server::start("python3", "threads_server.py", &[]));
}

#[test]
fn a_server_that_has_the_library_in_its_own_program() {
    every_kind_of_request(Server::start("node", "server.js", &[]));
}

#[test]
fn a_server_with_workers_and_large_files() {
    let Some(server) = Server::nginx() else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    let clients: Vec<Client> = (0..4)
        .map(|_| Client::start(server.port, &["25*/plain", "5*/large", "new", "20*/plain"]))
        .collect();
    let told: usize = clients
        .into_iter()
        .map(|client| client.finish().len())
        .sum();
    assert_eq!(told, 200);
    let seen = watch.watch.wait(server.port, 200);
    assert_eq!((server.logged(), count(&seen, Outcome::Done)), (200, 200));
    let large = seen.iter().filter(|seen| seen.response_bytes > 3_000_000);
    assert_eq!(large.count(), 20);
    assert!(seen.iter().all(|seen| seen.response_bytes < 3_010_000));
    watch.assert_nothing_lost();
}

/// Requests that are seen of four on a connection that was there before the probe.
fn on_an_older_connection(name: &str, seen_are: usize) {
    let Some(server) = Server::start("python3", name, &[]) else {
        return;
    };
    let mut client = Client::start(server.port, &["2*/plain", "wait", "3*/plain", "stream"]);
    client.until_it_waits();
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    client.go_on();
    client.finish();
    let seen = watch.watch.wait(server.port, seen_are);
    assert_eq!(count(&seen, Outcome::Done), seen_are);
    assert_eq!(seen.last().map(|seen| seen.request.chunks), Some(20));
    watch.assert_nothing_lost();
}

#[test]
fn a_connection_that_is_older_than_the_probe() {
    on_an_older_connection("asyncio_server.py", 4);
}

#[test]
fn a_thread_that_waits_inside_the_library_is_seen_from_its_next_call() {
    // Its return cannot be asked for any more.
    on_an_older_connection("threads_server.py", 3);
}

#[test]
fn workers_that_are_forked_later_are_followed_from_their_first_request() {
    let Some(mut server) = Server::start("python3", "threads_server.py", &["3"]) else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&[server.pid()]);
    server.go_on();
    let clients: Vec<Client> = (0..6)
        .map(|_| Client::start(server.port, &["/plain", "stream", "new", "/plain"]))
        .collect();
    let told: usize = clients
        .into_iter()
        .map(|client| client.finish().len())
        .sum();
    assert_eq!(told, 18);
    let seen = watch.watch.wait(server.port, 18);
    assert_eq!(count(&seen, Outcome::Done), 18);
    let chunks: u64 = seen.iter().map(|seen| seen.request.chunks).sum();
    assert_eq!(chunks, 120);
    let mut workers: Vec<u32> = seen.iter().map(|seen| seen.tgid).collect();
    workers.sort_unstable();
    workers.dedup();
    assert!(!workers.contains(&server.pid()));
    watch.assert_nothing_lost();
}

#[test]
fn many_connections_on_one_thread_keep_their_requests_apart() {
    let Some(server) = Server::start("python3", "asyncio_server.py", &[]) else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    let words = [
        "2*stream", "new", "/plain", "stream", "/large", "new", "stream",
    ];
    let clients: Vec<Client> = (0..12)
        .map(|_| Client::start(server.port, &words))
        .collect();
    let told: usize = clients
        .into_iter()
        .map(|client| client.finish().len())
        .sum();
    assert_eq!(told, 72);
    let seen = watch.watch.wait(server.port, 72);
    assert_eq!(count(&seen, Outcome::Done), 72);
    let streams: Vec<u64> = seen
        .iter()
        .map(|seen| seen.request.chunks)
        .filter(|chunks| *chunks != 0)
        .collect();
    assert_eq!(streams, [20; 48]);
    watch.assert_nothing_lost();
}

#[test]
fn a_foreign_server_with_the_same_library_is_not_followed() {
    let Some(server) = Server::start("python3", "asyncio_server.py", &[]) else {
        return;
    };
    let Some(foreign) = Server::start("python3", "threads_server.py", &[]) else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    Client::start(foreign.port, &["5*/plain", "stream"]).finish();
    watch.watch.wait(foreign.port, 0);
    assert_eq!(watch.watch.probe.started(), 0);
    watch.assert_nothing_lost();
}

#[test]
fn a_library_that_nobody_uses_any_more_is_let_go_of() {
    let Some(server) = Server::start("python3", "asyncio_server.py", &[]) else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    let runs = |watch: &TlsWatch| {
        let health = watch.watch.loader.health();
        let reads = health.iter().find(|health| health.program == "ssl_read");
        reads.expect("listed").runs
    };
    let before = runs(&watch);
    Client::start(server.port, &["/plain"]).finish();
    let during = runs(&watch);
    assert!(during > before);
    watch.tls.leave(server.pid(), &watch.watch.owners);
    assert_eq!(watch.tls.libraries().count(), 0);
    Client::start(server.port, &["/plain"]).finish();
    assert_eq!(runs(&watch), during);
}
