//! Answers: a stream of server-sent events or one JSON object, as vLLM writes them.

use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};
use serde_json::json;

use super::api::{Kind, Wish};
use super::engine_link::{Ticket, Tokens};
use crate::text::answer_text;

/// What all parts of one answer have in common.
#[derive(Debug)]
pub(crate) struct Answer {
    wish: Wish,
    /// The answer's id.
    pub(crate) id: String,
    /// Seconds since 1970.
    created: u64,
    /// The model's name, as a JSON string.
    model: String,
}

/// A stream of events, one a step or more seldom: each poll takes all tokens that have come. When hyper drops it early, the
/// ticket tells the engine.
#[derive(Debug)]
pub(crate) struct EventStream {
    answer: Answer,
    ticket: Ticket,
    /// Tokens in an event, after the first one.
    tokens_a_chunk: u64,
    sent: u64,
    /// Tokens that have come and wait for others.
    unsent: u64,
    finished: bool,
}

/// The engine left in the middle of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the engine has gone")]
pub(crate) struct EngineGone;

impl Answer {
    pub(crate) fn new(wish: Wish, id: String, created: u64, model: &str) -> Self {
        Self {
            wish,
            id,
            created,
            model: json!(model).to_string(),
        }
    }

    /// An answer in one piece; waits for its last token.
    pub(crate) async fn whole(self, mut ticket: Ticket) -> Result<Bytes, EngineGone> {
        let mut text = String::new();
        let mut count = 0;
        loop {
            let tokens = ticket.tokens.recv().await.ok_or(EngineGone)?;
            text.push_str(&answer_text(ticket.id, count..count + tokens.count));
            count += tokens.count;
            if tokens.last {
                break;
            }
        }
        let finish_reason = self.wish.finish_reason();
        let (object, choice) = match self.wish.kind {
            Kind::Chat => (
                "chat.completion",
                json!({"index": 0, "message": {"role": "assistant", "content": text},
                       "logprobs": null, "finish_reason": finish_reason}),
            ),
            Kind::Completion => (
                "text_completion",
                json!({"index": 0, "text": text, "logprobs": null,
                       "finish_reason": finish_reason}),
            ),
        };
        let choices = json!([choice]);
        let usage = self.usage(count);
        let Self {
            id, created, model, ..
        } = &self;
        Ok(Bytes::from(format!(
            r#"{{"id":"{id}","object":"{object}","created":{created},"model":{model},"choices":{choices},"usage":{usage}}}"#
        )))
    }

    fn usage(&self, output_tokens: u64) -> serde_json::Value {
        let prompt_tokens = self.wish.prompt_tokens;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
        })
    }

    /// The beginning of every event, up to its choices.
    fn open_event(&self, events: &mut String) {
        let Self {
            id, created, model, ..
        } = self;
        let object = match self.wish.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        // Writing to a string cannot fail.
        let _ = write!(
            events,
            r#"data: {{"id":"{id}","object":"{object}","created":{created},"model":{model},"choices":"#
        );
    }

    /// vLLM opens a chat when its first token has come, not before.
    fn role_event(&self, events: &mut String) {
        self.open_event(events);
        events.push_str(concat!(
            r#"[{"index":0,"delta":{"role":"assistant","content":""},"#,
            r#""logprobs":null,"finish_reason":null}]}"#,
            "\n\n"
        ));
    }

    fn text_event(&self, events: &mut String, text: &str, last: bool) {
        self.open_event(events);
        let reason = if last {
            format!("\"{}\"", self.wish.finish_reason())
        } else {
            "null".into()
        };
        let _ = match self.wish.kind {
            Kind::Chat => write!(
                events,
                r#"[{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":{reason}}}]}}"#
            ),
            Kind::Completion => write!(
                events,
                r#"[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{reason}}}]}}"#
            ),
        };
        events.push_str("\n\n");
    }

    fn closing_events(&self, events: &mut String, output_tokens: u64) {
        if self.wish.include_usage {
            self.open_event(events);
            let _ = write!(events, "[],\"usage\":{}}}\n\n", self.usage(output_tokens));
        }
        events.push_str("data: [DONE]\n\n");
    }
}

impl EventStream {
    pub(crate) fn new(answer: Answer, ticket: Ticket, tokens_a_chunk: u64) -> Self {
        Self {
            answer,
            ticket,
            tokens_a_chunk,
            sent: 0,
            unsent: 0,
            finished: false,
        }
    }

    fn take(&mut self, events: &mut String, tokens: Tokens) {
        let Tokens { count, last } = tokens;
        self.unsent += count;
        let is_first = self.sent == 0;
        if !(is_first || last || self.unsent >= self.tokens_a_chunk) {
            return;
        }
        if is_first && self.answer.wish.kind == Kind::Chat {
            self.answer.role_event(events);
        }
        let text = answer_text(self.ticket.id, self.sent..self.sent + self.unsent);
        self.answer.text_event(events, &text, last);
        self.sent += std::mem::take(&mut self.unsent);
        if last {
            self.answer.closing_events(events, self.sent);
            self.finished = true;
        }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut events = String::new();
        while !self.finished {
            match self.ticket.tokens.poll_recv(context) {
                Poll::Ready(Some(tokens)) => self.take(&mut events, tokens),
                Poll::Ready(None) => return Poll::Ready(Some(Err(io::Error::other(EngineGone)))),
                Poll::Pending if events.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if events.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(events)))))
    }

    fn is_end_stream(&self) -> bool {
        false
    }
}

/// A body that is there already cannot fail.
pub(crate) fn never(never: Infallible) -> io::Error {
    match never {}
}
