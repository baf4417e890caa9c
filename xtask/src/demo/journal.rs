//! Reads the agent's journal while it grows.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One GPU interval.
#[derive(Debug, Clone)]
pub(super) struct Interval {
    pub(super) device: String,
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    pub(super) energy_uj: u64,
    pub(super) accounts_uj: Accounts,
}

/// The accounts shown here, and the sum of all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accounts {
    pub(super) idle: u64,
    pub(super) requests: u64,
    pub(super) total: u64,
}

/// One booked request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) service: String,
    pub(super) route: String,
    pub(super) start_s: f64,
    pub(super) end_s: f64,
    pub(super) chunks: u64,
    pub(super) gpu_uj: Option<u64>,
    pub(super) outcome: String,
}

/// What was booked so far.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    offset: u64,
    gpus: HashMap<u64, String>,
    services: HashMap<u64, String>,
    pub(super) intervals: Vec<Interval>,
    pub(super) requests: Vec<Request>,
    pub(super) simulated: bool,
}

impl Journal {
    pub(super) fn follow(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            offset: 0,
            gpus: HashMap::new(),
            services: HashMap::new(),
            intervals: Vec::new(),
            requests: Vec::new(),
            simulated: false,
        }
    }

    /// Reads the lines that are new.
    pub(super) fn read_on(&mut self) -> Result<()> {
        let mut file = File::open(&self.path)
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            self.offset += line.len() as u64;
            let entry: Value = serde_json::from_str(&line).context("a line of the journal")?;
            self.take(&entry)
                .with_context(|| format!("not as expected: {line}"))?;
            line.clear();
        }
        Ok(())
    }

    fn take(&mut self, entry: &Value) -> Option<()> {
        let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
        let number = |key: &str| entry.get(key)?.as_u64();
        let seconds = |key: &str| entry.get(key)?.as_f64();
        match entry.get("entry")?.as_str()? {
            "journal" => self.simulated = entry.get("simulated")?.as_bool()?,
            "meter" if entry.get("component")? == "gpu" => {
                self.gpus.insert(number("meter")?, text("device")?);
            }
            "service" => {
                self.services.insert(number("service")?, text("name")?);
            }
            "interval" => {
                let Some(device) = self.gpus.get(&number("meter")?) else {
                    return Some(());
                };
                let accounts = entry.get("accounts_uj")?.as_object()?;
                let account = |key: &str| accounts.get(key)?.as_u64();
                self.intervals.push(Interval {
                    device: device.clone(),
                    from_s: seconds("from_s")?,
                    to_s: seconds("to_s")?,
                    energy_uj: number("energy_uj")?,
                    accounts_uj: Accounts {
                        idle: account("idle")?,
                        requests: account("requests")?,
                        total: accounts.values().filter_map(Value::as_u64).sum(),
                    },
                });
            }
            "request" => {
                let request = Request {
                    service: self.services.get(&number("service")?)?.clone(),
                    route: text("route")?,
                    start_s: seconds("start_s")?,
                    end_s: seconds("end_s")?,
                    chunks: number("chunks")?,
                    gpu_uj: entry.get("energy_uj")?.get("gpu")?.as_u64(),
                    outcome: text("outcome")?,
                };
                // Health checks cost nobody energy.
                if request.route != "health" {
                    self.requests.push(request);
                }
            }
            _ => {}
        }
        Some(())
    }
}
