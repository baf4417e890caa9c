//! Reads a journal back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use super::lines::{Entry, timestamp};
use super::{JournalError, SCHEMA};
use crate::ledger::{Booked, BookedInterval, Meter, MeterId, ServiceId, ServiceShare, TokenDelta};
use crate::units::Microjoules;

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
            // For who looks at the file; a report has no use for it.
            Entry::Trace { .. } => {}
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
