//! One bounded HTTP GET, for threads that may wait.
//!
//! In: a connection and a path. Out: the body's text, at most [`MAX_BYTES`] and before the
//! deadline. The connection is closed afterwards, so that a server with several processes behind
//! one port does not pin the reader to one of them.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use thiserror::Error;

/// The longest response that is read, head included.
const MAX_BYTES: usize = 4 << 20;

/// Why there is no answer that can be used.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    /// The connection broke.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// It took longer than it may.
    #[error("no whole answer in time")]
    Timeout,
    /// It is longer than [`MAX_BYTES`].
    #[error("the answer is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// What answers does not speak HTTP/1, or not to us.
    #[error("the answer is not HTTP")]
    NotHttp,
    /// The server refuses.
    #[error("status {0}")]
    Status(u16),
    /// The answer broke off, or its framing makes no sense.
    #[error("the answer is incomplete")]
    Incomplete,
}

/// The body at `path` of `host`.
pub(crate) fn get(
    mut stream: TcpStream,
    host: &str,
    path: &str,
    deadline: Instant,
) -> Result<String, HttpError> {
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: perjoule/{}\r\n\
         Accept: text/plain;version=0.0.4\r\nAccept-Encoding: identity\r\n\
         Connection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    // One write: a request in pieces would wait for delayed acknowledgements.
    stream.write_all(request.as_bytes()).map_err(timely)?;
    let mut answer = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let read = match stream.read(&mut part) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(timely(error)),
        };
        answer.extend_from_slice(part.get(..read).unwrap_or_default());
        if answer.len() > MAX_BYTES {
            return Err(HttpError::TooLong);
        }
        if let Some(body) = body(&answer, read == 0)? {
            return Ok(String::from_utf8_lossy(&body).into_owned());
        }
    }
}

fn left(deadline: Instant) -> Result<Duration, HttpError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A socket takes no time-out of zero.
    (!left.is_zero()).then_some(left).ok_or(HttpError::Timeout)
}

fn timely(error: io::Error) -> HttpError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => HttpError::Timeout,
        _ => HttpError::Io(error),
    }
}

/// The body of a whole answer; `None` while more must come. `ended`: nothing more will.
fn body(answer: &[u8], ended: bool) -> Result<Option<Vec<u8>>, HttpError> {
    const VERSION: &[u8] = b"HTTP/1.";
    let seen = answer.len().min(VERSION.len());
    if answer.get(..seen) != VERSION.get(..seen) {
        return Err(HttpError::NotHttp);
    }
    let broken = || {
        if answer.is_empty() {
            HttpError::NotHttp
        } else {
            HttpError::Incomplete
        }
    };
    let Some(end) = find(answer, b"\r\n\r\n") else {
        return if ended { Err(broken()) } else { Ok(None) };
    };
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default());
    let rest = answer.get(end + 4..).unwrap_or_default();
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok())
        .ok_or(HttpError::NotHttp)?;
    if status != 200 {
        return Err(HttpError::Status(status));
    }
    let mut length: Option<usize> = None;
    let mut chunked = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().map_err(|_| HttpError::Incomplete)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.to_ascii_lowercase().contains("chunked");
        }
    }
    let whole = if chunked {
        unchunked(rest)?
    } else if let Some(length) = length {
        if length > MAX_BYTES {
            return Err(HttpError::TooLong);
        }
        rest.get(..length).map(<[u8]>::to_vec)
    } else {
        ended.then(|| rest.to_vec())
    };
    match whole {
        None if ended => Err(HttpError::Incomplete),
        whole => Ok(whole),
    }
}

/// The body that chunks make; `None` before the last of them.
fn unchunked(mut rest: &[u8]) -> Result<Option<Vec<u8>>, HttpError> {
    let mut whole = Vec::new();
    loop {
        let Some(end) = find(rest, b"\r\n") else {
            return Ok(None);
        };
        let size = rest.get(..end).and_then(|line| {
            let digits = std::str::from_utf8(line).ok()?.split(';').next()?;
            usize::from_str_radix(digits.trim(), 16).ok()
        });
        let size = size
            .filter(|size| *size <= MAX_BYTES)
            .ok_or(HttpError::Incomplete)?;
        if size == 0 {
            return Ok(Some(whole));
        }
        let data = end + 2;
        let Some(chunk) = rest.get(data..data + size) else {
            return Ok(None);
        };
        whole.extend_from_slice(chunk);
        rest = rest.get(data + size + 2..).unwrap_or_default();
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    /// A server that reads a head and answers with `parts`, one write each; keeps the connection
    /// open for `linger` afterwards.
    fn server(parts: Vec<Vec<u8>>, linger: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.extend(byte);
            }
            for part in parts {
                if stream.write_all(&part).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(linger);
        });
        address
    }

    fn answer(text: &str, linger: Duration) -> Result<String, HttpError> {
        let parts = text.as_bytes().chunks(7).map(<[u8]>::to_vec).collect();
        ask(server(parts, linger), Duration::from_secs(2))
    }

    fn ask(address: SocketAddr, limit: Duration) -> Result<String, HttpError> {
        let stream = TcpStream::connect(address).unwrap();
        get(stream, "localhost", "/metrics", Instant::now() + limit)
    }

    #[test]
    fn a_body_is_read_however_it_is_framed() {
        let still_open = Duration::from_secs(5);
        let length = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n";
        assert_eq!(answer(length, still_open).unwrap(), "a 1\n");
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                      2;x=y\r\na \r\n2\r\n1\n\r\n0\r\n\r\n";
        assert_eq!(answer(chunks, still_open).unwrap(), "a 1\n");
        let closed = "HTTP/1.0 200 OK\r\n\r\na 1\n";
        assert_eq!(answer(closed, Duration::ZERO).unwrap(), "a 1\n");
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_says_why() {
        let error = |text| answer(text, Duration::ZERO).unwrap_err();
        assert!(matches!(
            error("HTTP/1.1 404 Not Found\r\n\r\n"),
            HttpError::Status(404)
        ));
        assert!(matches!(error("\u{15}\u{3}\u{1} TLS"), HttpError::NotHttp));
        assert!(matches!(error(""), HttpError::NotHttp));
        let short = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\na 1\n";
        assert!(matches!(error(short), HttpError::Incomplete));
        let huge = "HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\na 1\n";
        assert!(matches!(error(huge), HttpError::TooLong));
    }

    #[test]
    fn a_server_that_hangs_costs_no_more_than_the_time_given() {
        let silent = server(
            vec![b"HTTP/1.1 200 OK\r\n".to_vec()],
            Duration::from_secs(5),
        );
        let start = Instant::now();
        let error = ask(silent, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, HttpError::Timeout), "{error}");
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn an_endless_answer_is_cut() {
        let mut parts = vec![b"HTTP/1.1 200 OK\r\n\r\n".to_vec()];
        parts.extend((0..6).map(|_| vec![b'a'; 1 << 20]));
        let endless = server(parts, Duration::from_secs(5));
        let error = ask(endless, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, HttpError::TooLong), "{error}");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            head in "(HTTP/1.1 200 OK\r\n)?((content-length|transfer-encoding): ?([0-9]{1,22}|chunked)\r\n){0,2}(\r\n)?",
            rest in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'f'), any::<u8>()], 0..64),
            ended: bool,
        ) {
            let mut answer = head.into_bytes();
            answer.extend(rest);
            let _ = body(&answer, ended);
        }
    }
}
