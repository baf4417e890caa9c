//! Which path is answered with what.

use std::io;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use gpu_state::boottime_ns;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::json;

use super::FrontConfig;
use super::answer::{Answer, EventStream, never};
use super::api::{Kind, Wish};
use super::engine_link::{EngineLink, Ticket};
use crate::wire::Submission;

/// Larger bodies are refused.
const MAX_BODY_BYTES: usize = 16 << 20;

type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// The server behind all connections.
#[derive(Debug)]
pub(crate) struct Front {
    config: FrontConfig,
    link: Arc<EngineLink>,
    /// Makes answers' ids distinct from those of an earlier front.
    started_ns: u64,
}

impl Front {
    pub(crate) fn new(config: FrontConfig, link: Arc<EngineLink>) -> Self {
        Self {
            config,
            link,
            started_ns: boottime_ns(),
        }
    }

    /// Answers one request; dropped if its client leaves while it waits.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Result<Reply, io::Error> {
        let start_ns = boottime_ns();
        let get = request.method() == Method::GET || request.method() == Method::HEAD;
        let post = request.method() == Method::POST;
        let mut reply = match request.uri().path() {
            "/v1/chat/completions" if post => self.generate(Kind::Chat, request, start_ns).await,
            "/v1/completions" if post => self.generate(Kind::Completion, request, start_ns).await,
            "/health" if get => whole(StatusCode::OK, "", Bytes::new()),
            "/v1/models" if get => self.models(),
            "/version" if get => {
                let version = json!({"version": env!("CARGO_PKG_VERSION")}).to_string();
                whole(StatusCode::OK, "application/json", version.into())
            }
            "/metrics" if get => {
                let text = self.link.metrics.render(self.link.running_and_waiting());
                whole(
                    StatusCode::OK,
                    "text/plain; version=0.0.4; charset=utf-8",
                    text.into(),
                )
            }
            "/v1/chat/completions"
            | "/v1/completions"
            | "/health"
            | "/v1/models"
            | "/version"
            | "/metrics" => detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
            _ => detail(StatusCode::NOT_FOUND, "Not Found"),
        };
        reply
            .headers_mut()
            .insert(SERVER, HeaderValue::from_static("inference-sim"));
        Ok(reply)
    }

    async fn generate(&self, kind: Kind, request: Request<Incoming>, start_ns: u64) -> Reply {
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let wish = match Wish::read(kind, &body, self.config.max_model_len) {
            Ok(wish) => wish,
            Err(reason) => return refused(StatusCode::BAD_REQUEST, &reason),
        };
        let x_request_id = header(&head.headers, "x-request-id");
        let ticket = self.submit(&wish, start_ns, x_request_id.as_deref());
        let created = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let id = self.answer_id(kind, ticket.id);
        let stream = wish.stream;
        let answer = Answer::new(wish, id, created, &self.config.model);
        let mut reply = if stream {
            events(EventStream::new(answer, ticket, self.config.tokens_a_chunk))
        } else {
            match answer.whole(ticket).await {
                Ok(body) => whole(StatusCode::OK, "application/json", body),
                Err(gone) => refused(StatusCode::INTERNAL_SERVER_ERROR, &gone.to_string()),
            }
        };
        if let Some(value) = head.headers.get("x-request-id") {
            reply.headers_mut().insert("x-request-id", value.clone());
        }
        reply
    }

    fn submit(&self, wish: &Wish, start_ns: u64, x_request_id: Option<&str>) -> Ticket {
        self.link.submit(wish.finish_reason(), |id| Submission {
            id,
            request_id: self.answer_id(wish.kind, id),
            x_request_id: x_request_id.map(str::to_owned),
            route: wish.kind.route().to_owned(),
            stream: wish.stream,
            start_ns,
            prompt_tokens: wish.prompt_tokens,
            output_tokens: wish.output_tokens,
        })
    }

    fn answer_id(&self, kind: Kind, id: u64) -> String {
        format!("{}-{:x}-{id}", kind.id_prefix(), self.started_ns)
    }

    fn models(&self) -> Reply {
        let FrontConfig {
            model,
            max_model_len,
            ..
        } = &self.config;
        let list = json!({"object": "list", "data": [{
            "id": model, "object": "model", "owned_by": "inference-sim",
            "root": model, "max_model_len": max_model_len,
        }]});
        whole(StatusCode::OK, "application/json", list.to_string().into())
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The head goes out at once; hyper sends it while the first token is still to come.
fn events(stream: EventStream) -> Reply {
    let mut reply = Response::new(stream.boxed_unsync());
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body).map_err(never).boxed_unsync());
    *reply.status_mut() = status;
    if !content_type.is_empty() {
        reply
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    reply
}

/// An error as vLLM's own handlers word it.
fn refused(status: StatusCode, message: &str) -> Reply {
    let kind = if status.is_client_error() {
        "BadRequestError"
    } else {
        "InternalServerError"
    };
    let error = json!({"error": {
        "message": message, "type": kind, "param": null, "code": status.as_u16(),
    }});
    whole(status, "application/json", error.to_string().into())
}

/// An error as the web framework under vLLM words it.
fn detail(status: StatusCode, text: &str) -> Reply {
    whole(
        status,
        "application/json",
        json!({"detail": text}).to_string().into(),
    )
}
