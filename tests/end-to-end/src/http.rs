//! A client that counts: HTTP/1.1 over plain sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// One request on a connection of its own; returns the response's bytes.
///
/// # Panics
/// If the server does not answer.
pub fn get(port: u16, path: &str) -> String {
    get_with(port, path, "")
}

/// The same with more headers, each with its line's end.
///
/// # Panics
/// If the server does not answer.
pub fn get_with(port: u16, path: &str, headers: &str) -> String {
    ask(port, "GET", path, headers)
}

fn ask(port: u16, method: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a socket option");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .expect("the server reads");
    let mut response = Vec::new();
    stream
        .read_to_end(&mut response)
        .expect("the server answers");
    String::from_utf8_lossy(&response).into_owned()
}

/// One request without a body that is to do something.
///
/// # Panics
/// If the server does not answer.
pub fn post(port: u16, path: &str) -> String {
    ask(port, "POST", path, "Content-Length: 0\r\n")
}

/// The body behind the head.
pub fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// `count` requests on one connection, one after the other; every response states its length.
///
/// # Panics
/// If a response is not complete.
pub fn keep_alive(port: u16, path: &str, count: usize) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a socket option");
    let mut buffer = Vec::new();
    for _ in 0..count {
        // One write: a request in pieces would wait for delayed acknowledgements.
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let length = loop {
            let text = String::from_utf8_lossy(&buffer).to_ascii_lowercase();
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                let stated = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length:"))
                    .and_then(|value| value.trim().parse::<usize>().ok());
                break head.len() + 4 + stated.expect("the response states its length");
            }
            read_more(&mut stream, &mut buffer);
        };
        while buffer.len() < length {
            read_more(&mut stream, &mut buffer);
        }
        buffer.drain(..length);
    }
}

fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) {
    let mut part = [0; 4096];
    let read = stream.read(&mut part).expect("the server answers");
    assert!(read > 0, "the server closed in the middle of a response");
    buffer.extend_from_slice(&part[..read]);
}
