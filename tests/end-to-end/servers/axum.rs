//! The application of app.py on axum and hyper: `axum-server PORT`.
//!
//! Its log is the same. The first part of the body counts as sent when hyper takes it, the response
//! when hyper lets go of its body, or, of a long one, when it was written; so do events of a response
//! that was left.

#[path = "axum_wire.rs"]
mod wire;

use std::fs::File;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request};
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::time::{Sleep, sleep};

static LOG: OnceLock<Arc<File>> = OnceLock::new();

/// What the client asks for.
#[derive(Deserialize)]
struct Asked {
    n: u64,
    events: u64,
    pause: u64,
}

/// A line of the log.
#[derive(Clone, Serialize)]
struct Line {
    n: u64,
    status: u16,
    read_s: f64,
    first_s: Option<f64>,
    end_s: f64,
    chunks: u64,
    aborted: bool,
}

/// Seconds of `CLOCK_BOOTTIME`.
fn now() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to write.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// A body: its parts, each after a pause, with the events in it.
struct Parts {
    line: Line,
    parts: std::vec::IntoIter<(Bytes, u64)>,
    pause: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    whole: bool,
    long: bool,
}

impl Stream for Parts {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
        }
        let (pause, streams) = (self.pause, self.line.chunks > 0 || self.parts.len() > 1);
        let taken = now();
        let Some((part, events)) = self.parts.next() else {
            self.whole = true;
            return Poll::Ready(None);
        };
        self.waiting = streams.then(|| Box::pin(sleep(pause)));
        self.line.first_s.get_or_insert(taken);
        self.line.chunks += events;
        // A plain body has a length: hyper does not ask beyond it.
        self.whole = !streams;
        Poll::Ready(Some(Ok(part)))
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.line.end_s = now();
        self.line.aborted = !self.whole;
        let line = self.line.clone();
        if self.whole && self.long {
            tokio::spawn(line.log_when_written());
            return;
        }
        let written = wire::take(line.n);
        if line.aborted && !self.long {
            Line {
                chunks: written,
                ..line
            }
            .log();
        } else {
            line.log();
        }
    }
}

impl Line {
    /// Logs a response whose long body hyper has taken. If nobody takes it from there within a
    /// second, its client has left.
    async fn log_when_written(mut self) {
        for _ in 0..1_000 {
            if let Some(end_s) = wire::take_end(self.n) {
                self.end_s = end_s;
                return self.log();
            }
            sleep(Duration::from_millis(1)).await;
        }
        self.aborted = true;
        self.log();
    }

    fn log(&self) {
        let line = serde_json::to_string(self).unwrap_or_default() + "\n";
        if let Some(mut log) = LOG.get().map(|log| &**log) {
            // The test misses the line.
            let _ = log.write_all(line.as_bytes());
        }
    }
}

fn plain(path: &str, n: u64) -> (u16, String) {
    match path {
        "/v1/completions" => (200, r#"{"choices": [{"text": "all of it"}]}"#.to_owned()),
        "/v1/embeddings" => (200, wire::long(n)),
        "/v1/models" => (200, r#"{"data": [{"id": "model"}]}"#.to_owned()),
        "/upload" | "/health" => (200, "{}".to_owned()),
        "/none" => (204, String::new()),
        "/fail" => (500, r#"{"error": "failed"}"#.to_owned()),
        _ => (404, "{}".to_owned()),
    }
}

async fn answer(Query(asked): Query<Asked>, request: Request) -> Response {
    let read_s = now();
    let Asked { n, events, pause } = asked;
    let pause = Duration::from_millis(pause);
    let path = request.uri().path().to_owned();
    let headless = request.method() == Method::HEAD;
    let mut body = request.into_body().into_data_stream();
    while let Some(Ok(_)) = body.next().await {}
    let (status, text) = plain(&path, n);
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap_or_default());
    let mut parts: Vec<(Bytes, u64)> = Vec::new();
    let mut waiting = None;
    if events > 0 {
        response = response.header(header::CONTENT_TYPE, "text/event-stream");
        for event in 0..events {
            parts.push((wire::text(n, event).into(), 1));
        }
        parts.push(("data: [DONE]\n\n".into(), 0));
        waiting = Some(Box::pin(sleep(pause)));
    } else {
        sleep(pause).await;
        if !text.is_empty() {
            response = response.header(header::CONTENT_LENGTH, text.len());
            parts.push((text.into(), 0));
        }
    }
    let body = Parts {
        line: Line {
            n,
            status,
            read_s,
            first_s: None,
            end_s: 0.0,
            chunks: 0,
            aborted: false,
        },
        whole: headless || parts.is_empty(),
        long: path == "/v1/embeddings" && events == 0 && !headless,
        parts: parts.into_iter(),
        pause,
        waiting,
    };
    let body = if status == 204 {
        drop(body);
        Body::empty()
    } else {
        Body::from_stream(body)
    };
    response.body(body).unwrap_or_default()
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let port: u16 = std::env::args()
        .nth(1)
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| std::io::Error::other("axum-server PORT"))?;
    let path = std::env::var_os("SERVER_LOG").unwrap_or_else(|| "/dev/null".into());
    let file = File::options().create(true).append(true).open(path)?;
    let _ = LOG.set(Arc::new(file));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(
        wire::Watched(listener),
        axum::Router::new().fallback(answer),
    )
    .await
}
