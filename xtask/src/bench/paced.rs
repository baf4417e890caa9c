//! Plain requests at a given rate, whatever else runs: wrk knows pauses and no rates.
//!
//! Each millisecond every connection asks once and is then read; what is late is made up for.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

const ROUND: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `port` for `path` at `per_s` (a multiple of 1,000) while `measure` runs; returns how many
/// requests a second it was, and what was measured.
pub(super) fn during<T>(
    port: u16,
    path: &str,
    per_s: u32,
    measure: impl FnOnce() -> Result<T>,
) -> Result<(f64, T)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
    let mut connections = (0..per_s / 1_000)
        .map(|_| {
            let stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            anyhow::Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let start = Instant::now();
            let mut rounds = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let due = ROUND * rounds;
                thread::sleep(due.saturating_sub(start.elapsed()));
                for connection in &mut connections {
                    connection.write_all(request.as_bytes())?;
                }
                for connection in &mut connections {
                    read_response(connection)?;
                }
                rounds += 1;
            }
            let requests = f64::from(rounds) * connections.len() as f64;
            anyhow::Ok(requests / start.elapsed().as_secs_f64())
        });
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        let rate = load
            .join()
            .unwrap_or_else(|_| bail!("the load could not be followed"))
            .context("the paced load failed")?;
        Ok((rate, measured?))
    })
}

/// Reads one response with a `Content-Length`.
fn read_response(connection: &mut TcpStream) -> Result<()> {
    let mut bytes = [0; 4_096];
    let mut read = 0;
    loop {
        let more = connection.read(bytes.get_mut(read..).unwrap_or_default())?;
        ensure!(more > 0, "the server closed, or its response is too long");
        read += more;
        let text = String::from_utf8_lossy(bytes.get(..read).unwrap_or_default());
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))
                .context("a response without a length")?;
            if body.len() >= length.parse()? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_rate_is_what_was_asked_for_and_responses_are_read_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback exists");
        let port = listener.local_addr().expect("it is bound").port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a client");
                stream.set_nodelay(true).expect("a TCP socket");
                thread::spawn(move || {
                    let mut bytes = [0; 256];
                    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {
                        let head = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n");
                        let rest = head.and_then(|()| stream.write_all(b"\r\nok\n"));
                        if rest.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let (rate, ()) = during(port, "/", 1_000, || {
            thread::sleep(Duration::from_millis(300));
            Ok(())
        })
        .expect("the server answers");
        // A busy machine may be late; nobody is early.
        assert!((100.0..=1_010.0).contains(&rate), "{rate}");
    }
}
