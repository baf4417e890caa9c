//! `perjoule replay`: any tool's power and request logs, booked by the same ledger.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::progress::Progress;
use super::usage;
use crate::agent::config::IdleWatts;
use crate::ledger::{Floor, FloorSource};
use crate::replay::{self, ReplayedDevice};

/// Logs that are not understood.
const EXIT_INPUT: u8 = 2;
/// Rows this many times further apart than usual are worth a word.
const GAP: f64 = 10.0;

const EXAMPLES: &str = "\
Examples:
  perjoule replay --power power.csv --requests requests.jsonl -o night.pj
  perjoule replay --power power.csv --requests requests.jsonl --idle-watts 60
  perjoule replay --power power.csv --requests requests.jsonl --idle-watts gpu0=60 --idle-watts gpu1=55

The two logs' columns and keys: docs/replay.md.";

/// What to replay.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// The power log: CSV with the header time_s,device,watts or time_s,device,energy_j
    #[arg(long, value_name = "P.csv")]
    power: PathBuf,
    /// The request log: one JSON object a line, in order of start_s
    #[arg(long, value_name = "R.jsonl")]
    requests: PathBuf,
    /// The recording
    #[arg(short, long, value_name = "FILE", default_value = "perjoule.pj")]
    output: PathBuf,
    /// The devices' idle power: watts for all, or DEVICE=watts; else it is learned from the log's
    /// quiet time
    #[arg(long, value_name = "[DEVICE=]W")]
    idle_watts: Vec<IdleWatts>,
}

/// Books the logs into a recording.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    let idle_watts = options.idle_watts.into_iter().reduce(IdleWatts::and);
    let options = replay::Options {
        power: options.power,
        requests: options.requests,
        output: options.output,
        idle_watts: idle_watts.unwrap_or_default(),
    };
    // Once for the devices, once for their idle floors where they must be learned, once to book.
    let learns = u64::from(options.idle_watts == IdleWatts::default());
    let progress = Progress::of(&[
        (&options.power, 2 + learns),
        (&options.requests, 1 + learns),
    ]);
    let replayed = replay::replay(&options);
    drop(progress);
    let replayed = match replayed {
        Ok(replayed) => replayed,
        Err(error) => return Ok(usage(&error, EXIT_INPUT)),
    };
    for device in &replayed.devices {
        eprintln!("perjoule: {}", describe(device));
    }
    eprintln!(
        "perjoule: {} requests booked in {}",
        replayed.requests,
        options.output.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn describe(device: &ReplayedDevice) -> String {
    let ReplayedDevice {
        name,
        floor,
        rows,
        distances: (usual, longest),
    } = device;
    let floor = match floor {
        Some(Floor { watts, source }) => {
            let from = match source {
                FloorSource::Fixed => "given by --idle-watts",
                FloorSource::Learned => "learned from the log's quiet time",
                FloorSource::State => "learned before",
                FloorSource::Table => "typical of its model",
            };
            format!("idle floor {:.1} W, {from}", watts.0)
        }
        None => "no idle floor: the log has too little quiet time to learn it, and idle energy is \
                 in the requests; --idle-watts gives one"
            .to_owned(),
    };
    let mut text = format!("{name}: {rows} rows, {floor}");
    if *rows == 1 {
        text += "; a single row spans no time, so it has no energy";
    } else if *longest > GAP * usual {
        text += &format!("; rows are up to {longest:.3} s apart, usually {usual:.3} s");
    }
    text
}
