//! Real servers from packages: what perjoule saw of each request, beside the server's own log.
//!
//! Equal for every request at any load: that there was one, its status code, its chunks, and
//! whether the client left before the end. At loads that leave the CPU idle, time to first token
//! and duration agree too: within 1 ms at the median, 5 ms at the 99th percentile.

mod axum;
mod compare;
mod grpc;
mod idle;
mod nginx;
mod node;
mod prometheus;
mod python;
mod run;
mod start;
mod truth;

use run::ABORTED;

/// What the agent must be able to do for a case.
enum Feature {
    /// It is.
    #[expect(dead_code, reason = "no gated feature is ready yet")]
    Ready,
    /// It is not, and why the case is skipped.
    Absent(&'static str),
}

/// HTTP/2 and gRPC are seen.
const HTTP2: Feature = Feature::Absent("HTTP/2 is not seen yet");
/// `--tls` is there.
const TLS: Feature = Feature::Absent("there is no --tls yet");
/// A proxy and a server beside it, neither below the other, are told apart as outer and inner.
const SIBLINGS: Feature = Feature::Absent("the inner of two siblings is not known yet");

/// A client that leaves is noticed also where the server closes without a read: nginx learns of it
/// from epoll alone.
const UNREAD_CLOSE: Feature =
    Feature::Absent("a close that the server does not read ends a request as incomplete");

impl Feature {
    /// How the journal says that a client has left.
    fn aborted(&self, case: &str) -> &'static str {
        match self {
            Self::Absent(why) => {
                end_to_end::skipped(&format!("{case}, aborted requests: {why}"));
                "incomplete"
            }
            _ => ABORTED,
        }
    }

    /// False, said, where the case cannot run yet. `PERJOULE_TEST_ALL` runs it all the same.
    fn is_ready(&self, case: &str) -> bool {
        match self {
            Self::Absent(why) if std::env::var_os("PERJOULE_TEST_ALL").is_none() => {
                end_to_end::skipped(&format!("{case}: {why}"));
                false
            }
            _ => true,
        }
    }
}
