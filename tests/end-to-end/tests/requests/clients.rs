//! Clients on this machine: of the service itself, or anybody else.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use profiler::probes::requests::{Client, Losses, Observed};

use crate::shapes::{OK, Process, connections};
use crate::watch::Watch;
use crate::wire::{POST, connect, listen, read_request, read_until};

/// A process that asks as it is told: `tcp <host> <port> <times>` or `unix <path> <times>`, each
/// time on a connection of its own.
const CALLER: &str = r#"
import socket, sys
for line in sys.stdin:
    kind, where, *rest = line.split()
    for _ in range(int(rest[-1])):
        if kind == "unix":
            s = socket.socket(socket.AF_UNIX); s.connect(where)
        else:
            s = socket.create_connection((where, int(rest[0])))
        s.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
        while b"ok" not in s.recv(4096): pass
        s.close()
    print("done", flush=True)
"#;

fn answer(stream: &mut (impl Read + Write)) {
    let mut buffer = [0; 1_024];
    let length = stream.read(&mut buffer).expect("a request");
    assert!(buffer[..length].ends_with(b"\r\n\r\n"));
    stream.write_all(OK).expect("sent");
    // Until the client is through.
    let _ = stream.read(&mut buffer);
}

fn clients(seen: &[Observed]) -> BTreeSet<String> {
    seen.iter()
        .map(|seen| format!("{:?}", seen.client))
        .collect()
}

#[test]
fn a_client_of_the_service_is_told_from_a_foreign_one_on_every_family() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    // Children inherit the service, so the foreign one comes first.
    let mut foreign = Process::start(CALLER);
    foreign.into.flush().expect("it runs");
    watch.serve(std::process::id());
    let mut own = Process::start(CALLER);
    let own_client = format!("{:?}", Client::Own(own.child.id()));
    let times = 50;
    // Kept, so that no port is given out twice.
    let mut listeners = Vec::new();
    for (bound, hosts) in [
        ("127.0.0.1:0", &["127.0.0.1"][..]),
        ("[::1]:0", &["::1"]),
        ("0.0.0.0:0", &["127.0.0.1"]),
        ("[::]:0", &["127.0.0.1", "::1"]),
    ] {
        for host in hosts {
            for (caller, client) in [(&mut own, own_client.as_str()), (&mut foreign, "Outside")] {
                let listener = TcpListener::bind(bound).expect("loopback has both families");
                let port = listener.local_addr().expect("bound").port();
                thread::scope(|scope| {
                    scope.spawn(|| {
                        for _ in 0..times {
                            answer(&mut listener.accept().expect("a client").0);
                        }
                    });
                    caller.ask(&format!("tcp {host} {port} {times}"));
                });
                let seen = watch.wait(port, times);
                assert_eq!(
                    clients(&seen),
                    BTreeSet::from([client.to_owned()]),
                    "{bound}"
                );
                let family = if bound.starts_with('[') { 10 } else { 2 };
                assert!(seen.iter().all(|seen| seen.family == family));
                assert!(seen.iter().all(|seen| seen.peer_port >= 1_024));
                listeners.push(listener);
            }
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    for (number, (caller, client)) in [(&mut own, own_client.as_str()), (&mut foreign, "Outside")]
        .into_iter()
        .enumerate()
    {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..times {
                    answer(&mut listener.accept().expect("a client").0);
                }
            });
            caller.ask(&format!("unix {} {times}", path.display()));
        });
        let seen = watch.wait(0, times * (number + 1));
        let seen = &seen[times * number..];
        assert_eq!(clients(seen), BTreeSet::from([client.to_owned()]));
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn a_client_on_an_old_connection_is_known_and_a_port_that_changes_hands_is_not_mixed_up() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let (listener, port) = listen();
    // From before the service was known.
    let mut client = connect(port);
    let (mut server, _) = listener.accept().expect("a client");
    client.write_all(POST).expect("sent");
    read_request(&mut server);
    server.write_all(OK).expect("sent");
    assert!(read_until(&mut client, b"ok"));
    let mut foreign = Process::start(
        r#"
import socket, sys
for line in sys.stdin:
    own, port = map(int, line.split())
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", own)); s.connect(("127.0.0.1", port))
    s.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
    while b"ok" not in s.recv(4096): pass
    s.close()
    print("done", flush=True)
"#,
    );
    watch.serve(std::process::id());
    client.write_all(POST).expect("sent");
    read_request(&mut server);
    server.write_all(OK).expect("sent");
    let [seen] = watch.wait(port, 1)[..] else {
        unreachable!()
    };
    assert_eq!(seen.client, Client::Own(std::process::id()));
    let own = client.local_addr().expect("connected").port();
    assert_eq!(seen.peer_port, own);
    // The server closes first: no TIME_WAIT holds the client's port.
    drop(server);
    read_until(&mut client, b"nothing");
    drop(client);
    thread::sleep(Duration::from_millis(50));
    thread::scope(|scope| {
        scope.spawn(|| answer(&mut listener.accept().expect("a client").0));
        foreign.ask(&format!("{own} {port}"));
    });
    let seen = watch.wait(port, 2);
    assert_eq!((seen[1].peer_port, seen[1].client), (own, Client::Outside));
}

#[test]
fn a_client_is_known_however_many_connections_wait_for_their_answer() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let many = 1_500;
    let (listener, port) = listen();
    let mut ends = connections(&listener, many);
    for (client, _) in &mut ends {
        client.write_all(POST).expect("sent");
    }
    for (_, server) in &mut ends {
        read_request(server);
        server.write_all(OK).expect("sent");
    }
    let seen = watch.wait(port, many);
    let own = format!("{:?}", Client::Own(std::process::id()));
    assert_eq!(clients(&seen), BTreeSet::from([own]));
}
