//! What a server says of the requests it has served.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::start::Server;

/// A request in the server's own log. Times are seconds of a clock of the server's.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Logged {
    /// The number the client gave it.
    pub(crate) n: u64,
    /// Status of the response.
    pub(crate) status: u16,
    /// The server had read it.
    pub(crate) read_s: f64,
    /// The first part of the body was sent; absent where the server does not say.
    pub(crate) first_s: Option<f64>,
    /// The response was sent, or the client was found to be gone.
    pub(crate) end_s: f64,
    /// Events sent.
    pub(crate) chunks: u64,
    /// Those of them that were sent when the client had just left: they may not have gone out.
    #[serde(default)]
    pub(crate) doubtful: u64,
    /// At most so many more were in a write that failed because the client had left.
    #[serde(default)]
    pub(crate) refused: u64,
    /// The client had gone before the end.
    pub(crate) aborted: bool,
}

impl Logged {
    /// Whether so many events may have been seen.
    pub(crate) fn may_have_sent(&self, chunks: u64) -> bool {
        let least = self.chunks.saturating_sub(self.doubtful);
        (least..=self.chunks + self.refused).contains(&chunks)
    }
}

/// Reads a log: one JSON object a line.
pub(crate) fn lines(text: &str) -> Vec<Logged> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Waits until the server has logged `count` requests in all, and takes the log.
pub(crate) fn wait(
    server: &Server,
    count: usize,
    read: impl Fn(&Server) -> Vec<Logged>,
) -> HashMap<u64, Logged> {
    let start = Instant::now();
    loop {
        let all = read(server);
        if all.len() >= count || start.elapsed() > Duration::from_secs(10) {
            let total = all.len();
            let by_number: HashMap<u64, Logged> = all.into_iter().map(|one| (one.n, one)).collect();
            assert_eq!(by_number.len(), total, "a request is logged twice");
            assert_eq!(
                total,
                count,
                "requests sent and logged: {}",
                server.read("out")
            );
            return by_number;
        }
        sleep(Duration::from_millis(20));
    }
}
