//! Single rows and sums of a recording, by what somebody asks for.

use rusqlite::{OptionalExtension as _, params};

use super::{Recorded, count, time};
use crate::clock::Timestamp;
use crate::ledger::{RequestId, ServiceId};
use crate::recording::rows::{Columns, KIND, OWN, kind, request};
use crate::recording::{RecordedRequest, RecordingError};

/// Those that somebody may pay for.
const CHARGEABLE: &str = "route <> 'health' AND coalesce(status, 0) <> 101";

impl Recorded {
    /// When each service's first and last request began, health checks and sessions left out.
    ///
    /// # Errors
    /// If the file cannot be read, as with every method here.
    pub fn request_spans(
        &self,
        mut each: impl FnMut(ServiceId, Timestamp, Timestamp),
    ) -> Result<(), RecordingError> {
        let sql = format!(
            "SELECT service, min(start_ns) AS first_ns, max(start_ns) AS last_ns
            FROM requests WHERE {CHARGEABLE} GROUP BY service"
        );
        self.rows(&sql, |row| {
            let service = ServiceId(row.get("service")?);
            each(service, time(row, "first_ns")?, time(row, "last_ns")?);
            Ok(())
        })
    }

    /// The requests of this id, as `script` prints it: that of a replayed log, else their number. A log
    /// may have used one for several; a hundred of them at most.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn requests_of_id(&self, id: &str) -> Result<Vec<RecordedRequest>, RecordingError> {
        let number = id.parse().ok().map(u64::cast_signed);
        let sql = format!(
            "{} WHERE id = ?1 OR (id IS NULL AND request = ?2) ORDER BY request LIMIT 100",
            self.whole_requests()?
        );
        self.found(&sql, params![id, number])
    }

    /// The `most` requests with most energy, the costliest first; of these services, if any are named.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn costliest(
        &self,
        most: usize,
        services: &[ServiceId],
    ) -> Result<Vec<RecordedRequest>, RecordingError> {
        let ids: Vec<String> = services.iter().map(|id| id.0.to_string()).collect();
        let among = match ids.is_empty() {
            true => String::new(),
            false => format!("AND service IN ({})", ids.join(", ")),
        };
        let sql = format!(
            "{} WHERE {CHARGEABLE} AND coalesce(gpu_uj, cpu_uj, dram_uj) IS NOT NULL {among}
            ORDER BY coalesce(gpu_uj, 0) + coalesce(cpu_uj, 0) + coalesce(dram_uj, 0) DESC, request
            LIMIT ?1",
            self.whole_requests()?
        );
        self.found(&sql, params![i64::try_from(most).unwrap_or(i64::MAX)])
    }

    /// A request's W3C trace id, if it was recorded.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn trace(&self, request: RequestId) -> Result<Option<String>, RecordingError> {
        let sql = "SELECT trace FROM traces WHERE request = ?1";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut found| found.query_row([request.0.cast_signed()], |row| row.get(0)))
            .optional()
            .map_err(RecordingError::sqlite(&self.path))
    }

    /// Nanoseconds that threads of each service waited by reason, of the waits that were recorded.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn waits_by_reason(
        &self,
        mut each: impl FnMut(ServiceId, &str, u64),
    ) -> Result<(), RecordingError> {
        if !self.has("off_cpu", "at_ns")? {
            return Ok(());
        }
        let sql = "SELECT service, reason, sum(waited_ns) AS waited FROM off_cpu
            GROUP BY service, reason";
        self.rows(sql, |row| {
            let reason: String = row.get("reason")?;
            each(
                ServiceId(row.get("service")?),
                &reason,
                count(row, "waited")?,
            );
            Ok(())
        })
    }

    /// Nanoseconds that threads of one service waited in [from, to] by reason, of the waits that were
    /// recorded. Only where [`Self::has_waits`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn waits_in(
        &self,
        service: ServiceId,
        (from, to): (Timestamp, Timestamp),
        mut each: impl FnMut(&str, u64),
    ) -> Result<(), RecordingError> {
        let sql = "SELECT reason,
                sum(min(at_ns, ?3) - max(at_ns - waited_ns, ?2)) AS waited FROM off_cpu
            WHERE service = ?1 AND at_ns > ?2 AND at_ns - waited_ns < ?3
            GROUP BY reason ORDER BY waited DESC";
        let values = params![service.0, from.0.cast_signed(), to.0.cast_signed()];
        self.chosen(sql, values, |row| {
            let reason: String = row.get("reason")?;
            each(&reason, count(row, "waited")?);
            Ok(())
        })
    }

    /// Selects requests for [`Self::found`].
    fn whole_requests(&self) -> Result<String, RecordingError> {
        let phases = self.phases("requests")?;
        Ok(format!("SELECT {KIND}, {OWN}, {phases} FROM requests"))
    }

    fn found(
        &self,
        sql: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<RecordedRequest>, RecordingError> {
        let find = || -> rusqlite::Result<Vec<RecordedRequest>> {
            let mut statement = self.connection.prepare(sql)?;
            let found = statement.query_map(values, |row| {
                let mut columns = Columns::of(row);
                let kind = kind(&mut columns)?;
                request(&mut columns, &kind)
            })?;
            found.collect()
        };
        find().map_err(RecordingError::sqlite(&self.path))
    }
}
