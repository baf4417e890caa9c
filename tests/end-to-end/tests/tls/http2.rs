//! HTTP/2 and gRPC inside TLS.

#[path = "../requests/http2/grpcio.rs"]
mod grpcio;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use h2::client::SendRequest;
use hyper::Request;
use hyper::body::Bytes;
use profiler::clock::Timestamp;
use profiler::ledger::{Outcome, Route};
use profiler::probes::requests::{Losses, Observed};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::servers::Server;
use crate::watch::{SERVICE, outcome};
use crate::{TlsWatch, count};

/// What a client asked for, and what it got.
struct Asked {
    path: String,
    status: u16,
    sent: Timestamp,
    first: Option<Timestamp>,
    ended: Timestamp,
}

async fn connect(port: u16, certificate: &Path) -> SendRequest<Bytes> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
    roots.add(certificate).expect("a certificate");
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("the server listens");
    socket.set_nodelay(true).expect("a socket");
    let name = ServerName::try_from("localhost").expect("a name");
    let socket = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .expect("TLS");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    tokio::spawn(connection);
    client.ready().await.expect("a connection")
}

async fn ask(mut client: SendRequest<Bytes>, path: String) -> Asked {
    let is_grpc = path.contains("GRPC");
    // A gRPC message: not compressed, of two bytes.
    let (content, data): (_, &[u8]) = if is_grpc {
        ("application/grpc", b"\0\0\0\0\x02{}")
    } else {
        ("application/json", b"{}")
    };
    let request = Request::post(format!("https://localhost{path}"))
        .header("authorization", "Bearer secret")
        .header("content-type", content)
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let sent = Timestamp::now();
    let (response, mut body) = client.send_request(request, false).expect("sent");
    body.send_data(Bytes::from_static(data), true)
        .expect("sent");
    let response = response.await.expect("a response");
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut first = None;
    while let Some(piece) = body.data().await {
        let piece = piece.expect("data");
        first.get_or_insert_with(Timestamp::now);
        let _ = body.flow_control().release_capacity(piece.len());
    }
    let _ = body.trailers().await.expect("an end");
    Asked {
        path,
        status,
        sent,
        first,
        ended: Timestamp::now(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Several at once on each of two connections.
async fn ask_all(port: u16, certificate: &Path) -> Vec<Asked> {
    let mut asking = Vec::new();
    for _ in 0..2 {
        let client = connect(port, certificate).await;
        let streams = (0..8).map(|n| format!("/v1/completions?n={}", n + 1));
        let others = [
            "/health",
            "/missing",
            "/large",
            "/api/generate",
            "/v1/models",
            STREAM,
            ANSWER,
        ]
        .map(String::from);
        for path in streams.chain(others) {
            asking.push(tokio::spawn(ask(client.clone(), path)));
        }
    }
    let mut asked = Vec::new();
    for one in asking {
        asked.push(one.await.expect("answered"));
    }
    asked
}

const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
const ANSWER: &str = "/inference.GRPCInferenceService/ModelInfer";

#[test]
fn streams_beside_each_other_on_http2_are_as_many_requests() {
    let Some(server) = Server::start("node", "http2_server.js", &[]) else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    let asked = runtime().block_on(ask_all(server.port, &server.certificate()));
    let seen = watch.watch.wait(server.port, asked.len());
    assert_eq!(count(&seen, Outcome::Done), asked.len());
    assert_eq!(watch.watch.probe.http2_connections(), 2);
    let of = |route: Route| seen.iter().filter(move |seen| seen.request.route == route);
    let facts = |seen: &Observed| (seen.request.status, seen.request.chunks);
    let mut streams: Vec<_> = of(Route::Completions).collect();
    streams.sort_by_key(|seen| seen.request.chunks);
    let mut expected: Vec<_> = (1..=8).flat_map(|n| [(200, n); 2]).collect();
    assert_eq!(
        streams.iter().map(|seen| facts(seen)).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(
        of(Route::Health).map(facts).collect::<Vec<_>>(),
        [(204, 0); 2]
    );
    // A `grpc-status` of 5 is told as 404.
    assert_eq!(
        of(Route::ModelInfer).map(facts).collect::<Vec<_>>(),
        [(404, 0); 2]
    );
    assert_eq!(
        of(Route::ModelStreamInfer).map(facts).collect::<Vec<_>>(),
        [(200, 7); 2]
    );
    expected = of(Route::Other).map(facts).collect();
    expected.sort_unstable();
    // Answers, of which one is JSON of several lines, and Ollama's lines, the last of which has
    // nothing but counts.
    let answers = [(200, 0); 4].into_iter().chain([(200, 6); 2]);
    assert_eq!(expected, answers.chain([(404, 0); 2]).collect::<Vec<_>>());
    for seen in of(Route::Other).filter(|seen| seen.request.chunks != 0) {
        assert_eq!(seen.usage.and_then(|usage| usage.output), Some(6));
    }
    let large = of(Route::Other).filter(|seen| seen.response_bytes > 100_000);
    assert_eq!(large.clone().count(), 2);
    for seen in large {
        assert!(
            (300_000..301_000).contains(&seen.response_bytes),
            "{}",
            seen.response_bytes
        );
    }

    // Two connections asked for the same: either's times bound both.
    for seen in streams {
        let mut same = asked
            .iter()
            .filter(|asked| asked.path == format!("/v1/completions?n={}", seen.request.chunks));
        let first = seen.request.first_data.expect("data");
        let end = seen.request.end.expect("an end").at;
        assert!(
            first.since(seen.request.start) >= 28_000_000,
            "data came after 30 ms"
        );
        let fits = |asked: &Asked| {
            asked.status == 200
                && asked.sent <= seen.request.start
                && asked.first.is_some_and(|data| first <= data)
                && end <= asked.ended
        };
        assert!(same.any(fits), "{seen:?}");
    }
    assert_eq!(server.logged(), asked.len());
    watch.assert_nothing_lost();
}

#[test]
fn a_reset_inside_tls_aborts_its_stream_and_no_other() {
    let Some(server) = Server::start("node", "http2_server.js", &[]) else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    runtime().block_on(async {
        let mut client = connect(server.port, &server.certificate()).await;
        let other = tokio::spawn(ask(client.clone(), "/v1/completions?n=20".into()));
        let request = Request::get("https://localhost/v1/completions?n=50")
            .body(())
            .expect("a request");
        let (response, _) = client.send_request(request, true).expect("sent");
        let mut body = response.await.expect("a response").into_body();
        assert!(body.data().await.is_some());
        drop(body);
        other.await.expect("answered");
        // The connection stays for a moment: its end would end the stream too.
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    let mut seen = watch.watch.wait(server.port, 2);
    seen.sort_by_key(|seen| seen.request.chunks);
    let told: Vec<_> = seen
        .iter()
        .map(|seen| (outcome(seen), seen.request.chunks))
        .collect();
    assert_eq!(told[0].0, Some(Outcome::Aborted), "{told:?}");
    assert!((1..20).contains(&told[0].1), "{told:?}");
    assert_eq!(told[1], (Some(Outcome::Done), 20));
    watch.assert_nothing_lost();
}

#[test]
fn a_connection_of_http2_that_is_older_than_the_probe_is_found_by_its_next_request() {
    let Some(server) = Server::start("node", "http2_server.js", &[]) else {
        return;
    };
    let runtime = runtime();
    let client = runtime.block_on(async {
        let client = connect(server.port, &server.certificate()).await;
        ask(client.clone(), "/v1/completions?n=2".into()).await;
        client
    });
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.serve(&server.pids());
    runtime.block_on(async {
        for n in [3, 4] {
            ask(client.clone(), format!("/v1/completions?n={n}")).await;
        }
    });
    let seen = watch.watch.wait(server.port, 2);
    assert_eq!(count(&seen, Outcome::Done), 2);
    let chunks: Vec<_> = seen.iter().map(|seen| seen.request.chunks).collect();
    assert_eq!(chunks, [3, 4]);
    assert_eq!(watch.watch.probe.losses(), Losses::default());
}

/// grpcio's wheel has BoringSSL inside, and its functions' names taken out.
#[test]
fn grpc_with_a_stripped_library_is_not_seen_and_nothing_is_made_up() {
    let Some(python) = grpcio::python() else {
        return;
    };
    let python = python.to_str().expect("a path");
    let Some(server) = Server::start(python, "grpc_server.py", &[]) else {
        return;
    };
    let Some(mut watch) = TlsWatch::attach() else {
        return;
    };
    watch.watch.serve(server.pid());
    watch.tls.join(server.pid(), SERVICE);
    let give_up = Instant::now() + end_to_end::scaled(Duration::from_millis(1_500));
    while Instant::now() < give_up {
        watch.poll();
        std::thread::sleep(Duration::from_millis(20));
    }
    let libraries: Vec<&str> = watch.tls.libraries().collect();
    assert!(
        !libraries.iter().any(|name| name.contains("grpc")),
        "{libraries:?}"
    );
    let asked = runtime().block_on(async {
        let client = connect(server.port, &server.certificate()).await;
        ask(client, STREAM.into()).await
    });
    assert_eq!(asked.status, 200);
    watch.watch.wait(server.port, 0);
    watch.assert_nothing_lost();
}
