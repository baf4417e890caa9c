//! One tick's values, frozen: what every scrape reads until the next tick.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use hyper::body::Bytes;
use log::error;
use prometheus::TextEncoder;

use super::families::families;
use super::process::ProcessUse;
use super::saved::Saved;
use super::totals::Totals;
use crate::clock::Timestamp;

/// The text format's content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Is given a snapshot's sums before they are shown for the first time.
pub type BeforeShown = Box<dyn Fn(Saved) + Send + Sync>;

/// All series as they stood at one moment. The text is made once, when first asked for.
pub struct Snapshot {
    totals: Totals,
    process: ProcessUse,
    at: Timestamp,
    ready: bool,
    before_shown: Option<BeforeShown>,
    text: OnceLock<Bytes>,
}

impl Snapshot {
    pub(super) fn new(
        totals: Totals,
        process: ProcessUse,
        at: Timestamp,
        ready: bool,
        before_shown: Option<BeforeShown>,
    ) -> Self {
        Self {
            totals,
            process,
            at,
            ready,
            before_shown,
            text: OnceLock::new(),
        }
    }

    /// True once an interval has been booked: before that there is no energy to show.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// The exposition, text format 0.0.4. Ten thousand series take milliseconds the first time.
    pub fn text(&self) -> Bytes {
        self.text
            .get_or_init(|| {
                if let Some(keep) = &self.before_shown {
                    keep(Saved::of(&self.totals));
                }
                let families = families(&self.totals, &self.process, self.at);
                match TextEncoder::new().encode_to_string(&families) {
                    Ok(text) => text.into(),
                    // Only a family without name or series fails, and there is none.
                    Err(error) => {
                        error!("cannot encode the metrics: {error}");
                        Bytes::new()
                    }
                }
            })
            .clone()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("at", &self.at)
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

/// The place where the agent leaves snapshots and HTTP finds the latest.
#[derive(Debug, Default)]
pub struct Exposition {
    latest: RwLock<Option<Arc<Snapshot>>>,
}

impl Exposition {
    pub(super) fn set(&self, snapshot: Snapshot) {
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(snapshot));
    }

    /// The latest snapshot; `None` before the first.
    pub fn latest(&self) -> Option<Arc<Snapshot>> {
        self.latest
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// True once an interval has been booked.
    pub fn ready(&self) -> bool {
        self.latest().is_some_and(|snapshot| snapshot.ready())
    }
}
