//! The front: an HTTP server shaped as vLLM's, in front of one engine.
//!
//! In: HTTP/1.1 requests. Out: JSON and server-sent events of the OpenAI API, and `/metrics` with
//! vLLM's names. One thread: it waits on many things and computes little.

mod answer;
mod api;
mod engine_link;
mod metrics;
mod routes;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixStream};

use self::engine_link::EngineLink;
use self::metrics::Metrics;
use self::routes::Front;

/// What a front is started with.
#[derive(Debug, Clone)]
pub struct FrontConfig {
    /// The model's name, in answers and on metrics.
    pub model: String,
    /// Prompt and answer together are at most this long, tokens.
    pub max_model_len: u64,
    /// Tokens in an event of a stream, after the first event.
    pub tokens_a_chunk: u64,
}

impl Default for FrontConfig {
    fn default() -> Self {
        Self {
            model: "simulated-8b".to_owned(),
            max_model_len: 32_768,
            tokens_a_chunk: 1,
        }
    }
}

/// Serves until it is dropped, which cuts off what is in flight, or the engine goes.
///
/// # Errors
/// The engine has gone, or connections cannot be accepted.
pub async fn run(
    listener: TcpListener,
    engine: UnixStream,
    config: FrontConfig,
) -> anyhow::Result<()> {
    let metrics = Metrics::new(&config.model)?;
    let (link, messages) = EngineLink::new(metrics);
    let front = Arc::new(Front::new(config, Arc::clone(&link)));
    tokio::select! {
        ended = link.carry(engine, messages) => ended.context("the engine has gone"),
        failed = accept(listener, front) => failed.context("cannot accept connections"),
    }
}

async fn accept(listener: TcpListener, front: Arc<Front>) -> std::io::Result<()> {
    loop {
        let (stream, _peer): (_, SocketAddr) = listener.accept().await?;
        // A chunk is a packet: it must not wait for the acknowledgement of the one before.
        stream.set_nodelay(true)?;
        let front = Arc::clone(&front);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let front = Arc::clone(&front);
                async move { front.answer(request).await }
            });
            // An error here is a client that left or spoke no HTTP: its own affair.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
