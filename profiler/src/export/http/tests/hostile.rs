//! Clients that hang, crowd and guess, and one that only wants the metrics.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::secure::{Files, web};
use super::*;
use crate::export::web::tests::secret;

/// More than three times as many as there are places.
const CROWD: usize = 200;
/// A scrape that is answered at once, on a machine that has other things to do.
const AT_ONCE: Duration = Duration::from_secs(2);

/// So many connections from 127.0.0.`host`, after which each of them wrote `sent`.
async fn crowd(served: &Served, host: u8, sent: &[u8]) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut stream = connect_from(served, host).await;
        // One that was crowded out already cannot write.
        let _ = stream.write_all(sent).await;
        crowd.push(stream);
    }
    crowd
}

async fn connect_from(served: &Served, host: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, host], 0).into()).unwrap();
    socket.connect(served.address).await.unwrap()
}

async fn is_answered_at_once(served: &Served) {
    for _ in 0..3 {
        let answer = timeout(AT_ONCE, exchange(served.address, "GET /metrics")).await;
        let answer = answer.expect("an honest client waits");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_crowd_that_is_silent_or_slow_or_does_not_read_keeps_nobody_out() {
    let mut served = served().await;
    served.metrics.publish(Timestamp(1), None);
    let unread = "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n".repeat(2500);
    for host in [1, 2] {
        for sent in [&b""[..], b"GET /metr", unread.as_bytes()] {
            let crowd = crowd(&served, host, sent).await;
            is_answered_at_once(&served).await;
            drop(crowd);
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_alive_outlives_a_crowd_from_elsewhere() {
    let served = served().await;
    let mut kept = connect_from(&served, 1).await;
    for _ in 0..3 {
        let crowd = crowd(&served, 2, b"GET /").await;
        kept.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: node\r\n\r\n")
            .await
            .unwrap();
        let mut answer = vec![0; 12];
        timeout(AT_ONCE, kept.read_exact(&mut answer))
            .await
            .expect("it waits")
            .unwrap();
        assert_eq!(answer, b"HTTP/1.1 200");
        let mut rest = vec![0; 4096];
        assert!(kept.read(&mut rest).await.unwrap() > 0);
        drop(crowd);
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_refused() {
    let served = served().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nHost: {}", "a".repeat(64 * 1024));
    // It may be cut before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let read = timeout(HEADER_TIMEOUT / 2, stream.read_to_end(&mut answer)).await;
    let read = read.expect("it waits for more of it");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        read.is_err() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
}

#[tokio::test]
async fn half_open_handshakes_keep_nobody_out_and_end() {
    let files = Files::new();
    let served = served_to(Some(web(&files, ""))).await;
    // The beginning of a handshake record whose rest never comes.
    let mut crowd = crowd(&served, 1, &[22, 3, 1, 2, 0, 1]).await;
    let client = files.client(None);
    for _ in 0..3 {
        let asked = timeout(AT_ONCE, client.ask(&served, "GET /-/healthy", ""));
        let answer = asked.await.expect("an honest client waits").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let last = crowd.last_mut().unwrap();
    let mut rest = Vec::new();
    let ended = timeout(HANDSHAKE_TIMEOUT * 2, last.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it waits for ever");
}

#[tokio::test]
async fn guessers_keep_nobody_out_who_has_logged_in_or_comes_from_elsewhere() {
    let files = Files::new();
    let users = format!("basic_auth_users: {{prometheus: {}}}\n", secret());
    let served = served_to(Some(files.plain(&users))).await;
    let login = |password: &str| {
        let encoded = STANDARD.encode(format!("prometheus:{password}"));
        format!("Authorization: Basic {encoded}\r\n")
    };
    let mut guesses = JoinSet::new();
    for guess in 0..CROWD {
        let stream = connect_from(&served, 2).await;
        let login = login(&guess.to_string());
        guesses.spawn(async move { ask(stream, "GET /-/healthy", &login).await });
    }
    // The first time it waits for one guess and the pause behind it, later for nobody.
    for limit in [AT_ONCE * 5, AT_ONCE, AT_ONCE] {
        let stream = connect_from(&served, 1).await;
        let right = login("secret");
        let answer = timeout(limit, ask(stream, "GET /-/healthy", &right)).await;
        let answer = answer.expect("an honest client waits").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    guesses.abort_all();
}
