//! Real sockets on loopback.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Instant;

use flate2::read::GzDecoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::new("0.1.0");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, metrics.exposition(), async {
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
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
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
async fn clients_that_send_nothing_keep_others_out_only_until_the_header_time_out() {
    let served = served().await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    let asked = Instant::now();
    let answer = timeout(
        HEADER_TIMEOUT * 3,
        exchange(served.address, "GET /-/healthy"),
    )
    .await
    .expect("an honest client is never let in");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        asked.elapsed() >= HEADER_TIMEOUT / 2,
        "the bound on connections was not reached"
    );
}
