//! Real sockets on loopback.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Instant;

use flate2::read::GzDecoder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

mod hindsight;
mod hostile;
mod secure;

use super::*;
use crate::clock::Timestamp;
use crate::export::Metrics;
use crate::ledger::{Accounts, Booked, BookedInterval, Component, Meter, MeterId, Source};
use crate::units::Microjoules;

struct Served {
    address: SocketAddr,
    metrics: Metrics,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn served() -> Served {
    served_to(None).await
}

/// To those whom a web configuration lets in.
async fn served_to(web: Option<Arc<Web>>) -> Served {
    served_with(web, None).await
}

/// The same with somebody who saves the last minutes.
async fn served_with(web: Option<Arc<Web>>, save: Option<SaveHindsight>) -> Served {
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listeners = vec![Listener::Tcp(listener)];
    let metrics = Metrics::new("0.1.0");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listeners, web, metrics.exposition(), save, async {
        let _ = stopped.await;
    }));
    Served {
        address,
        metrics,
        stop,
        server,
    }
}

/// Sends `head` and reads to the end of the connection.
async fn exchange(address: SocketAddr, head: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    ask(stream, head, "").await.unwrap()
}

/// The same on any stream, with more header lines.
async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    head: &str,
    more: &str,
) -> io::Result<String> {
    let request = format!("{head} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn book_one(metrics: &mut Metrics) {
    metrics.describe_meter(
        MeterId(0),
        &Meter {
            component: Component::Gpu,
            device: "GPU-1".to_owned(),
            source: Source::Counter,
            limit: None,
            tick: 100_000_000,
            stale_after: 1_000_000_000,
            gain_error_ratio: 0.05,
            idle: None,
        },
    );
    metrics.book(&Booked::Interval(BookedInterval {
        meter: MeterId(0),
        from: Timestamp(0),
        to: Timestamp(100_000_000),
        energy: Microjoules(8_300_000),
        accounts: Accounts {
            idle: Microjoules(8_300_000),
            ..Accounts::default()
        },
        services: vec![],
        holders: None,
    }));
}

#[tokio::test]
async fn it_is_ready_once_an_interval_has_been_booked() {
    let mut served = served().await;
    let ready = "GET /-/ready";
    let answer = exchange(served.address, ready).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    let metrics = exchange(served.address, "GET /metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 503 "), "{metrics}");

    served.metrics.publish(Timestamp(1), None);
    let answer = exchange(served.address, ready).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let metrics = exchange(served.address, "GET /metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");

    book_one(&mut served.metrics);
    served.metrics.publish(Timestamp(2), None);
    let answer = exchange(served.address, ready).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let healthy = exchange(served.address, "GET /-/healthy").await;
    assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
}

#[tokio::test]
async fn metrics_are_text_0_0_4_and_head_has_the_length_and_no_body() {
    let mut served = served().await;
    book_one(&mut served.metrics);
    served.metrics.publish(Timestamp(1), None);
    let answer = exchange(served.address, "GET /metrics?name=x").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"));
    assert!(body.contains(
        "perjoule_energy_account_joules_total{component=\"gpu\",device=\"GPU-1\",account=\"idle\"} 8.3\n"
    ));
    let length = format!("content-length: {}", body.len());
    assert!(head.contains(&length), "{head}");

    let answer = exchange(served.address, "HEAD /metrics").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&length), "{head}");
    assert_eq!(body, "");
}

/// A head and a body.
async fn bytes(address: SocketAddr, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = answer.split_off(end.unwrap() + 4);
    (String::from_utf8(answer).unwrap(), body)
}

#[tokio::test]
async fn a_client_gets_the_format_and_the_compression_that_it_asks_for() {
    let mut served = served().await;
    book_one(&mut served.metrics);
    served.metrics.publish(Timestamp(1), None);
    let (head, plain) = bytes(served.address, "Accept: application/openmetrics-text\r\n").await;
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(head.contains(kind), "{head}");
    assert!(head.contains("vary: Accept, Accept-Encoding\r\n"), "{head}");
    assert!(!head.contains("content-encoding"), "{head}");
    assert!(plain.ends_with(b"\n# EOF\n"));

    let both = "Accept: application/openmetrics-text\r\nAccept-Encoding: gzip\r\n";
    let (head, packed) = bytes(served.address, both).await;
    assert!(head.contains(kind), "{head}");
    assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
    let mut unpacked = Vec::new();
    GzDecoder::new(packed.as_slice())
        .read_to_end(&mut unpacked)
        .unwrap();
    assert_eq!(unpacked, plain);

    let (head, text) = bytes(served.address, "Accept: image/png\r\n").await;
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(head.contains("vary: Accept, Accept-Encoding\r\n"), "{head}");
    assert!(!text.ends_with(b"# EOF\n"));
}

#[tokio::test]
async fn the_landing_page_leads_to_the_metrics_and_other_paths_and_methods_are_refused() {
    let served = served().await;
    let landing = exchange(served.address, "GET /").await;
    assert!(landing.contains("href=\"metrics\""), "{landing}");
    let unknown = exchange(served.address, "GET /etc/passwd").await;
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
    let refused = exchange(served.address, "POST /metrics").await;
    assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
    assert!(refused.contains("allow: GET, HEAD"), "{refused}");
}

#[tokio::test]
async fn it_stops_at_once_although_clients_hang() {
    let served = served().await;
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
        .await
        .unwrap();
    let mut half = TcpStream::connect(served.address).await.unwrap();
    half.write_all(b"GET /metr").await.unwrap();
    exchange(served.address, "GET /-/healthy").await;
    let stopping = Instant::now();
    served.stop.send(()).unwrap();
    served.server.await.unwrap();
    assert!(
        stopping.elapsed() < Duration::from_millis(500),
        "{:?}",
        stopping.elapsed()
    );
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn several_addresses_are_served_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut listeners = Vec::new();
    for address in ["127.0.0.1:0", &format!("unix:{}", path.display())] {
        let address: ListenAddress = address.parse().unwrap();
        listeners.push(Listener::bind(&address).await.unwrap());
    }
    let urls: Vec<String> = listeners.iter().map(|l| l.url(false).unwrap()).collect();
    assert_eq!(urls[1], format!("http+unix:{}:/metrics", path.display()));
    let tcp = urls[0].strip_prefix("http://").unwrap();
    let tcp: SocketAddr = tcp.strip_suffix("/metrics").unwrap().parse().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let exposition = Metrics::new("0.1.0").exposition();
    let server = tokio::spawn(serve(listeners, None, exposition, None, async {
        let _ = stopped.await;
    }));
    for _ in 0..3 {
        let answer = exchange(tcp, "GET /-/healthy").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let answer = ask(stream, "GET /-/healthy", "").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!(!path.exists());
}
