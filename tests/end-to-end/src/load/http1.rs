//! The load over HTTP/1.1, plain or inside TLS.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Answer, Ask, Client, Connection, Events};

/// Makes HTTP/1.1 connections to a port on loopback.
#[derive(Debug, Clone, Copy)]
pub struct Http1 {
    /// The server's port.
    pub port: u16,
}

impl Client for Http1 {
    type Connection = Kept<TcpStream>;

    async fn connect(&self) -> Result<Self::Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Kept::new(stream.as_raw_fd(), stream))
    }
}

/// Makes HTTP/1.1 connections inside TLS.
#[derive(Debug, Clone)]
pub struct Https1 {
    /// The server's port.
    pub port: u16,
    /// Whom it trusts.
    pub trust: Arc<tokio_rustls::rustls::ClientConfig>,
}

impl Client for Https1 {
    type Connection = Kept<tokio_rustls::client::TlsStream<TcpStream>>;

    async fn connect(&self) -> Result<Self::Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let socket = stream.as_raw_fd();
        let name = "localhost".try_into().expect("a name");
        let connector = tokio_rustls::TlsConnector::from(self.trust.clone());
        Ok(Kept::new(socket, connector.connect(name, stream).await?))
    }
}

/// A connection that is kept alive.
#[derive(Debug)]
pub struct Kept<S> {
    socket: RawFd,
    stream: S,
    buffer: Vec<u8>,
}

/// How a response's body ends.
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection for Kept<S> {
    async fn exchange(&mut self, ask: &Ask) -> Result<(Answer, bool)> {
        self.stream.write_all(&request(ask)).await?;
        let head = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                break String::from_utf8_lossy(&head).to_ascii_lowercase();
            }
            self.more().await?;
        };
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status: u16 = status.ok_or_else(|| malformed(&head))?;
        let mut events = Events::of(ask);
        let mut usable = !head.contains("connection: close");
        let has_body = ask.kind.method != "HEAD" && status != 204 && status != 304;
        let framing = if head.contains("transfer-encoding: chunked") {
            Framing::Chunked
        } else {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            length
                .map_or(Ok(Framing::UntilClose), |length| {
                    length.trim().parse().map(Framing::Length)
                })
                .map_err(|_| malformed(&head))?
        };
        match framing {
            _ if !has_body => {}
            Framing::Chunked => loop {
                let size = self.line().await?;
                let digits = size.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(digits, 16).map_err(|_| malformed(&size))?;
                let data = self.take(size).await?;
                events.take(&data);
                self.line().await?;
                if size == 0 {
                    break;
                }
                if self.leaves(ask, &events) {
                    usable = false;
                    break;
                }
            },
            Framing::Length(length) => {
                let mut left = length;
                while left > 0 {
                    if self.buffer.is_empty() {
                        self.more().await?;
                    }
                    let part = left.min(self.buffer.len());
                    events.take(&self.take(part).await?);
                    left -= part;
                    if left > 0 && self.leaves(ask, &events) {
                        usable = false;
                        break;
                    }
                }
            }
            Framing::UntilClose => {
                usable = false;
                loop {
                    events.take(&std::mem::take(&mut self.buffer));
                    if self.leaves(ask, &events) || self.more().await.is_err() {
                        break;
                    }
                }
            }
        }
        let answer = Answer {
            ask: *ask,
            status,
            events: events.count(),
        };
        Ok((answer, usable))
    }
}

impl<S: AsyncRead + Unpin> Kept<S> {
    fn new(socket: RawFd, stream: S) -> Self {
        Self {
            socket,
            stream,
            buffer: Vec::new(),
        }
    }

    /// True if the client closes now: in the middle of the response. Every other one that does
    /// resets the connection.
    fn leaves(&self, ask: &Ask, events: &Events) -> bool {
        let leaves = ask.kind.cut && (ask.events == 0 || events.count() > 0);
        if leaves && ask.n.is_multiple_of(2) {
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // SAFETY: the descriptor is the stream's, which is open; `linger` is what the option
            // takes, of the stated size.
            unsafe {
                libc::setsockopt(
                    self.socket,
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    size_of::<libc::linger>() as libc::socklen_t,
                );
            }
        }
        leaves
    }

    async fn more(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(Error::new(ErrorKind::UnexpectedEof, "the server closed")),
            _ => Ok(()),
        }
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }
}

/// The request's bytes: as many as [`Ask::length`] says.
fn request(ask: &Ask) -> Vec<u8> {
    let line = format!("{} {} HTTP/1.1\r\n", ask.kind.method, ask.target());
    let host = "Host: localhost\r\nAccept: */*\r\n";
    let mut request = format!("{line}{host}").into_bytes();
    let fill = |length: usize| "x".repeat(length);
    if ask.kind.body.is_some() {
        // As many digits whatever the length: the length does not depend on itself.
        let head = request.len() + "Content-Length: 0000000\r\n\r\n".len();
        let body = ask.length - head;
        request.extend(format!("Content-Length: {body:07}\r\n\r\n{}", fill(body)).bytes());
    } else {
        let head = request.len() + "X-Fill: \r\n\r\n".len();
        request.extend(format!("X-Fill: {}\r\n\r\n", fill(ask.length - head)).bytes());
    }
    request
}

fn find(buffer: &[u8], what: &[u8]) -> Option<usize> {
    buffer.windows(what.len()).position(|part| part == what)
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("malformed: {what:?}"))
}
