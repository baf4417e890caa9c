//! The tables of a recording, and how values stand in them.
//!
//! Times are nanoseconds, energies are microjoules, both integers; what is not known is NULL.
//!
//! Requests are what a file has most of. A row holds what is its own, in numbers that are small, since
//! SQLite's integers are as long as their values; what many have in common is a kind. The view `requests` puts it
//! together again: in SQL of any SQLite, which in many builds has no square root. Rows lie in the
//! order in which they were booked: by the requests' numbers, which are those of slots in the kernel, each
//! would go to another page.

use serde::Deserialize;
use serde::de::value::{Error as NameError, StrDeserializer};

use crate::clock::Timestamp;

/// `pjou`: what `file` and SQLite call the kind of a file.
pub(super) const APPLICATION_ID: i32 = 0x706A_6F75;

/// The layout of the tables; a reader refuses a higher one.
pub(super) const SCHEMA: i32 = 1;

/// All tables.
pub(super) const TABLES: &str = "
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE meters (
    meter INTEGER PRIMARY KEY,
    component TEXT NOT NULL,
    device TEXT NOT NULL,
    source TEXT NOT NULL,
    limit_watts REAL,
    tick_ns INTEGER NOT NULL,
    stale_after_ns INTEGER NOT NULL,
    gain_error_ratio REAL NOT NULL,
    idle_watts REAL
);
CREATE TABLE floors (
    meter INTEGER PRIMARY KEY REFERENCES meters,
    watts REAL,
    source TEXT NOT NULL
);
CREATE TABLE services (
    service INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    model TEXT
);
CREATE TABLE request_kinds (
    kind INTEGER PRIMARY KEY,
    service INTEGER NOT NULL REFERENCES services,
    route TEXT NOT NULL,
    status INTEGER,
    outcome TEXT,
    streamed INTEGER NOT NULL,
    tokens_source TEXT,
    tokens_calibrated INTEGER,
    class TEXT NOT NULL
);
CREATE TABLE request_rows (
    booking INTEGER PRIMARY KEY,
    request INTEGER NOT NULL,
    id TEXT,
    kind INTEGER NOT NULL REFERENCES request_kinds,
    start_ns INTEGER NOT NULL,
    to_first_token_ns INTEGER,
    to_end_ns INTEGER,
    last_data_to_end_ns INTEGER,
    chunks INTEGER,
    prompt_bytes INTEGER,
    prompt_tokens INTEGER,
    tokens_in INTEGER,
    tokens_out INTEGER,
    gpu_uj INTEGER,
    cpu_uj INTEGER,
    dram_uj INTEGER,
    error_millionths INTEGER,
    own_error_millionths INTEGER,
    common_error_millionths INTEGER,
    prefill_uj INTEGER,
    wait_uj INTEGER,
    rest_uj INTEGER
);
CREATE VIEW requests AS SELECT
    request, id, service, route, status, outcome, start_ns,
    start_ns + to_first_token_ns AS first_token_ns,
    start_ns + coalesce(to_end_ns, 0) - last_data_to_end_ns AS last_data_ns,
    start_ns + to_end_ns AS end_ns,
    streamed, chunks, prompt_bytes, prompt_tokens, tokens_in, tokens_out,
    tokens_source, tokens_calibrated, gpu_uj, cpu_uj, dram_uj, class,
    error_millionths / 1e6 AS error_ratio,
    own_error_millionths / 1e6 AS own_error_ratio,
    common_error_millionths / 1e6 AS common_error_ratio,
    prefill_uj,
    coalesce(gpu_uj, 0) - prefill_uj - wait_uj - rest_uj AS decode_uj,
    wait_uj, kind, booking
FROM request_rows LEFT JOIN request_kinds USING (kind);
CREATE TABLE intervals (
    interval INTEGER PRIMARY KEY,
    meter INTEGER NOT NULL REFERENCES meters,
    from_ns INTEGER NOT NULL,
    to_ns INTEGER NOT NULL,
    energy_uj INTEGER NOT NULL,
    idle_uj INTEGER NOT NULL,
    context_uj INTEGER NOT NULL,
    requests_uj INTEGER NOT NULL,
    overhead_uj INTEGER NOT NULL,
    other_uj INTEGER NOT NULL,
    agent_uj INTEGER NOT NULL,
    unattributed_uj INTEGER NOT NULL,
    gap_uj INTEGER NOT NULL,
    holders INTEGER
);
CREATE TABLE interval_services (
    interval INTEGER NOT NULL REFERENCES intervals,
    service INTEGER NOT NULL REFERENCES services,
    requests_uj INTEGER NOT NULL,
    overhead_uj INTEGER NOT NULL,
    prefill_uj INTEGER,
    decode_uj INTEGER,
    wait_uj INTEGER,
    PRIMARY KEY (interval, service)
) WITHOUT ROWID;
CREATE TABLE engines (
    service INTEGER NOT NULL REFERENCES services,
    at_ns INTEGER NOT NULL,
    engine TEXT NOT NULL,
    version TEXT,
    model TEXT
);
CREATE TABLE tokens (
    service INTEGER NOT NULL REFERENCES services,
    from_ns INTEGER NOT NULL,
    to_ns INTEGER NOT NULL,
    input INTEGER,
    output INTEGER
);
CREATE TABLE holes (
    meter INTEGER NOT NULL REFERENCES meters,
    from_ns INTEGER NOT NULL,
    to_ns INTEGER NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE traces (
    request INTEGER PRIMARY KEY,
    trace TEXT NOT NULL
);
CREATE TABLE stacks (
    stack INTEGER PRIMARY KEY,
    frames TEXT NOT NULL
);
CREATE TABLE samples (
    service INTEGER NOT NULL REFERENCES services,
    at_ns INTEGER NOT NULL,
    package INTEGER,
    stack INTEGER NOT NULL REFERENCES stacks
);
CREATE TABLE off_cpu (
    service INTEGER NOT NULL REFERENCES services,
    at_ns INTEGER NOT NULL,
    waited_ns INTEGER NOT NULL,
    reason TEXT NOT NULL,
    stack INTEGER NOT NULL REFERENCES stacks
);
CREATE TABLE host (
    service INTEGER NOT NULL REFERENCES services,
    from_ns INTEGER NOT NULL,
    to_ns INTEGER NOT NULL,
    on_cpu_ns INTEGER,
    run_queue_ns INTEGER,
    preempted_ns INTEGER,
    sleep_ns INTEGER,
    disk_ns INTEGER,
    futex_ns INTEGER,
    poll_ns INTEGER,
    socket_ns INTEGER,
    other_ns INTEGER,
    voluntary INTEGER,
    involuntary INTEGER
);
CREATE TABLE starved (
    service INTEGER NOT NULL REFERENCES services,
    at_ns INTEGER NOT NULL,
    reason TEXT NOT NULL,
    starved_ns INTEGER NOT NULL
);
CREATE TABLE throttled (
    meter INTEGER NOT NULL REFERENCES meters,
    at_ns INTEGER NOT NULL,
    reason TEXT NOT NULL,
    throttled_ns INTEGER NOT NULL
);
CREATE INDEX samples_at ON samples (service, at_ns);
";

/// A counter in a column: SQLite's integers have a sign. 2⁶³ ns are 292 years, 2⁶³ µJ 9 TJ.
pub(super) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Nanoseconds from `from` to `to`; less than 0 where that was before.
pub(super) fn between(from: Timestamp, to: Timestamp) -> i64 {
    integer(to.0) - integer(from.0)
}

/// A ratio as it stands in a column; a bound that is no number is not known.
pub(super) fn millionths(ratio: f64) -> Option<i64> {
    ratio.is_finite().then(|| (ratio * 1e6).round() as i64)
}

/// A counter out of a column.
pub(super) fn counter(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The value of this name, as in metric labels.
pub(super) fn named<'a, T: Deserialize<'a>>(name: &'a str) -> Option<T> {
    T::deserialize(StrDeserializer::<NameError>::new(name)).ok()
}
