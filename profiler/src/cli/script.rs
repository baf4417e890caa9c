//! `perjoule script`: a recording's requests, raw, or its energy by stack, for other tools.

mod parquet;

use std::collections::HashMap;
use std::io::{self, BufWriter, IsTerminal as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::profile::{self, Form};
use super::progress::Progress;
use super::{EXIT_USAGE, usage};
use crate::clock::Timestamp;
use crate::ledger::ServiceId;
use crate::recording::{Recorded, RecordedRequest, RecordingError};
use crate::report::plain;

const EXAMPLES: &str = "\
Examples:
  perjoule script night.pj > requests.jsonl
  perjoule script night.pj --format parquet > requests.parquet
  perjoule script night.pj --format svg > energy.svg
  perjoule script night.pj --format svg --off-cpu > waiting.svg
  perjoule script night.pj --format pprof --component gpu > gpu.pb.gz";

/// What to print, and how.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// A recording that `perjoule record`, `run --record` or `replay` wrote
    file: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    #[command(flatten)]
    profile: profile::Which,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// One JSON object a line, one line a request
    Jsonl,
    /// The same as comma-separated values, with a header
    Csv,
    /// The same as a Parquet file: columns with types, for DuckDB, pandas, Polars or Spark
    Parquet,
    /// A stack a line with its energy in microjoules, as flame graph tools read it
    Folded,
    /// An energy flame graph
    Svg,
    /// For `go tool pprof`: cpu and off-cpu in nanoseconds, energy in microjoules
    Pprof,
    /// For profiler.firefox.com: tracks of power, and samples weighted by microjoules
    Firefox,
}

/// One request. What is not known is null.
#[derive(Debug, Clone, Copy, Serialize)]
struct Line<'a> {
    id: &'a str,
    service: &'a str,
    route: &'static str,
    code: Option<&'static str>,
    outcome: Option<&'static str>,
    start_s: f64,
    first_token_s: Option<f64>,
    end_s: Option<f64>,
    chunks: Option<u64>,
    tokens_in: Option<u64>,
    tokens_out: Option<u64>,
    energy_uj: Energy,
    class: &'static str,
    error_ratio: Option<f64>,
}

/// A [`Line`]'s, in order: as CSV and Parquet have no objects here, the parts of its energy are named as in
/// the recording.
const COLUMNS: [&str; 16] = [
    "id",
    "service",
    "route",
    "code",
    "outcome",
    "start_s",
    "first_token_s",
    "end_s",
    "chunks",
    "tokens_in",
    "tokens_out",
    "gpu_uj",
    "cpu_uj",
    "dram_uj",
    "class",
    "error_ratio",
];

#[derive(Debug, Clone, Copy, Serialize)]
struct Energy {
    gpu: Option<u64>,
    cpu: Option<u64>,
    dram: Option<u64>,
}

/// Prints the requests on stdout.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    let is_binary = matches!(options.format, Format::Parquet | Format::Pprof);
    if is_binary && io::stdout().is_terminal() {
        let message = anyhow!(
            "--format parquet and pprof write no text, and stdout is a terminal; add `> FILE`"
        );
        return Ok(usage(message.as_ref(), EXIT_USAGE));
    }
    // Where the lines themselves are seen, they are the sign of life.
    let _progress = match io::stdout().is_terminal() {
        true => Progress::default(),
        false => Progress::of(&[(&options.file, 1)]),
    };
    let out = BufWriter::new(io::stdout());
    let by_stack = |form, out| profile::print(form, &options.file, &options.profile, out);
    let written = match options.format {
        Format::Jsonl | Format::Csv | Format::Parquet if options.profile.is_given() => {
            let message = anyhow!(
                "--component, --against and --off-cpu need --format folded, svg, pprof or firefox"
            );
            return Ok(usage(message.as_ref(), EXIT_USAGE));
        }
        Format::Jsonl => write_jsonl(&Recorded::open(&options.file)?, out)?,
        Format::Csv => write_csv(&Recorded::open(&options.file)?, out)?,
        Format::Parquet => parquet::write(&Recorded::open(&options.file)?, out)?,
        Format::Folded => by_stack(Form::Folded, out)?,
        Format::Svg => by_stack(Form::Svg, out)?,
        Format::Pprof => by_stack(Form::Pprof, out)?,
        Format::Firefox => by_stack(Form::Firefox, out)?,
    };
    match written {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn write_jsonl(
    recorded: &Recorded,
    mut out: impl io::Write,
) -> Result<io::Result<()>, RecordingError> {
    let ended = each_line(recorded, |line| {
        serde_json::to_writer(&mut out, line)?;
        out.write_all(b"\n")
    })?;
    Ok(ended.and_then(|()| out.flush()))
}

fn write_csv(recorded: &Recorded, out: impl io::Write) -> Result<io::Result<()>, RecordingError> {
    let mut out = csv::WriterBuilder::new()
        .has_headers(false)
        .from_writer(out);
    if let Err(error) = out.write_record(COLUMNS) {
        return Ok(Err(error.into()));
    }
    let ended = each_line(recorded, |line| {
        let (id, service) = (plain(line.id), plain(line.service));
        let line = Line {
            id: &id,
            service: &service,
            ..*line
        };
        Ok(out.serialize(line)?)
    })?;
    Ok(ended.and_then(|()| out.flush()))
}

/// All requests by their numbers, until `each` fails.
fn each_line(
    recorded: &Recorded,
    mut each: impl FnMut(&Line<'_>) -> io::Result<()>,
) -> Result<io::Result<()>, RecordingError> {
    let mut services: HashMap<ServiceId, String> = HashMap::new();
    recorded.services(|id, name, _| {
        services.insert(id, name.to_owned());
    })?;
    let ended = recorded.requests_by_number(|request| {
        // A change of protocol is a session, and no request.
        if request.booked.request.begins_session() {
            return ControlFlow::Continue(());
        }
        let number = request.booked.request.id.0.to_string();
        let service = services.get(&request.booked.request.service);
        let line = line(request, &number, service.map_or("unknown", String::as_str));
        match each(&line) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    })?;
    Ok(match ended {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    })
}

fn line<'a>(recorded: &'a RecordedRequest, number: &'a str, service: &'a str) -> Line<'a> {
    let booked = &recorded.booked;
    let request = &booked.request;
    let tokens = booked.token_count();
    Line {
        id: recorded.name.as_deref().unwrap_or(number),
        service,
        route: request.route.name(),
        code: request.code(),
        outcome: request.end.map(|end| end.outcome.name()),
        start_s: seconds(request.start),
        first_token_s: request.first_data.map(seconds),
        end_s: request.end.map(|end| seconds(end.at)),
        chunks: recorded.chunks_seen.then_some(request.chunks),
        tokens_in: tokens.and_then(|tokens| tokens.input),
        tokens_out: tokens.and_then(|tokens| tokens.output),
        energy_uj: Energy {
            gpu: booked.gpu.map(|energy| energy.0),
            cpu: booked.cpu.map(|energy| energy.0),
            dram: booked.dram.map(|energy| energy.0),
        },
        class: booked.class.name(),
        error_ratio: booked.error_ratio(),
    }
}

/// Seconds as they were before they became nanoseconds: whole and fraction apart, so that times
/// since 1970 come out as they went in.
fn seconds(at: Timestamp) -> f64 {
    const SECOND: u64 = 1_000_000_000;
    (at.0 / SECOND) as f64 + (at.0 % SECOND) as f64 / SECOND as f64
}
