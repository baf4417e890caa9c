//! Rows that a recording has by the million, taken by their columns' places: to look for each column's
//! name in each row would cost more than all the rest.

use rusqlite::Row;
use rusqlite::types::{FromSql, Type};
use serde::Deserialize;

use super::RecordedRequest;
use super::schema::{counter, named};
use crate::clock::Timestamp;
use crate::ids::Ids;
use crate::ledger::{
    Accounts, BookedInterval, BookedRequest, Class, End, ErrorRatios, GpuPhases, Input, MeterId,
    Outcome, Request, RequestId, Route, ServiceId, ServiceShare, TokenCount, TokenSource,
};
use crate::units::Microjoules;

/// What a request has in common with many others, as [`kind`] takes it.
pub(super) const KIND: &str =
    "service, route, status, outcome, streamed, tokens_source, tokens_calibrated, class";

/// What is a request's own, as [`request`] takes it; [`PHASES`] follow.
pub(super) const OWN: &str = "request, id, start_ns, first_token_ns, last_data_ns, end_ns, chunks, prompt_bytes,
    prompt_tokens, tokens_in, tokens_out, gpu_uj, cpu_uj, dram_uj, own_error_ratio, common_error_ratio";

/// Of a request, or of a service's part of an interval; earlier versions did not write them.
pub(super) const PHASES: &str = "prefill_uj, decode_uj, wait_uj";

/// Those of an interval, for [`interval`].
pub(super) const INTERVAL: &str =
    "meter, from_ns, to_ns, energy_uj, idle_uj, context_uj, requests_uj,
    overhead_uj, other_uj, agent_uj, unattributed_uj, gap_uj, holders";

/// Those of a service's part of it, for [`share`]; the phases' follow.
pub(super) const SHARE: &str = "service, requests_uj, overhead_uj";

/// A row's columns, one after the other.
pub(super) struct Columns<'a, 'row> {
    row: &'a Row<'row>,
    place: usize,
}

impl<'a, 'row> Columns<'a, 'row> {
    pub(super) const fn of(row: &'a Row<'row>) -> Self {
        Self { row, place: 0 }
    }

    pub(super) fn take<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        let place = self.place;
        self.place += 1;
        self.row.get(place)
    }

    fn known(&mut self) -> rusqlite::Result<Option<u64>> {
        Ok(self.take::<Option<i64>>()?.map(counter))
    }

    fn time(&mut self) -> rusqlite::Result<Timestamp> {
        Ok(Timestamp(counter(self.take()?)))
    }

    fn known_time(&mut self) -> rusqlite::Result<Option<Timestamp>> {
        Ok(self.known()?.map(Timestamp))
    }

    fn energy(&mut self) -> rusqlite::Result<Microjoules> {
        Ok(Microjoules(counter(self.take()?)))
    }

    fn known_energy(&mut self) -> rusqlite::Result<Option<Microjoules>> {
        Ok(self.known()?.map(Microjoules))
    }

    /// A value that stands there by its name; `None` if there is none, or another perjoule's.
    fn known_name<T: for<'de> Deserialize<'de>>(&mut self) -> rusqlite::Result<Option<T>> {
        let place = self.place;
        self.place += 1;
        Ok(self.row.get_ref(place)?.as_str_or_null()?.and_then(named))
    }

    /// The kind of this number.
    pub(super) fn among(&mut self, kinds: &Ids<u32, Kind>) -> rusqlite::Result<Kind> {
        let place = self.place;
        let number = self.take()?;
        kinds.get(&number).copied().ok_or_else(|| {
            let unknown = format!("the kind {number} is not in request_kinds");
            rusqlite::Error::FromSqlConversionFailure(place, Type::Integer, unknown.into())
        })
    }

    fn name<T: for<'de> Deserialize<'de>>(&mut self, column: &str) -> rusqlite::Result<T> {
        let place = self.place;
        self.known_name()?.ok_or_else(|| {
            let unknown = format!("{column} is not known");
            rusqlite::Error::FromSqlConversionFailure(place, Type::Text, unknown.into())
        })
    }
}

pub(super) fn interval(columns: &mut Columns<'_, '_>) -> rusqlite::Result<BookedInterval> {
    Ok(BookedInterval {
        meter: MeterId(columns.take()?),
        from: columns.time()?,
        to: columns.time()?,
        energy: columns.energy()?,
        accounts: Accounts {
            idle: columns.energy()?,
            context: columns.energy()?,
            requests: columns.energy()?,
            overhead: columns.energy()?,
            other: columns.energy()?,
            agent: columns.energy()?,
            unattributed: columns.energy()?,
            gap: columns.energy()?,
        },
        services: Vec::new(),
        holders: columns.take()?,
    })
}

fn phases(columns: &mut Columns<'_, '_>) -> rusqlite::Result<Option<GpuPhases>> {
    let parts = (
        columns.known_energy()?,
        columns.known_energy()?,
        columns.known_energy()?,
    );
    Ok(match parts {
        (Some(prefill), Some(decode), Some(wait)) => Some(GpuPhases {
            prefill,
            decode,
            wait,
        }),
        _ => None,
    })
}

pub(super) fn share(columns: &mut Columns<'_, '_>) -> rusqlite::Result<ServiceShare> {
    Ok(ServiceShare {
        service: ServiceId(columns.take()?),
        requests: columns.energy()?,
        overhead: columns.energy()?,
        phases: phases(columns)?,
    })
}

/// What many requests have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) service: ServiceId,
    pub(super) route: Route,
    /// 0 where it is not known.
    pub(super) status: u16,
    pub(super) outcome: Option<Outcome>,
    pub(super) streamed: bool,
    /// How its tokens were counted, and whether that is calibrated.
    pub(super) tokens: Option<(TokenSource, bool)>,
    pub(super) class: Class,
}

impl Kind {
    pub(super) fn of(booked: &BookedRequest) -> Self {
        let request = &booked.request;
        Self {
            service: request.service,
            route: request.route,
            status: request.status,
            outcome: request.end.map(|end| end.outcome),
            streamed: request.streamed,
            tokens: booked
                .tokens
                .map(|tokens| (tokens.source, tokens.calibrated)),
            class: booked.class,
        }
    }
}

pub(super) fn kind(columns: &mut Columns<'_, '_>) -> rusqlite::Result<Kind> {
    let service = ServiceId(columns.take()?);
    let route = columns.name("route")?;
    let status = columns.take::<Option<u16>>()?.unwrap_or(0);
    let outcome = columns.known_name()?;
    let streamed = columns.take()?;
    let source: Option<TokenSource> = columns.known_name()?;
    let calibrated = columns.take::<Option<bool>>()?.unwrap_or(false);
    Ok(Kind {
        service,
        route,
        status,
        outcome,
        streamed,
        tokens: source.map(|source| (source, calibrated)),
        class: columns.name("class")?,
    })
}

/// A request of this kind.
pub(super) fn request(
    columns: &mut Columns<'_, '_>,
    kind: &Kind,
) -> rusqlite::Result<RecordedRequest> {
    let id = RequestId(columns.take::<i64>()?.cast_unsigned());
    let name = columns.take()?;
    let start = columns.time()?;
    let (first_data, last_data) = (columns.known_time()?, columns.known_time()?);
    let end = columns.known_time()?.zip(kind.outcome);
    let chunks = columns.known()?;
    let bytes = columns.known()?.unwrap_or(0);
    let input = columns.known()?.map_or(Input::Bytes(bytes), Input::Tokens);
    let (tokens_in, tokens_out) = (columns.known()?, columns.known()?);
    let (gpu, cpu, dram) = (
        columns.known_energy()?,
        columns.known_energy()?,
        columns.known_energy()?,
    );
    let (own, common): (Option<f64>, Option<f64>) = (columns.take()?, columns.take()?);
    let phases = phases(columns)?;
    Ok(RecordedRequest {
        booked: BookedRequest {
            request: Request {
                id,
                service: kind.service,
                route: kind.route,
                start,
                first_data,
                last_data,
                input,
                chunks: chunks.unwrap_or(0),
                streamed: kind.streamed,
                status: kind.status,
                end: end.map(|(at, outcome)| End { at, outcome }),
            },
            gpu,
            phases,
            cpu,
            dram,
            class: kind.class,
            errors: own
                .zip(common)
                .map(|(own, common)| ErrorRatios { own, common }),
            tokens: kind.tokens.map(|(source, calibrated)| TokenCount {
                source,
                input: tokens_in,
                output: tokens_out,
                calibrated,
            }),
        },
        name,
        chunks_seen: chunks.is_some(),
    })
}
