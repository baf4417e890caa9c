//! One request after another on connections that are kept.

use std::cell::{Cell, RefCell};
use std::io;

use gpu_state::boottime_ns;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use super::plan::{LoadConfig, Planned, Routes};
use crate::random::Random;
use crate::text::{count_tokens, prompt};

/// Connections to one server.
#[derive(Debug)]
pub(crate) struct Client {
    address: String,
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
    opened: Cell<u64>,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Flown {
    pub(crate) start_ns: u64,
    pub(crate) first_data_ns: Option<u64>,
    pub(crate) end_ns: u64,
    /// Server-sent events, without `[DONE]`.
    pub(crate) chunks: u64,
    /// Tokens of the answer: events that carry text, or what usage says.
    pub(crate) output_tokens: u64,
    pub(crate) ended: Ended,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Its answer was read to the end.
    Whole,
    /// The client left as planned.
    Left,
    /// It was refused, cut off or answered with nonsense.
    Failed(String),
}

impl Client {
    pub(crate) fn new(address: String) -> Self {
        Self {
            address,
            idle: RefCell::default(),
            opened: Cell::new(0),
        }
    }

    /// Connections opened so far.
    pub(crate) fn connections(&self) -> u64 {
        self.opened.get()
    }

    /// Opens a connection and keeps it for later.
    pub(crate) async fn connect(&self) -> io::Result<()> {
        let connection = self.open().await?;
        self.idle.borrow_mut().push(connection);
        Ok(())
    }

    async fn open(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Its errors also reach whoever waits for an answer on it.
        tokio::spawn(connection);
        self.opened.set(self.opened.get() + 1);
        Ok(sender)
    }

    /// An idle connection that is still good, or a new one.
    async fn take(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        loop {
            let kept = self.idle.borrow_mut().pop();
            match kept {
                Some(connection) if connection.is_ready() => return Ok(connection),
                Some(_) => {}
                None => return self.open().await,
            }
        }
    }

    pub(crate) async fn send(&self, planned: &Planned, config: &LoadConfig) -> Flown {
        let mut flown = Flown {
            start_ns: boottime_ns(),
            first_data_ns: None,
            end_ns: 0,
            chunks: 0,
            output_tokens: 0,
            ended: Ended::Left,
        };
        flown.ended = match self.exchange(planned, config, &mut flown).await {
            Ok(ended) => ended,
            Err(error) => Ended::Failed(error.to_string()),
        };
        flown.end_ns = boottime_ns();
        flown
    }

    async fn exchange(
        &self,
        planned: &Planned,
        config: &LoadConfig,
        flown: &mut Flown,
    ) -> anyhow::Result<Ended> {
        let request = request(&self.address, planned, config)?;
        let mut connection = self.take().await?;
        flown.start_ns = boottime_ns();
        let answer = connection.send_request(request).await?;
        let status = answer.status();
        if !status.is_success() {
            anyhow::bail!("status {status}");
        }
        let ended = if planned.stream {
            read_stream(answer.into_body(), planned, flown).await?
        } else {
            read_whole(answer.into_body(), flown).await?
        };
        // A connection that was left in the middle is closed by dropping it.
        if matches!(ended, Ended::Whole) {
            if flown.output_tokens != planned.output_tokens {
                let Flown { output_tokens, .. } = flown;
                anyhow::bail!("{output_tokens} tokens of {}", planned.output_tokens);
            }
            connection.ready().await?;
            self.idle.borrow_mut().push(connection);
        }
        Ok(ended)
    }
}

fn request(
    address: &str,
    planned: &Planned,
    config: &LoadConfig,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let text = prompt(&mut Random::new(planned.text_seed), planned.prompt_tokens);
    let mut body = json!({
        "model": config.model,
        "max_tokens": planned.output_tokens,
        "ignore_eos": true,
        "temperature": 0,
        "stream": planned.stream,
    });
    let path = match planned.route {
        Routes::Chat => {
            body["messages"] = json!([{"role": "user", "content": text}]);
            "/v1/chat/completions"
        }
        Routes::Completions => {
            body["prompt"] = json!(text);
            "/v1/completions"
        }
    };
    if planned.stream && config.include_usage {
        body["stream_options"] = json!({"include_usage": true});
    }
    Ok(Request::post(path)
        .header("host", address)
        .header("content-type", "application/json")
        .header("user-agent", "inference-sim-load")
        .header("x-request-id", planned.x_request_id(config.seed))
        .body(Full::new(Bytes::from(serde_json::to_vec(&body)?)))?)
}

async fn read_whole(mut body: Incoming, flown: &mut Flown) -> anyhow::Result<Ended> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            flown.first_data_ns.get_or_insert_with(boottime_ns);
            bytes.extend_from_slice(&data);
        }
    }
    let answer: serde_json::Value = serde_json::from_slice(&bytes)?;
    let tokens = answer
        .pointer("/usage/completion_tokens")
        .and_then(|tokens| tokens.as_u64());
    flown.output_tokens = tokens.ok_or_else(|| anyhow::anyhow!("no usage"))?;
    Ok(Ended::Whole)
}

async fn read_stream(
    mut body: Incoming,
    planned: &Planned,
    flown: &mut Flown,
) -> anyhow::Result<Ended> {
    let mut lines = Lines::default();
    let mut done = false;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        lines.push(&data);
        while let Some(line) = lines.next() {
            let Some(event) = line.strip_prefix(b"data: ") else {
                continue;
            };
            flown.first_data_ns.get_or_insert_with(boottime_ns);
            if event == b"[DONE]" {
                done = true;
                continue;
            }
            flown.chunks += 1;
            flown.output_tokens += text_tokens(event);
            if planned.leave_after.is_some_and(|most| flown.chunks >= most) {
                return Ok(Ended::Left);
            }
        }
    }
    if done {
        Ok(Ended::Whole)
    } else {
        anyhow::bail!("a stream without its end")
    }
}

/// Tokens of an event; that of a role and that of the usage carry none.
fn text_tokens(event: &[u8]) -> u64 {
    let behind = |pattern: &[u8]| {
        let place = event
            .windows(pattern.len())
            .position(|window| window == pattern)?;
        event.get(place + pattern.len()..)
    };
    let text = behind(br#""delta":{"content":""#).or_else(|| behind(br#""text":""#));
    let Some(rest) = text else {
        return 0;
    };
    // The answers' words need no escape: the text ends at the first quotation mark.
    let end = rest.iter().position(|byte| *byte == b'"');
    let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    count_tokens(&String::from_utf8_lossy(text))
}

/// Lines of a stream that comes in pieces.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    read: usize,
}

impl Lines {
    fn push(&mut self, data: &[u8]) {
        self.bytes.drain(..self.read);
        self.read = 0;
        self.bytes.extend_from_slice(data);
    }

    fn next(&mut self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.read..)?;
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        self.read += length + 1;
        rest.get(..length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_an_event_are_its_words() {
        let count = |event: &str| text_tokens(event.as_bytes());
        assert_eq!(
            count(r#"{"choices":[{"index":0,"delta":{"content":" a of it"},"x":null}]}"#),
            3
        );
        assert_eq!(
            count(r#"{"choices":[{"index":0,"text":" one","x":null}]}"#),
            1
        );
        assert_eq!(
            count(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#),
            0
        );
        assert_eq!(count(r#"{"choices":[],"usage":{"prompt_tokens":3}}"#), 0);
    }

    #[test]
    fn lines_are_whole_however_the_stream_is_cut() {
        let stream = b"data: one\n\ndata: two\n\n";
        for cut in 0..stream.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                lines.push(piece);
                while let Some(line) = lines.next() {
                    seen.push(line.to_vec());
                }
            }
            assert_eq!(
                seen,
                [&b"data: one"[..], b"", b"data: two", b""],
                "cut at {cut}"
            );
        }
    }
}
