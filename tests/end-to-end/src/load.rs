//! A load of HTTP requests that is the same every time, and knows what it sent.
//!
//! In: how many connections, how many requests on each, what may be asked. Out: one [`Answer`] a
//! request. A request's number `n` is in its query, so that a server can log it; its length in
//! bytes (HTTP/1.1) or its trace (HTTP/2) is its own too, so that whoever sees only these can be
//! asked which request it was.

pub mod http1;
pub mod http2;

use std::future::Future;
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// What a load asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its method.
    pub method: &'static str,
    /// Its path.
    pub path: &'static str,
    /// How many events its response is to have, at least and less than; none for a plain one.
    pub events: (u64, u64),
    /// Milliseconds the server is to wait before each event, or before a plain response.
    pub pause: u64,
    /// Bytes of its body, if it has one; a few are added.
    pub body: Option<usize>,
    /// The client leaves after the first data.
    pub cut: bool,
}

impl Kind {
    /// A request without a body.
    pub const fn get(path: &'static str) -> Self {
        Self {
            method: "GET",
            path,
            events: (0, 1),
            pause: 0,
            body: None,
            cut: false,
        }
    }

    /// One with a body of at least `length` bytes.
    pub const fn post(path: &'static str, length: usize) -> Self {
        Self {
            method: "POST",
            body: Some(length),
            ..Self::get(path)
        }
    }

    /// The same, answered after `pause` milliseconds.
    #[must_use]
    pub const fn after(self, pause: u64) -> Self {
        Self { pause, ..self }
    }
}

/// Requests of an inference server: half of them stream, a tenth of those are left.
pub const INFERENCE: &[(u64, Kind)] = &[
    (90, STREAM),
    (
        10,
        Kind {
            events: (24, 32),
            cut: true,
            ..STREAM
        },
    ),
    (40, Kind::post("/v1/completions", 60).after(10)),
    (12, Kind::post("/v1/embeddings", 60)),
    (10, Kind::post("/upload", 200_000)),
    (8, Kind::get("/v1/models")),
    (
        8,
        Kind {
            method: "HEAD",
            ..Kind::get("/v1/models")
        },
    ),
    (6, Kind::get("/health")),
    (6, Kind::get("/none")),
    (6, Kind::get("/fail")),
    (4, Kind::get("/absent")),
];

const STREAM: Kind = Kind {
    events: (1, 24),
    pause: 2,
    ..Kind::post("/v1/completions", 60)
};

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Its number.
    pub n: u64,
    /// What is asked.
    pub kind: Kind,
    /// Events its response is to have.
    pub events: u64,
    /// Bytes of the request on an HTTP/1.1 connection.
    pub length: usize,
}

impl Ask {
    /// The path with its query.
    pub fn target(&self) -> String {
        let Self {
            n, kind, events, ..
        } = self;
        let mark = if kind.path.contains('?') { '&' } else { '?' };
        format!(
            "{}{mark}n={n}&events={events}&pause={}",
            kind.path, kind.pause
        )
    }
}

impl Ask {
    /// Its `traceparent` header: the number is the trace's.
    pub fn trace(&self) -> String {
        let n = self.n;
        format!("00-{TRACE_HIGH:016x}{n:016x}-00f067aa0ba902b7-01")
    }
}

/// The upper half of every trace's id: an id of zeros is none.
const TRACE_HIGH: u64 = 0x4bf9_2f35_77b3_4da6;

/// The number of the request of this trace.
pub fn number_of(trace: &str) -> Option<u64> {
    let (high, low) = trace.split_at_checked(16)?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    (number(high)? == TRACE_HIGH).then(|| number(low))?
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What was asked.
    pub ask: Ask,
    /// Status of the response.
    pub status: u16,
    /// Events that came, `[DONE]` not counted.
    pub events: u64,
}

/// How much of what.
#[derive(Debug, Clone)]
pub struct Load {
    /// Held at once.
    pub connections: u64,
    /// On each connection.
    pub requests: u64,
    /// Milliseconds between a response and the next request, and before the first.
    pub think: Range<u64>,
    /// What is asked for, with weights.
    pub mix: &'static [(u64, Kind)],
    /// The first request's number.
    pub first: u64,
}

/// A protocol: makes connections.
pub trait Client: Send + Sync + 'static {
    /// What it makes.
    type Connection: Connection;
    /// Connects.
    fn connect(&self) -> impl Future<Output = std::io::Result<Self::Connection>> + Send;
}

/// One connection, kept until it is closed by either side.
pub trait Connection: Send + 'static {
    /// Sends a request and reads its response. False in place of the connection's use hereafter:
    /// it is closed.
    fn exchange(
        &mut self,
        ask: &Ask,
    ) -> impl Future<Output = std::io::Result<(Answer, bool)>> + Send;
}

impl Load {
    /// The `index`th request; the same one for the same load.
    pub fn ask(&self, index: u64) -> Ask {
        let n = self.first + index;
        let mut random = Random(n);
        let total: u64 = self.mix.iter().map(|(weight, _)| weight).sum();
        let mut at = random.below(0..total);
        let chosen = self.mix.iter().find(|(weight, _)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let (_, kind) = chosen.expect("a mix of something");
        let length = 700 + kind.body.unwrap_or(0) / 1_000 * 1_000 + index as usize;
        Ask {
            n,
            kind: *kind,
            events: random.below(kind.events.0..kind.events.1),
            length,
        }
    }

    /// Sends all of it and waits for the responses.
    ///
    /// # Panics
    /// If the server does not answer.
    pub fn run<C: Client>(&self, client: C) -> Vec<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let client = Arc::new(client);
        runtime.block_on(async {
            let (sender, mut answers) = mpsc::unbounded_channel();
            for connection in 0..self.connections {
                let (load, client, sender) = (self.clone(), client.clone(), sender.clone());
                tokio::spawn(async move { load.follow(connection, &*client, &sender).await });
            }
            drop(sender);
            let mut all = Vec::new();
            while let Some(answer) = answers.recv().await {
                all.push(answer.unwrap_or_else(|(ask, error)| {
                    panic!("{error}, after {} answers: {ask:?}", all.len())
                }));
            }
            all
        })
    }

    /// The requests of one connection, each with the milliseconds to wait before it.
    pub fn of(&self, connection: u64) -> impl Iterator<Item = (Ask, u64)> + '_ {
        let mut random = Random(!(self.first + connection));
        (0..self.requests).map(move |index| {
            let ask = self.ask(index * self.connections + connection);
            (ask, random.below(self.think.clone()))
        })
    }

    async fn follow<C: Client>(
        &self,
        number: u64,
        client: &C,
        answers: &mpsc::UnboundedSender<Result<Answer, (Ask, Error)>>,
    ) {
        let mut held = None;
        for (ask, think) in self.of(number) {
            let one = exchange(client, &mut held, &ask, think);
            let answer = one.await.map_err(|error| (ask, error));
            let ended = answer.is_err();
            if answers.send(answer).is_err() || ended {
                return;
            }
        }
    }
}

/// One request on the connection that is held, or on a new one.
async fn exchange<C: Client>(
    client: &C,
    held: &mut Option<C::Connection>,
    ask: &Ask,
    think: u64,
) -> Result<Answer, Error> {
    let mut connection = match held.take() {
        Some(connection) => connection,
        None => client.connect().await?,
    };
    sleep(Duration::from_millis(think)).await;
    let exchanged = timeout(PATIENCE, connection.exchange(ask)).await;
    let (answer, usable) = exchanged.map_err(|_| Error::from(ErrorKind::TimedOut))??;
    *held = usable.then_some(connection);
    Ok(answer)
}

const PATIENCE: Duration = Duration::from_secs(60);

/// SplitMix64: from a seed always the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start).max(1)
    }
}

/// Counts the events of a body that comes in pieces.
#[derive(Debug)]
pub struct Events {
    streams: bool,
    line: Vec<u8>,
    count: u64,
}

impl Events {
    /// Counts in the response to `ask`, if that is to be a stream.
    pub fn of(ask: &Ask) -> Self {
        Self {
            streams: ask.events > 0,
            line: Vec::new(),
            count: 0,
        }
    }

    /// More of the body.
    pub fn take(&mut self, data: &[u8]) {
        if !self.streams {
            return;
        }
        for byte in data {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            if self.line.starts_with(b"data:") && !self.line.ends_with(b"[DONE]") {
                self.count += 1;
            }
            self.line.clear();
        }
    }

    /// How many so far.
    pub const fn count(&self) -> u64 {
        self.count
    }
}
