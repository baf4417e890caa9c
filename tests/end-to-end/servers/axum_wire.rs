//! What went to the kernel of the axum server's streams. hyper takes events before it writes them,
//! and throws away what it holds when a client leaves: only the writes tell what was sent.

use std::collections::HashMap;
use std::io::{IoSlice, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// Events written of each request that is open, and when the last of them was.
static WRITTEN: LazyLock<Mutex<HashMap<u64, (u64, f64)>>> = LazyLock::new(Mutex::default);

/// What an event of request `n` holds.
pub(crate) fn text(n: u64, event: u64) -> String {
    format!("data: {{\"choices\": [{{\"text\": \"token {event} of {n}\"}}]}}\n\n")
}

/// A long body of request `n`, which ends as an event does. HTTP/2's flow control may hold it up long
/// after hyper has taken it.
pub(crate) fn long(n: u64) -> String {
    let numbers = "0.25,".repeat(30_000);
    format!("{{\"data\": [{numbers}1], \"of\": [{{\"text\": \"embeddings of {n}\"}}]}}\n")
}

/// What stands before the request's number in an event, and behind it.
const BEFORE: &[u8] = b" of ";
const BEHIND: &[u8] = b"\"}]}\n";

/// The events written of request `n`, which has ended.
pub(crate) fn take(n: u64) -> u64 {
    written().remove(&n).map_or(0, |(events, _)| events)
}

/// When the long body of request `n` was written to its end; once.
pub(crate) fn take_end(n: u64) -> Option<f64> {
    written().remove(&n).map(|(_, at)| at)
}

fn written() -> MutexGuard<'static, HashMap<u64, (u64, f64)>> {
    WRITTEN.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// Accepts connections whose writes are looked through.
pub(crate) struct Watched(pub(crate) TcpListener);

impl Listener for Watched {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        let tail = Vec::new();
        (Wire { stream, tail }, address)
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A connection.
pub(crate) struct Wire {
    stream: TcpStream,
    /// The end of what was written: an event may be cut.
    tail: Vec<u8>,
}

impl Wire {
    fn wrote<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>, mut bytes: usize) {
        // Before the search, which takes milliseconds in a long body.
        let now = crate::now();
        for part in parts {
            let part = &part[..bytes.min(part.len())];
            bytes -= part.len();
            self.tail.extend_from_slice(part);
        }
        let mut from = 0;
        while let Some(end) = find(&self.tail[from..], BEHIND) {
            let line = &self.tail[from..from + end];
            from += end + BEHIND.len();
            let number = line
                .windows(BEFORE.len())
                .rposition(|part| part == BEFORE)
                .and_then(|at| std::str::from_utf8(&line[at + BEFORE.len()..]).ok())
                .and_then(|number| number.parse().ok());
            if let Some(number) = number {
                let mut written = written();
                let (events, at) = written.entry(number).or_default();
                *events += 1;
                *at = now;
            }
        }
        // No event is longer.
        self.tail
            .drain(..from.max(self.tail.len().saturating_sub(128)));
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|part| part == what)
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.stream).poll_write(context, data))?;
        self.wrote([data], bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
        self.wrote(parts.iter().map(|part| &**part), bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
