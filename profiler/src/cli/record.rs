//! `perjoule record`: like perf record. Everything that is booked goes into a file, for `report` and its like.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::measure::{Measure, News, check_services, measure, seconds};
use super::settings::Target;
use crate::agent::config::PORT;
use crate::export::http::ListenAddress;
use crate::report::figures::{UNKNOWN, count, figure, with_unit};
use crate::report::{FullEnergy, Report};

const EXAMPLES: &str = "\
Examples:
  perjoule record                            every service that holds a GPU, until Ctrl-C
  perjoule record -p 4711 --duration 5m      the service of this process, for five minutes
  perjoule record --port 8000 -- ./load      while a load generator runs
  perjoule record -o f.pj --stacks -- ./serve   a command alone, with stacks for flame graphs

Then `perjoule report perjoule.pj`. A service that always records its last minutes: `perjoule run --hindsight 10m`.";

/// What to record, and for how long.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// Every service that holds a GPU: what is recorded unless a service or a command is named
    #[arg(short, long, conflicts_with_all = ["pid", "port", "name"])]
    all: bool,
    /// The recording; one of this name is replaced
    #[arg(short, long, value_name = "FILE", default_value = "perjoule.pj")]
    output: PathBuf,
    /// End after this time (seconds, or 10s, 5m, 1h); a command that still runs then is ended
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Serve /metrics meanwhile: ADDRESS:PORT, :PORT for every address, unix:/PATH; 127.0.0.1:27182 if
    /// none is named [default: nothing is served]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1)]
    listen: Option<Option<ListenAddress>>,
    /// Runs while recording, two seconds after it began where a GPU's idle power must be learned
    /// first. With --pid, --port, --name or --all it only sets the time (a load generator,
    /// `sleep 10`); without, it is what is recorded. Its exit code is kept
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Records until the command or every process named ends, the time is over or a signal comes.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let loopback = ListenAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    let listen = options.listen.map(|told| told.unwrap_or(loopback));
    let goes_on = !options.command.is_empty();
    let recording = Measure {
        file,
        verbose,
        target: options.target,
        all: options.all,
        command: options.command,
        duration: options.duration,
        interval: None,
        recording: Some(options.output.clone()),
        per_thread: false,
        listen: listen.into_iter().collect(),
    };
    if let Some(code) = recording.refused() {
        return Ok(code);
    }
    // Without a file there is nothing to go on for; a command is not ended for it.
    let measured = measure(recording, |news| match news {
        News::Tick(agent) if !agent.records() && !goes_on => Ok(ControlFlow::Break(())),
        _ => Ok(ControlFlow::Continue(())),
    })?;
    let report = measured.summary.report(FullEnergy::default());
    let bytes = fs::metadata(&options.output).map(|file| file.len()).ok();
    eprintln!("{}", summary(&options.output, bytes, &report));
    check_services([&report]);
    Ok(ExitCode::from(measured.code))
}

/// One line, as perf record ends with one.
fn summary(file: &Path, bytes: Option<u64>, report: &Report) -> String {
    let simulated = if report.simulated {
        " (SIMULATED GPU)"
    } else {
        ""
    };
    let requests: u64 = report
        .services
        .iter()
        .map(|service| service.requests.total)
        .sum();
    let joules: Vec<f64> = report
        .meters
        .iter()
        .filter_map(|meter| meter.energy_j)
        .collect();
    let joules = (!joules.is_empty()).then(|| joules.iter().sum());
    let known = |number: Option<u64>| number.map_or_else(|| UNKNOWN.to_owned(), count);
    let lost = known(report.losses.requests);
    let megabytes = bytes.map(|bytes| bytes as f64 / 1e6);
    format!(
        "[ perjoule record: {} in {}: {} requests, {} measured{simulated}, {lost} requests lost, residual {} µJ; next: \
         perjoule report {} ]",
        with_unit(megabytes, "MB"),
        file.display(),
        count(requests),
        joules.map_or_else(
            || UNKNOWN.to_owned(),
            |joules| format!("{} J", figure(joules))
        ),
        known(report.ledger.residual_microjoules),
        quoted(file),
    )
}

/// As a shell reads it back.
fn quoted(file: &Path) -> String {
    let name = file.display().to_string();
    let plain = |letter: char| letter.is_alphanumeric() || "/._-+,:@".contains(letter);
    if !name.is_empty() && name.chars().all(plain) {
        return name;
    }
    format!("'{}'", name.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Summary;

    #[test]
    fn the_last_line_says_what_is_in_the_file_and_what_to_type_next() {
        let report = Summary::new(true).report(FullEnergy::default());
        assert_eq!(
            summary(Path::new("a b.pj"), Some(412_000), &report),
            "[ perjoule record: 0.4120 MB in a b.pj: 0 requests, <not supported> measured (SIMULATED GPU), \
             <not supported> requests lost, residual 0 µJ; next: perjoule report 'a b.pj' ]"
        );
    }

    #[test]
    fn a_file_is_named_as_a_shell_reads_it() {
        assert_eq!(quoted(Path::new("/var/tmp/a-1.pj")), "/var/tmp/a-1.pj");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }
}
