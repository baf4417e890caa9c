//! The journal: everything the ledger booked, one JSON object a line, in the order it was booked.
//!
//! In: [`Booked`] values and the names behind their ids. Out: a text file that is valid at every
//! line's end; [`read`] gives the same values back, so that `report` needs no agent.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, Booked, BookedInterval, BookedRequest, Class, Component, End, EngineInfo, Input,
    Meter, MeterId, Outcome, Request, RequestId, Route, ServiceId, ServiceShare, Source,
    TokenDelta,
};
use crate::units::Microjoules;

/// The layout of the lines below; a reader refuses a higher one.
const SCHEMA: u32 = 1;

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be opened, read or written.
    #[error("journal {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A line is not what a journal holds.
    #[error(
        "journal {path}, line {line}: {reason}; is this a file that `perjoule run --journal` wrote?"
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// One line. Times are seconds of `CLOCK_BOOTTIME`, energy is in microjoules.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
enum Entry {
    Journal {
        schema: u32,
        version: String,
        simulated: bool,
    },
    Meter {
        meter: u32,
        component: Component,
        device: String,
        source: Source,
        tick_ns: u64,
        stale_after_ns: u64,
        gain_error_ratio: f64,
    },
    Service {
        service: u32,
        name: String,
    },
    Interval {
        meter: u32,
        from_s: f64,
        to_s: f64,
        energy_uj: u64,
        accounts_uj: Accounts,
        services: Vec<Share>,
    },
    Request(RequestLine),
    Engine {
        service: u32,
        engine: String,
        version: Option<String>,
        model: Option<String>,
    },
    Tokens {
        service: u32,
        from_s: f64,
        to_s: f64,
        input: Option<u64>,
        output: Option<u64>,
    },
    Hole {
        meter: u32,
        from_s: f64,
        to_s: f64,
        reason: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Share {
    service: u32,
    requests_uj: u64,
    overhead_uj: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct RequestLine {
    id: u64,
    service: u32,
    route: Route,
    status: u16,
    outcome: Outcome,
    start_s: f64,
    first_token_s: Option<f64>,
    last_data_s: Option<f64>,
    end_s: f64,
    streamed: bool,
    chunks: u64,
    input_bytes: Option<u64>,
    input_tokens: Option<u64>,
    energy_uj: Energy,
    class: Class,
    error_ratio: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Energy {
    gpu: Option<u64>,
    cpu: Option<u64>,
    dram: Option<u64>,
}

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

/// A journal, read back.
#[derive(Debug, Default)]
pub struct Recorded {
    /// True if the figures come from a simulator.
    pub simulated: bool,
    /// The meters.
    pub meters: HashMap<MeterId, Meter>,
    /// Each service's name.
    pub services: HashMap<ServiceId, String>,
    /// The model that each service's engine named.
    pub models: HashMap<ServiceId, String>,
    /// What engines counted, in order.
    pub tokens: Vec<TokenDelta>,
    /// What was booked, in order.
    pub booked: Vec<Booked>,
}

/// Reads a journal. A last line without its end (the agent was killed) is left out.
pub fn read(path: &Path) -> Result<Recorded, JournalError> {
    let io = |error| JournalError::Io {
        path: path.to_owned(),
        error,
    };
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let mut recorded = Recorded::default();
    let mut text = String::new();
    let mut line = 0;
    loop {
        text.clear();
        if reader.read_line(&mut text).map_err(io)? == 0 || !text.ends_with('\n') {
            break;
        }
        line += 1;
        let format = |reason: String| JournalError::Format {
            path: path.to_owned(),
            line,
            reason,
        };
        let entry = serde_json::from_str(&text).map_err(|error| format(error.to_string()))?;
        match entry {
            Entry::Journal {
                schema, simulated, ..
            } => {
                if schema > SCHEMA {
                    return Err(format(format!(
                        "schema {schema} is newer than this perjoule"
                    )));
                }
                recorded.simulated = simulated;
            }
            _ if line == 1 => return Err(format("the first line does not begin a journal".into())),
            Entry::Meter {
                meter,
                component,
                device,
                source,
                tick_ns,
                stale_after_ns,
                gain_error_ratio,
            } => {
                recorded.meters.insert(
                    MeterId(meter),
                    Meter {
                        component,
                        device,
                        source,
                        limit: None,
                        tick: tick_ns,
                        stale_after: stale_after_ns,
                        gain_error_ratio,
                        idle: None,
                    },
                );
            }
            Entry::Service { service, name } => {
                recorded.services.insert(ServiceId(service), name);
            }
            Entry::Interval {
                meter,
                from_s,
                to_s,
                energy_uj,
                accounts_uj,
                services,
            } => {
                let services = services
                    .into_iter()
                    .map(|share| ServiceShare {
                        service: ServiceId(share.service),
                        requests: Microjoules(share.requests_uj),
                        overhead: Microjoules(share.overhead_uj),
                    })
                    .collect();
                recorded.booked.push(Booked::Interval(BookedInterval {
                    meter: MeterId(meter),
                    from: timestamp(from_s),
                    to: timestamp(to_s),
                    energy: Microjoules(energy_uj),
                    accounts: accounts_uj,
                    services,
                }));
            }
            Entry::Request(line) => recorded.booked.push(Booked::Request(line.into())),
            Entry::Engine { service, model, .. } => {
                if let Some(model) = model {
                    recorded.models.insert(ServiceId(service), model);
                }
            }
            Entry::Tokens {
                service,
                from_s,
                to_s,
                input,
                output,
            } => recorded.tokens.push(TokenDelta {
                service: ServiceId(service),
                from: timestamp(from_s),
                to: timestamp(to_s),
                input,
                output,
            }),
            Entry::Hole {
                meter,
                from_s,
                to_s,
                reason,
            } => recorded.booked.push(Booked::Hole {
                meter: MeterId(meter),
                from: timestamp(from_s),
                to: timestamp(to_s),
                reason: if reason == "reset" {
                    "reset"
                } else {
                    "refused"
                },
            }),
        }
    }
    if line == 0 {
        return Err(JournalError::Format {
            path: path.to_owned(),
            line: 1,
            reason: "the file is empty".into(),
        });
    }
    Ok(recorded)
}

impl From<&BookedRequest> for RequestLine {
    fn from(booked: &BookedRequest) -> Self {
        let BookedRequest {
            request,
            gpu,
            cpu,
            dram,
            class,
            error_ratio,
        } = *booked;
        let end = request.end.unwrap_or(End {
            at: request.start,
            outcome: Outcome::Incomplete,
        });
        let (input_bytes, input_tokens) = match request.input {
            Input::Bytes(bytes) => (Some(bytes), None),
            Input::Tokens(tokens) => (None, Some(tokens)),
        };
        Self {
            id: request.id.0,
            service: request.service.0,
            route: request.route,
            status: request.status,
            outcome: end.outcome,
            start_s: seconds(request.start),
            first_token_s: request.first_data.map(seconds),
            last_data_s: request.last_data.map(seconds),
            end_s: seconds(end.at),
            streamed: request.streamed,
            chunks: request.chunks,
            input_bytes,
            input_tokens,
            energy_uj: Energy {
                gpu: gpu.map(|energy| energy.0),
                cpu: cpu.map(|energy| energy.0),
                dram: dram.map(|energy| energy.0),
            },
            class,
            error_ratio,
        }
    }
}

impl From<RequestLine> for BookedRequest {
    fn from(line: RequestLine) -> Self {
        let input = line
            .input_tokens
            .map_or(Input::Bytes(line.input_bytes.unwrap_or(0)), Input::Tokens);
        Self {
            request: Request {
                id: RequestId(line.id),
                service: ServiceId(line.service),
                route: line.route,
                start: timestamp(line.start_s),
                first_data: line.first_token_s.map(timestamp),
                last_data: line.last_data_s.map(timestamp),
                input,
                chunks: line.chunks,
                streamed: line.streamed,
                status: line.status,
                end: Some(End {
                    at: timestamp(line.end_s),
                    outcome: line.outcome,
                }),
            },
            gpu: line.energy_uj.gpu.map(Microjoules),
            cpu: line.energy_uj.cpu.map(Microjoules),
            dram: line.energy_uj.dram.map(Microjoules),
            class: line.class,
            error_ratio: line.error_ratio,
        }
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 * 1e-9
}

fn timestamp(seconds: f64) -> Timestamp {
    Timestamp((seconds * 1e9).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booked_request() -> BookedRequest {
        BookedRequest {
            request: Request {
                id: RequestId(7),
                service: ServiceId(1),
                route: Route::ChatCompletions,
                start: Timestamp(1_500_000_000),
                first_data: Some(Timestamp(1_700_000_000)),
                last_data: Some(Timestamp(2_500_000_000)),
                input: Input::Bytes(4_000),
                chunks: 12,
                streamed: true,
                status: 200,
                end: Some(End {
                    at: Timestamp(2_500_000_000),
                    outcome: Outcome::Done,
                }),
            },
            gpu: Some(Microjoules(123_456_789)),
            cpu: None,
            dram: None,
            class: Class::A,
            error_ratio: Some(0.03),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_a_torn_last_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut journal = Journal::create(&path, true).unwrap();
        let meter = Meter {
            component: Component::Gpu,
            device: "GPU-0".into(),
            source: Source::Counter,
            limit: None,
            tick: 100_000_000,
            stale_after: 2_000_000_000,
            gain_error_ratio: 0.05,
            idle: None,
        };
        journal.meter(MeterId(0), &meter).unwrap();
        journal.service(ServiceId(1), "vllm").unwrap();
        journal.book(&Booked::Request(booked_request())).unwrap();
        let info = EngineInfo {
            service: ServiceId(1),
            engine: "vllm",
            counts: crate::ledger::Counts::Step,
            version: None,
            model: Some("llama".into()),
        };
        journal.engine(&info).unwrap();
        let delta = TokenDelta {
            service: ServiceId(1),
            from: Timestamp(987_654_321_000_000_001),
            to: Timestamp(987_654_322_000_000_002),
            input: Some(12),
            output: None,
        };
        journal.tokens(&delta).unwrap();
        journal.flush().unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"entry\":\"requ")).unwrap();

        let recorded = read(&path).unwrap();

        assert!(recorded.simulated);
        assert_eq!(recorded.services[&ServiceId(1)], "vllm");
        assert_eq!(recorded.meters[&MeterId(0)].device, "GPU-0");
        assert_eq!(recorded.models[&ServiceId(1)], "llama");
        assert_eq!(recorded.tokens.len(), 1);
        assert_eq!(recorded.tokens[0].input, Some(12));
        let [Booked::Request(read)] = recorded.booked.as_slice() else {
            panic!("{:?}", recorded.booked)
        };
        assert_eq!(read.gpu, Some(Microjoules(123_456_789)));
        assert_eq!(read.request.first_data, Some(Timestamp(1_700_000_000)));
        assert_eq!(read.request.chunks, 12);
    }

    #[test]
    fn a_foreign_file_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.jsonl");
        std::fs::write(&path, "{\"hello\": 1}\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        std::fs::write(&path, "").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("empty"));
    }
}
