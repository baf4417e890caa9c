//! One call of the kubelet: `v1.PodResourcesLister/List`, unary gRPC over its Unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use thiserror::Error;
use tokio::net::UnixStream;

use super::messages::ListPodResourcesResponse;

/// HTTP/2 wants an authority; on a Unix socket it says nothing.
const URI: &str = "http://localhost/v1.PodResourcesLister/List";
/// An empty request: not compressed, a length of 0.
const EMPTY_MESSAGE: [u8; 5] = [0; 5];
/// The longest answer: what the kubelet's own client takes.
const MAX_BYTES: usize = 16 << 20;

/// Why there is no answer that can be used.
#[derive(Debug, Error)]
pub(super) enum KubeletError {
    /// There is no such socket, or it may not be opened.
    #[error("the kubelet's socket cannot be opened: {0}")]
    Connect(io::Error),
    /// It says nothing.
    #[error("the kubelet does not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection broke, or what is spoken there is not HTTP/2.
    #[error("the call of the kubelet failed: {0}")]
    Http(#[from] hyper::Error),
    /// The body broke off, or is too long.
    #[error("the kubelet's answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// It does not speak gRPC.
    #[error("what answers at the kubelet's socket is not gRPC (status {0})")]
    NotGrpc(StatusCode),
    /// The kubelet refuses.
    #[error("the kubelet refuses: status {code} {message}")]
    Refused {
        /// gRPC's number.
        code: String,
        /// Its own words.
        message: String,
    },
    /// The message is not one.
    #[error("the kubelet's answer makes no sense: {0}")]
    Message(String),
}

/// All pods' devices. Takes no longer than `patience`.
pub(super) async fn list(
    socket: &Path,
    patience: Duration,
) -> Result<ListPodResourcesResponse, KubeletError> {
    match tokio::time::timeout(patience, call(socket)).await {
        Ok(answer) => decode(&answer?),
        Err(_) => Err(KubeletError::Timeout(patience)),
    }
}

async fn call(socket: &Path) -> Result<Bytes, KubeletError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(KubeletError::Connect)?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await?;
    // Ends with the runtime, which lives for one call.
    tokio::spawn(connection);
    let agent = concat!("perjoule/", env!("CARGO_PKG_VERSION"));
    let request = Request::builder()
        .method(Method::POST)
        .uri(URI)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, agent)
        .body(Full::new(Bytes::from_static(&EMPTY_MESSAGE)))
        .map_err(|error| KubeletError::Message(error.to_string()))?;
    let response = sender.send_request(request).await?;
    let kind = response.headers().get(CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if response.status() != StatusCode::OK || !is_grpc {
        return Err(KubeletError::NotGrpc(response.status()));
    }
    // Where there is no message the status comes at once.
    check(response.headers())?;
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            KubeletError::Message(format!("it is longer than {MAX_BYTES} bytes"))
        } else {
            KubeletError::Body(error)
        }
    })?;
    if let Some(trailers) = body.trailers() {
        check(trailers)?;
    }
    Ok(body.to_bytes())
}

/// The status that gRPC tells in headers or trailers, if it does.
fn check(headers: &HeaderMap) -> Result<(), KubeletError> {
    let text = |name: &str| {
        let value = headers.get(name).map(|value| value.as_bytes());
        value.map(|value| {
            String::from_utf8_lossy(value)
                .chars()
                .take(200)
                .collect::<String>()
        })
    };
    match text("grpc-status") {
        Some(code) if code != "0" => Err(KubeletError::Refused {
            code,
            message: text("grpc-message").unwrap_or_default(),
        }),
        _ => Ok(()),
    }
}

fn decode(answer: &[u8]) -> Result<ListPodResourcesResponse, KubeletError> {
    let wrong = |what: &str| KubeletError::Message(what.to_owned());
    let whole = answer.split_first_chunk::<5>();
    let (&[compressed, length @ ..], message) =
        whole.ok_or_else(|| wrong("there is no message"))?;
    let length: [u8; 4] = length;
    if compressed != 0 || u32::from_be_bytes(length) as usize != message.len() {
        return Err(wrong("its length is another"));
    }
    ListPodResourcesResponse::decode(message).map_err(|error| wrong(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_whole_message_is_taken() {
        let empty = decode(&[0, 0, 0, 0, 0]).expect("an empty list");
        assert!(empty.pod_resources.is_empty());
        for bytes in [
            &[][..],
            &[0, 0, 0, 0],
            // Compressed; longer than said; shorter; no protobuf.
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 0, 9, 1],
            &[0, 0, 0, 0, 2, 0xff, 0xff],
        ] {
            assert!(decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
