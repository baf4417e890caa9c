//! One tick's values, frozen: what every scrape reads until the next tick.

use std::fmt;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock, PoisonError, RwLock};

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;
use log::error;
use prometheus::TextEncoder;

use super::families::{Shown, families};
use super::negotiation::{Encoding, Format};
use super::openmetrics;
use super::process::ProcessUse;
use super::saved::Saved;
use super::totals::Totals;
use crate::clock::Timestamp;

/// Is given a snapshot's sums before they are shown for the first time.
pub type BeforeShown = Box<dyn Fn(Saved) + Send + Sync>;

/// All series as they stood at one moment. Each body is made once, when first asked for.
pub struct Snapshot {
    totals: Totals,
    process: ProcessUse,
    at: Timestamp,
    ready: bool,
    before_shown: Option<BeforeShown>,
    kept: Once,
    text: Body,
    openmetrics: Body,
}

/// One format's body, as it is and compressed.
#[derive(Default)]
struct Body {
    plain: OnceLock<Bytes>,
    gzip: OnceLock<Bytes>,
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
            kept: Once::new(),
            text: Body::default(),
            openmetrics: Body::default(),
        }
    }

    /// True once an interval has been booked: before that there is no energy to show.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// What a scrape gets. Ten thousand series take milliseconds the first time.
    pub fn body(&self, format: Format, encoding: Encoding) -> Bytes {
        let body = match format {
            Format::Text => &self.text,
            Format::OpenMetrics => &self.openmetrics,
        };
        let plain = body.plain.get_or_init(|| self.encode(format));
        match encoding {
            Encoding::Identity => plain.clone(),
            Encoding::Gzip => body.gzip.get_or_init(|| compressed(plain)).clone(),
        }
    }

    fn encode(&self, format: Format) -> Bytes {
        if let Some(keep) = &self.before_shown {
            self.kept.call_once(|| keep(Saved::of(&self.totals)));
        }
        let shown = families(&self.totals, &self.process, self.at);
        match format {
            Format::Text => text(&shown),
            Format::OpenMetrics => openmetrics::encode(&shown).into(),
        }
    }
}

fn text(shown: &Shown) -> Bytes {
    match TextEncoder::new().encode_to_string(&shown.families) {
        Ok(text) => text.into(),
        // Only a family without name or series fails, and there is none.
        Err(error) => {
            error!("cannot encode the metrics: {error}");
            Bytes::new()
        }
    }
}

/// The fastest level: the next ones make it a sixth smaller for five times the time.
fn compressed(plain: &Bytes) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(plain).and_then(|()| encoder.finish());
    match written {
        Ok(bytes) => bytes.into(),
        // Memory takes all that is written to it.
        Err(error) => {
            error!("cannot compress the metrics: {error}");
            Bytes::new()
        }
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
    /// How often a snapshot was asked for by [`Self::scrape`].
    scrapes: AtomicU64,
}

impl Exposition {
    pub(super) fn set(&self, snapshot: Snapshot) {
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(snapshot));
    }

    /// The latest snapshot, for one that shows it to others; `None` before the first.
    pub fn scrape(&self) -> Option<Arc<Snapshot>> {
        let latest = self.latest();
        if latest.is_some() {
            self.scrapes.fetch_add(1, Ordering::Relaxed);
        }
        latest
    }

    pub(super) fn scrapes(&self) -> u64 {
        self.scrapes.load(Ordering::Relaxed)
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
