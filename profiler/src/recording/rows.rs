//! Rows that a recording has by the million, taken by their columns' places: to look for each column's
//! name in each row would cost more than all the rest.

use rusqlite::Row;
use rusqlite::types::{FromSql, Type};
use serde::Deserialize;

use super::RecordedRequest;
use super::schema::{counter, named};
use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, BookedInterval, BookedRequest, End, ErrorRatios, GpuPhases, Input, MeterId, Request,
    RequestId, ServiceId, ServiceShare, TokenCount,
};
use crate::units::Microjoules;

/// The columns of a request, in the order in which [`request`] takes them; [`PHASES`] follow.
pub(super) const REQUEST: &str = "request, id, service, route, status, outcome, start_ns, first_token_ns,
    last_data_ns, end_ns, streamed, chunks, prompt_bytes, prompt_tokens, tokens_in, tokens_out, tokens_source,
    tokens_calibrated, gpu_uj, cpu_uj, dram_uj, class, own_error_ratio, common_error_ratio";

/// Of a request, or of a service's part of an interval; earlier versions did not write them.
pub(super) const PHASES: &str = "prefill_uj, decode_uj, wait_uj";

/// Those of an interval, for [`interval`].
pub(super) const INTERVAL: &str =
    "i.meter, i.from_ns, i.to_ns, i.energy_uj, i.idle_uj, i.context_uj, i.requests_uj,
    i.overhead_uj, i.other_uj, i.agent_uj, i.unattributed_uj, i.gap_uj, i.holders";

/// Those of a service's part of it, for [`share`]; the phases' follow.
pub(super) const SHARE: &str = "s.service, s.requests_uj, s.overhead_uj";

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

/// `None` where no service has a part.
pub(super) fn share(columns: &mut Columns<'_, '_>) -> rusqlite::Result<Option<ServiceShare>> {
    let service: Option<u32> = columns.take()?;
    let (requests, overhead) = (columns.known_energy()?, columns.known_energy()?);
    let phases = phases(columns)?;
    Ok(service.map(|service| ServiceShare {
        service: ServiceId(service),
        requests: requests.unwrap_or_default(),
        overhead: overhead.unwrap_or_default(),
        phases,
    }))
}

pub(super) fn request(columns: &mut Columns<'_, '_>) -> rusqlite::Result<RecordedRequest> {
    let id = RequestId(columns.take::<i64>()?.cast_unsigned());
    let name = columns.take()?;
    let service = ServiceId(columns.take()?);
    let route = columns.name("route")?;
    let status = columns.take::<Option<u16>>()?.unwrap_or(0);
    let outcome = columns.known_name()?;
    let start = columns.time()?;
    let (first_data, last_data) = (columns.known_time()?, columns.known_time()?);
    let end = columns.known_time()?.zip(outcome);
    let streamed = columns.take()?;
    let chunks = columns.known()?;
    let bytes = columns.known()?.unwrap_or(0);
    let input = columns.known()?.map_or(Input::Bytes(bytes), Input::Tokens);
    let (tokens_in, tokens_out) = (columns.known()?, columns.known()?);
    let source = columns.known_name()?;
    let calibrated = columns.take::<Option<bool>>()?.unwrap_or(false);
    let (gpu, cpu, dram) = (
        columns.known_energy()?,
        columns.known_energy()?,
        columns.known_energy()?,
    );
    let class = columns.name("class")?;
    let (own, common): (Option<f64>, Option<f64>) = (columns.take()?, columns.take()?);
    let phases = phases(columns)?;
    Ok(RecordedRequest {
        booked: BookedRequest {
            request: Request {
                id,
                service,
                route,
                start,
                first_data,
                last_data,
                input,
                chunks: chunks.unwrap_or(0),
                streamed,
                status,
                end: end.map(|(at, outcome)| End { at, outcome }),
            },
            gpu,
            phases,
            cpu,
            dram,
            class,
            errors: own
                .zip(common)
                .map(|(own, common)| ErrorRatios { own, common }),
            tokens: source.map(|source| TokenCount {
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
