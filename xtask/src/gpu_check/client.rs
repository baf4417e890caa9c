//! Clients of the load's server, and what they saw: the user-space log of requests.
//!
//! Each worker asks for one answer after another, so that as many requests are in flight as there
//! are workers. Out: a line a request as `perjoule replay` reads it, on the same clock as the
//! polled counter.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::trace::boottime_s;

/// A server that says nothing for so long has stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests that are alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) input: u64,
    pub(super) output: u64,
}

/// A request that was answered.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) start_s: f64,
    /// When each token came.
    pub(super) chunks_s: Vec<f64>,
    pub(super) end_s: f64,
}

impl Served {
    /// The line of the request log.
    fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "service": "load",
            "start_s": self.start_s,
            "first_token_s": self.chunks_s.first(),
            "end_s": self.end_s,
            "input_tokens": self.kind.input,
            "output_tokens": self.chunks_s.len(),
            "chunks_s": self.chunks_s,
        })
    }
}

/// The request log: one line a request, in the order of their starts.
pub(super) fn log(served: &[Served]) -> String {
    let mut sorted: Vec<&Served> = served.iter().collect();
    sorted.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
    sorted.iter().fold(String::new(), |log, served| {
        log + &served.to_json().to_string() + "\n"
    })
}

/// Workers that ask until they are told to stop.
#[derive(Debug)]
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    tokens: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Result<Vec<Served>>>>,
}

impl Clients {
    /// So many workers of each kind, at `address` (`host:port`). Their requests' ids begin with the
    /// phase and the kind.
    pub(super) fn start(address: &str, phase: &'static str, kinds: &[(Kind, usize)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tokens = Arc::new(AtomicU64::new(0));
        let mut workers = Vec::new();
        for (kind, count) in kinds {
            for worker in 0..*count {
                let (stop, tokens) = (Arc::clone(&stop), Arc::clone(&tokens));
                let (kind, address) = (*kind, address.to_owned());
                workers.push(spawn(move || {
                    let mut served = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let id = format!("{phase}/{}/{worker}/{}", kind.name, served.len());
                        served.push(ask(&address, kind, id, &tokens)?);
                    }
                    Ok(served)
                }));
            }
        }
        Self {
            stop,
            tokens,
            workers,
        }
    }

    /// Tokens that have come so far.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// No new requests from now on; those in flight are read to their end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// True if nothing is in flight any more, or if a worker has failed.
    pub(super) fn have_ended(&self) -> bool {
        let mut workers = self.workers.iter();
        if self.stop.load(Ordering::Relaxed) {
            workers.all(JoinHandle::is_finished)
        } else {
            workers.any(JoinHandle::is_finished)
        }
    }

    /// Stops, and returns all that was served.
    pub(super) fn finish(self) -> Result<Vec<Served>> {
        self.stop();
        let mut served = Vec::new();
        for worker in self.workers {
            let Ok(ended) = worker.join() else {
                bail!("a client has failed");
            };
            served.extend(ended?);
        }
        Ok(served)
    }
}

/// One request, read to its end.
pub(super) fn ask(address: &str, kind: Kind, id: String, tokens: &AtomicU64) -> Result<Served> {
    let Kind { input, output, .. } = kind;
    let prompt = "word ".repeat(usize::try_from(input)?);
    let body =
        json!({"prompt": prompt.trim_end(), "max_tokens": output, "stream": true}).to_string();
    let stream = TcpStream::connect(address).context("the load's server does not answer")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let start_s = boottime_s();
    (&stream).write_all(request.as_bytes())?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    if line.split_whitespace().nth(1) != Some("200") {
        bail!("the load's server answered `{}`", line.trim());
    }
    let mut chunks_s = Vec::with_capacity(usize::try_from(output)?);
    let mut done = false;
    loop {
        line.clear();
        // Sizes of HTTP chunks stand on lines of their own, between events.
        if lines.read_line(&mut line)? == 0 {
            break;
        }
        match line.trim_end().strip_prefix("data: ") {
            Some("[DONE]") => done = true,
            Some(_) => {
                chunks_s.push(boottime_s());
                tokens.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
    }
    let end_s = boottime_s();
    if !done || chunks_s.len() as u64 != output {
        bail!("request {id} got {} tokens of {output}", chunks_s.len());
    }
    Ok(Served {
        id,
        kind,
        start_s,
        chunks_s,
        end_s,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    const KIND: Kind = Kind {
        name: "short",
        input: 3,
        output: 2,
    };

    /// A server that reads one request and answers so.
    fn answering(answer: &'static str) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                seen.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(seen).unwrap()
        });
        (address, server)
    }

    #[test]
    fn tokens_are_counted_without_the_end_of_the_stream_and_the_chunks_sizes() {
        let (address, server) = answering(
            "HTTP/1.1 200 OK\r\n\r\n14\r\ndata: {\"text\":\"a\"}\n\n\r\n22\r\ndata: {\"text\":\"b\"}\n\n\
             data: [DONE]\n\n\r\n0\r\n\r\n",
        );
        let tokens = AtomicU64::new(0);
        let served = ask(&address, KIND, "short-0".into(), &tokens).unwrap();
        assert_eq!((served.chunks_s.len(), tokens.into_inner()), (2, 2));
        assert!(served.start_s <= served.chunks_s[0] && served.chunks_s[1] <= served.end_s);
        assert!(server.join().unwrap().contains("\"word word word\""));
    }

    #[test]
    fn an_answer_that_is_cut_off_or_refused_is_an_error() {
        for answer in [
            "HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n",
            "HTTP/1.1 200 OK\r\n\r\ndata: {}\n\ndata: [DONE]\n\n",
            "HTTP/1.1 400 Bad Request\r\n\r\n",
        ] {
            let (address, _server) = answering(answer);
            assert!(
                ask(&address, KIND, "short-0".into(), &AtomicU64::new(0)).is_err(),
                "{answer}"
            );
        }
    }

    #[test]
    fn the_log_is_in_the_order_of_starts_and_has_replays_keys() {
        let served = |start_s| Served {
            id: format!("short-{start_s}"),
            kind: KIND,
            start_s,
            chunks_s: vec![start_s + 0.5, start_s + 0.75],
            end_s: start_s + 1.0,
        };
        let log = log(&[served(7.0), served(3.0)]);
        let lines: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["start_s"], 3.0);
        assert_eq!(lines[1]["first_token_s"], 7.5);
        assert_eq!(lines[1]["output_tokens"], 2);
        assert_eq!(lines[1]["input_tokens"], 3);
    }
}
