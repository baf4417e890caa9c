//! Writes a journal.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::lines::{Entry, RequestLine, Share, seconds};
use super::{JournalError, SCHEMA};
use crate::ledger::{
    Booked, BookedInterval, EngineInfo, Meter, MeterId, RequestId, ServiceId, TokenDelta, TraceId,
};

/// Writes a journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Journal {
    /// Begins a new file; an existing one is replaced.
    pub fn create(path: &Path, simulated: bool) -> Result<Self, JournalError> {
        let file = File::create(path).map_err(|error| JournalError::Io {
            path: path.to_owned(),
            error,
        })?;
        let mut journal = Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        journal.line(&Entry::Journal {
            schema: SCHEMA,
            version,
            simulated,
        })?;
        Ok(journal)
    }

    /// Names a meter; before its first interval.
    pub fn meter(&mut self, id: MeterId, meter: &Meter) -> Result<(), JournalError> {
        let Meter {
            component,
            ref device,
            source,
            tick,
            stale_after,
            gain_error_ratio,
            ..
        } = *meter;
        self.line(&Entry::Meter {
            meter: id.0,
            component,
            device: device.clone(),
            source,
            tick_ns: tick,
            stale_after_ns: stale_after,
            gain_error_ratio,
        })
    }

    /// Names a service; before its first request.
    pub fn service(&mut self, id: ServiceId, name: &str) -> Result<(), JournalError> {
        self.line(&Entry::Service {
            service: id.0,
            name: name.to_owned(),
        })
    }

    /// Tells what serves.
    pub fn engine(&mut self, info: &EngineInfo) -> Result<(), JournalError> {
        self.line(&Entry::Engine {
            service: info.service.0,
            engine: info.engine.to_owned(),
            version: info.version.clone(),
            model: info.model.clone(),
        })
    }

    /// Writes what an engine counted.
    pub fn tokens(&mut self, delta: &TokenDelta) -> Result<(), JournalError> {
        self.line(&Entry::Tokens {
            service: delta.service.0,
            from_s: seconds(delta.from),
            to_s: seconds(delta.to),
            input: delta.input,
            output: delta.output,
        })
    }

    /// Tells which trace a request belongs to.
    pub fn trace(&mut self, request: RequestId, trace: TraceId) -> Result<(), JournalError> {
        self.line(&Entry::Trace {
            request: request.0,
            trace: trace.to_string(),
        })
    }

    /// Writes what was booked.
    pub fn book(&mut self, booked: &Booked) -> Result<(), JournalError> {
        let entry = match booked {
            Booked::Interval(interval) => {
                let BookedInterval {
                    meter,
                    from,
                    to,
                    energy,
                    accounts,
                    ref services,
                } = *interval;
                let services = services
                    .iter()
                    .map(|share| Share {
                        service: share.service.0,
                        requests_uj: share.requests.0,
                        overhead_uj: share.overhead.0,
                    })
                    .collect();
                Entry::Interval {
                    meter: meter.0,
                    from_s: seconds(from),
                    to_s: seconds(to),
                    energy_uj: energy.0,
                    accounts_uj: accounts,
                    services,
                }
            }
            Booked::Request(booked) => Entry::Request(RequestLine::from(booked)),
            Booked::Hole {
                meter,
                from,
                to,
                reason,
            } => Entry::Hole {
                meter: meter.0,
                from_s: seconds(*from),
                to_s: seconds(*to),
                reason: (*reason).to_owned(),
            },
        };
        self.line(&entry)
    }

    /// Hands everything written so far to the kernel.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        self.file.flush().map_err(|error| JournalError::Io {
            path: self.path.clone(),
            error,
        })
    }

    fn line(&mut self, entry: &Entry) -> Result<(), JournalError> {
        serde_json::to_writer(&mut self.file, entry)
            .map_err(io::Error::from)
            .and_then(|()| self.file.write_all(b"\n"))
            .map_err(|error| JournalError::Io {
                path: self.path.clone(),
                error,
            })
    }
}
