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

/// Something the agent must be able to do for a case; while it is not, why not. With
/// `PERJOULE_TEST_ALL` in the environment it is taken to be.
struct Feature(Option<&'static str>);

/// HTTP/2 is seen.
const HTTP2: Feature = Feature(None);
/// Connections that several streams share are told exactly at every load.
const SHARED: Feature = Feature(Some(
    "at a thousand connections 2 streams in 2,000 lost chunks; at 1, 8 and 100 all are equal",
));
/// Each gRPC call is compared with its own line of the server's log.
const GRPC: Feature = Feature(Some(
    "calls are matched by their order, which does not tell answers without chunks apart; their numbers are equal",
));
/// TLS is read at every load of this suite.
const TLS: Feature = Feature(Some(
    "a thousand connections take the TLS probes above 1 % of a core, where their guard takes them off",
));
/// A proxy and a server beside it, neither below the other, are told apart as outer and inner.
const SIBLINGS: Feature = Feature(None);
/// A client that leaves is noticed also where the server closes without a read: nginx learns of it
/// from epoll alone.
const UNREAD_CLOSE: Feature = Feature(None);

impl Feature {
    /// False, said, where the case cannot run yet.
    fn is_ready(&self, case: &str) -> bool {
        match self.0 {
            Some(why) if std::env::var_os("PERJOULE_TEST_ALL").is_none() => {
                end_to_end::skipped(&format!("{case}: {why}"));
                false
            }
            _ => true,
        }
    }

    /// How the journal says that a client has left.
    fn aborted(&self, case: &str) -> &'static str {
        if self.is_ready(&format!("{case}, aborted requests")) {
            ABORTED
        } else {
            "incomplete"
        }
    }
}
