//! The exporter's HTTP side: `/metrics`, `/`, `/-/healthy`, `/-/ready` and, for this machine alone,
//! `/hindsight/save`.
//!
//! It reads snapshots, and passes that one wish on. Connections are bounded in number and in time, so that
//! no client can make the agent large or keep others out. Who may connect and read, and over what, is
//! [`Web`]'s to say.

mod connections;
mod hindsight;
mod listeners;
mod secure;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, VARY,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, warn};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::negotiation::{Encoding, Format};
use super::snapshot::Exposition;
use super::web::{Verdict, Web};
use connections::Connections;
pub(super) use connections::Peer;
pub use hindsight::SaveHindsight;
pub use listeners::{ListenAddress, Listener, ParseListenAddressError, SocketFile};
use listeners::{Listeners, Stream};
use secure::secure;

/// A client must end its part of the TLS handshake within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A client must send a whole request head within this time, also on a connection kept alive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection is closed after this time, also when its client does not read.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// What a response under way gets when the agent stops or the lifetime is over.
const GRACE: Duration = Duration::from_millis(250);

const TEXT: &str = "text/plain; charset=utf-8";
const LANDING: &str = include_str!("http/landing.html");

/// Serves until `shutdown` resolves, then ends within half a second. `listeners` say where, `web` whom, `save`
/// who saves the last minutes, if they are kept;
/// failing to accept is logged and retried, so this returns only at shutdown.
pub async fn serve(
    listeners: Vec<Listener>,
    web: Option<Arc<Web>>,
    exposition: Arc<Exposition>,
    save: Option<SaveHindsight>,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let mut listeners = Listeners::new(listeners);
    let mut connections = Connections::default();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listeners.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let service = Service {
                    web: web.clone(),
                    exposition: Arc::clone(&exposition),
                    save: save.clone(),
                    peer,
                };
                connections.add(peer, connection(stream, service, stopped.clone()));
            }
            // Out of descriptors, mostly: those in use come back.
            Err(error) => {
                warn!("cannot accept a connection on the metrics port: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listeners);
    // Only fails if no connection is left to hear it.
    let _ = stop.send(true);
    if timeout(GRACE * 3 / 2, connections.ended()).await.is_err() {
        debug!("connections to the metrics port were cut at shutdown");
    }
}

/// What one connection needs to answer.
#[derive(Clone)]
struct Service {
    web: Option<Arc<Web>>,
    exposition: Arc<Exposition>,
    save: Option<SaveHindsight>,
    peer: Peer,
}

async fn connection(stream: Stream, service: Service, mut stopped: watch::Receiver<bool>) {
    let secured = tokio::select! {
        secured = timeout(HANDSHAKE_TIMEOUT, secure(stream, service.web.as_deref())) => secured,
        _ = stopped.wait_for(|stopped| *stopped) => return,
    };
    let stream = match secured {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!("connection to the metrics port refused: {error}"),
        Err(_) => return debug!("connection to the metrics port refused: no handshake in time"),
    };
    let service = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(&request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stopped.wait_for(|stopped| *stopped) => None,
        () = sleep(CONNECTION_LIFETIME) => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await
        }
    };
    if let Ok(Err(error)) = ended {
        debug!("connection to the metrics port: {error}");
    }
}

impl Service {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(web) = &self.web else {
            return self.respond(request).await;
        };
        match web.admit(request.headers(), self.peer).await {
            Verdict::Admitted(headers) => {
                let mut response = self.respond(request).await;
                response.headers_mut().extend(headers);
                response
            }
            Verdict::Refused(status, headers) => {
                let reason = status.canonical_reason().unwrap_or_default();
                let mut response = plain(status, reason);
                response.headers_mut().extend(headers);
                response
            }
        }
    }

    async fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if path == hindsight::PATH {
            return hindsight::answer(request, self.peer, self.save.as_ref()).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are served\n",
            );
            let headers = refused.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        // A HEAD response is made as for GET; hyper sends its length and not its body.
        match path {
            "/metrics" => metrics(request.headers(), Arc::clone(&self.exposition)).await,
            "/" => response(StatusCode::OK, "text/html; charset=utf-8", LANDING.into()),
            "/-/healthy" => plain(StatusCode::OK, "healthy\n"),
            "/-/ready" if self.exposition.ready() => plain(StatusCode::OK, "ready\n"),
            "/-/ready" => wait("no interval has been booked yet\n"),
            _ => plain(StatusCode::NOT_FOUND, "not found; see /\n"),
        }
    }
}

async fn metrics(asked: &HeaderMap, exposition: Arc<Exposition>) -> Response<Full<Bytes>> {
    let Some(snapshot) = exposition.scrape() else {
        return wait("no snapshot has been published yet\n");
    };
    let (format, encoding) = (Format::of(asked), Encoding::of(asked));
    // Thousands of series take milliseconds to encode: not on a thread that waits for others.
    let body = match tokio::task::spawn_blocking(move || snapshot.body(format, encoding)).await {
        Ok(body) => body,
        Err(error) => {
            warn!("cannot encode the metrics: {error}");
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode\n");
        }
    };
    let mut response = response(StatusCode::OK, format.content_type(), body);
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if encoding == Encoding::Gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn wait(text: &'static str) -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    response(status, TEXT, text.into())
}

fn response(status: StatusCode, content: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
