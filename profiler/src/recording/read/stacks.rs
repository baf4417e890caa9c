//! Stacks of a recording: where threads were seen on CPUs, and where they waited.

use rusqlite::params;

use super::{Recorded, count, not_known, time};
use crate::clock::Timestamp;
use crate::ledger::ServiceId;
use crate::recording::schema::integer;
use crate::recording::{RecordedSample, RecordedWait, RecordingError, StackId};
use crate::waits::Reason;

impl Recorded {
    /// All stacks: names of their frames, the outermost first, one a line.
    ///
    /// # Errors
    /// If the file cannot be read, as with every method here.
    pub fn stacks(&self, each: impl FnMut(StackId, &str)) -> Result<(), RecordingError> {
        self.stacks_among("", each)
    }

    /// The stacks of samples and of waits that ended after `from`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn stacks_since(
        &self,
        from: Timestamp,
        each: impl FnMut(StackId, &str),
    ) -> Result<(), RecordingError> {
        let from = integer(from.0);
        let among = format!(
            "WHERE stack IN (SELECT stack FROM samples WHERE at_ns > {from}
                UNION SELECT stack FROM off_cpu WHERE at_ns > {from})"
        );
        self.stacks_among(&among, each)
    }

    fn stacks_among(
        &self,
        which: &str,
        mut each: impl FnMut(StackId, &str),
    ) -> Result<(), RecordingError> {
        if !self.has("stacks", "frames")? {
            return Ok(());
        }
        self.rows(
            &format!("SELECT stack, frames FROM stacks {which}"),
            |row| {
                let frames: String = row.get("frames")?;
                each(StackId(row.get("stack")?), &frames);
                Ok(())
            },
        )
    }

    /// True if the file has samples of stacks.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn has_samples(&self) -> Result<bool, RecordingError> {
        Ok(self.has("samples", "at_ns")?
            && self.count("SELECT EXISTS (SELECT 1 FROM samples)")? > 0)
    }

    /// A service's samples in (from, to], in order; in one package, if it is named. Only where
    /// [`Self::has_samples`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn samples(
        &self,
        service: ServiceId,
        (from, to): (Timestamp, Timestamp),
        package: Option<u32>,
        mut each: impl FnMut(Timestamp, StackId),
    ) -> Result<(), RecordingError> {
        let sql =
            "SELECT at_ns, stack FROM samples WHERE service = ?1 AND at_ns > ?2 AND at_ns <= ?3
            AND (?4 IS NULL OR package IS NULL OR package = ?4) ORDER BY at_ns";
        let values = params![service.0, integer(from.0), integer(to.0), package];
        self.chosen(sql, values, |row| {
            each(time(row, "at_ns")?, StackId(row.get("stack")?));
            Ok(())
        })
    }

    /// How often each service was seen in each stack.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn sample_counts(
        &self,
        mut each: impl FnMut(ServiceId, StackId, u64),
    ) -> Result<(), RecordingError> {
        if !self.has("samples", "at_ns")? {
            return Ok(());
        }
        let sql = "SELECT service, stack, count(*) AS seen FROM samples GROUP BY service, stack";
        self.rows(sql, |row| {
            let (service, stack) = (ServiceId(row.get("service")?), StackId(row.get("stack")?));
            each(service, stack, count(row, "seen")?);
            Ok(())
        })
    }

    /// Every sample after `from`, as they lie in the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn samples_since(
        &self,
        from: Timestamp,
        mut each: impl FnMut(&RecordedSample),
    ) -> Result<(), RecordingError> {
        if !self.has("samples", "at_ns")? {
            return Ok(());
        }
        let from = integer(from.0);
        let sql = format!("SELECT * FROM samples WHERE at_ns > {from} ORDER BY rowid");
        self.rows(&sql, |row| {
            each(&RecordedSample {
                service: ServiceId(row.get("service")?),
                at: time(row, "at_ns")?,
                package: row.get("package")?,
                stack: StackId(row.get("stack")?),
            });
            Ok(())
        })
    }

    /// True if the file has stacks of waits.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn has_waits(&self) -> Result<bool, RecordingError> {
        Ok(self.has("off_cpu", "at_ns")?
            && self.count("SELECT EXISTS (SELECT 1 FROM off_cpu)")? > 0)
    }

    /// Nanoseconds that threads of each service waited in each stack.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn waits(
        &self,
        mut each: impl FnMut(ServiceId, StackId, u64),
    ) -> Result<(), RecordingError> {
        if !self.has("off_cpu", "at_ns")? {
            return Ok(());
        }
        let sql =
            "SELECT service, stack, sum(waited_ns) AS waited FROM off_cpu GROUP BY service, stack";
        self.rows(sql, |row| {
            let (service, stack) = (ServiceId(row.get("service")?), StackId(row.get("stack")?));
            each(service, stack, count(row, "waited")?);
            Ok(())
        })
    }

    /// Every wait that ended after `from`, whole, as they lie in the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn waits_since(
        &self,
        from: Timestamp,
        mut each: impl FnMut(&RecordedWait),
    ) -> Result<(), RecordingError> {
        if !self.has("off_cpu", "at_ns")? {
            return Ok(());
        }
        let from = integer(from.0);
        let sql = format!("SELECT * FROM off_cpu WHERE at_ns > {from} ORDER BY rowid");
        self.rows(&sql, |row| {
            let text: String = row.get("reason")?;
            let reason = Reason::ALL
                .into_iter()
                .find(|reason| reason.name() == text)
                .ok_or_else(|| not_known("reason", &text))?;
            each(&RecordedWait {
                service: ServiceId(row.get("service")?),
                at: time(row, "at_ns")?,
                nanos: count(row, "waited_ns")?,
                reason,
                stack: StackId(row.get("stack")?),
            });
            Ok(())
        })
    }
}
