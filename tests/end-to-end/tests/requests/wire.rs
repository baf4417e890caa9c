//! Servers and clients that say exactly what they are told to, on loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// A listener on a free port, and the port.
pub(crate) fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

pub(crate) fn connect(port: u16) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

/// One connection: `server` gets its end in a thread of its own, `client` the other here.
/// Returns the listener's port once both are through.
pub(crate) fn exchange(
    server: impl FnOnce(TcpStream) + Send,
    client: impl FnOnce(TcpStream),
) -> u16 {
    let (listener, port) = listen();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            stream.set_nodelay(true).expect("a TCP socket");
            server(stream);
        });
        client(connect(port));
    });
    port
}

/// Reads a request with no body, or with the body its Content-Length states.
pub(crate) fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        if let Some(head) = find(&request, b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
            let length: usize = text
                .split("content-length:")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.trim().parse().ok())
                .unwrap_or(0);
            if request.len() >= head + 4 + length {
                return request;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return request,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
}

/// Reads until `end` has come; false if the connection closed first.
pub(crate) fn read_until(stream: &mut TcpStream, end: &[u8]) -> bool {
    let mut all = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        if find(&all, end).is_some() {
            return true;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return false,
            Ok(length) => all.extend_from_slice(&buffer[..length]),
        }
    }
}

pub(crate) fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    all
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|part| part == what)
}

/// Sends `bytes` in pieces of the given sizes, in turn and again from the first.
pub(crate) fn send_cut(stream: &mut TcpStream, bytes: &[u8], sizes: &[usize]) {
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            return;
        }
        let (now, later) = rest.split_at((*size).clamp(1, rest.len()));
        if stream.write_all(now).is_err() {
            return;
        }
        rest = later;
    }
}

pub(crate) const POST: &[u8] =
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";

/// A chunked response head of the given content type.
pub(crate) fn stream_head(content_type: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nserver: t\r\ncontent-type: {content_type}; charset=utf-8\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
}

pub(crate) fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

pub(crate) const LAST_CHUNK: &str = "0\r\n\r\n";
