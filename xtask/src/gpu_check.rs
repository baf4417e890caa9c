//! What this machine's NVIDIA GPUs and their driver do: how long calls take, how often counter and
//! readings change, and whether the counter agrees with the integrals of power.
//!
//! Reads only: no clock, limit or mode is touched. Without a GPU it says so and succeeds.

mod ticks;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nvml_wrapper::enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml};

use ticks::{Changes, Integral, percentile};

/// The counter (mJ), power over the last second and at present (mW).
const FIELDS: [FieldId; 3] = [FieldId(83), FieldId(185), FieldId(186)];
const CALLS: usize = 1_000;
/// Calls that take milliseconds are not made a thousand times.
const LONGEST_SERIES: Duration = Duration::from_secs(3);
/// Between two polls.
const POLL: Duration = Duration::from_millis(1);
/// In the name of every simulated GPU.
const SIMULATED: &str = "(simulated)";

/// `cargo xtask gpu-check`'s options.
#[derive(Args)]
pub(crate) struct Options {
    /// The NVML library
    #[arg(long, value_name = "FILE", default_value = "libnvidia-ml.so.1")]
    library: PathBuf,
    /// Poll for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    seconds: u64,
    /// Add what was measured to this file, with driver and date
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// A load to poll under; it is ended afterwards
    #[arg(last = true, value_name = "CMD")]
    load: Vec<String>,
}

/// `cargo xtask gpu-check`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let nvml = match Nvml::builder().lib_path(options.library.as_os_str()).init() {
        Ok(nvml) => nvml,
        Err(
            error @ (NvmlError::LibloadingError(_)
            | NvmlError::DriverNotLoaded
            | NvmlError::NotFound),
        ) => {
            println!("no NVIDIA GPU here: {error}; nothing to check");
            return Ok(());
        }
        Err(error) => return Err(error).context("the NVIDIA driver does not start"),
    };
    let count = nvml.device_count()?;
    if count == 0 {
        println!("the NVIDIA driver finds no GPU; nothing to check");
        return Ok(());
    }
    let mut load = start(&options.load)?;
    let checked = check(&nvml, count, options);
    if let Some(load) = &mut load {
        // It may have ended by itself.
        let _ = load.kill();
        let _ = load.wait();
    }
    let text = checked?;
    print!("{text}");
    if let Some(path) = &options.append {
        if text.contains(SIMULATED) {
            bail!("what a simulated GPU shows is not written down as measured");
        }
        let before = std::fs::read_to_string(path).unwrap_or_default();
        std::fs::write(path, format!("{before}{text}"))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn start(command: &[String]) -> Result<Option<Child>> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(None);
    };
    let child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| program.clone())?;
    Ok(Some(child))
}

fn check(nvml: &Nvml, count: u32, options: &Options) -> Result<String> {
    let mut text = String::new();
    let driver = nvml
        .sys_driver_version()
        .unwrap_or_else(|_| "unknown".into());
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    for index in 0..count {
        let device = nvml.device_by_index(index)?;
        let name = device.name().unwrap_or_else(|_| "GPU".into());
        writeln!(text, "\n## {name}, driver {driver}, {date}\n")?;
        modes(&mut text, &device)?;
        latencies(&mut text, &device)?;
        let load = match options.load.as_slice() {
            [] => "whatever ran".to_owned(),
            command => format!("`{}`", command.join(" ")),
        };
        writeln!(text, "\nPolled for {} s under {load}:\n", options.seconds)?;
        poll(&mut text, &device, Duration::from_secs(options.seconds))?;
    }
    Ok(text)
}

fn modes(text: &mut String, device: &Device<'_>) -> Result<()> {
    let told = |mode: Result<String, NvmlError>| mode.unwrap_or_else(|error| error.to_string());
    let mig = told(device.mig_mode().map(|mode| mode.current.to_string()));
    let virtualization = told(device.virtualization_mode().map(|mode| format!("{mode:?}")));
    let persistence = told(device.is_in_persistent_mode().map(|on| on.to_string()));
    let limit = told(
        device
            .enforced_power_limit()
            .map(|milliwatts| format!("{} W", f64::from(milliwatts) * 1e-3)),
    );
    writeln!(
        text,
        "MIG {mig}; virtualisation {virtualization}; persistence {persistence}; limit {limit}.\n"
    )?;
    Ok(())
}

/// Whether a call gave something; what, is not asked here.
type Call<'d> = (&'static str, Box<dyn Fn() -> Result<(), NvmlError> + 'd>);

fn latencies(text: &mut String, device: &Device<'_>) -> Result<()> {
    let calls: [Call<'_>; 13] = [
        (
            "energy, power (one call)",
            Box::new(|| fields(device).map(drop)),
        ),
        (
            "energy",
            Box::new(|| device.total_energy_consumption().map(drop)),
        ),
        ("power", Box::new(|| device.power_usage().map(drop))),
        (
            "power limit",
            Box::new(|| device.enforced_power_limit().map(drop)),
        ),
        (
            "SM clock",
            Box::new(|| device.clock_info(Clock::SM).map(drop)),
        ),
        (
            "temperature",
            Box::new(|| device.temperature(TemperatureSensor::Gpu).map(drop)),
        ),
        (
            "throttle reasons",
            Box::new(|| device.current_throttle_reasons().map(drop)),
        ),
        ("memory", Box::new(|| device.memory_info().map(drop))),
        (
            "utilisation",
            Box::new(|| device.utilization_rates().map(drop)),
        ),
        (
            "processes",
            Box::new(|| device.running_compute_processes().map(drop)),
        ),
        (
            "utilisation by process",
            Box::new(|| device.process_utilization_stats(None).map(drop)),
        ),
        (
            "PCIe throughput",
            Box::new(|| device.pcie_throughput(PcieUtilCounter::Send).map(drop)),
        ),
        (
            "activity, one sample (GPM)",
            Box::new(|| device.gpm_sample().map(drop)),
        ),
    ];
    writeln!(text, "| call | p50, µs | p99, µs | longest, µs | calls |")?;
    writeln!(text, "|---|--:|--:|--:|--:|")?;
    for (name, call) in calls {
        let begun = Instant::now();
        let mut times = Vec::new();
        let mut failure = None;
        while times.len() < CALLS && begun.elapsed() < LONGEST_SERIES {
            let start = Instant::now();
            // That nothing new is known of a process is an answer.
            match call() {
                Ok(()) | Err(NvmlError::NotFound) => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        if let Some(error) = failure {
            writeln!(text, "| {name} | {error} | | | |")?;
            continue;
        }
        times.sort_by(f64::total_cmp);
        let at = |part| percentile(&times, part).unwrap_or(f64::NAN);
        writeln!(
            text,
            "| {name} | {:.0} | {:.0} | {:.0} | {} |",
            at(0.5),
            at(0.99),
            at(1.0),
            times.len()
        )?;
    }
    Ok(())
}

fn poll(text: &mut String, device: &Device<'_>, time: Duration) -> Result<()> {
    let names = ["energy counter", "average power", "instant power"];
    let mut changes = [(); 3].map(|()| Changes::default());
    let mut integrals = [(); 2].map(|()| Integral::default());
    let mut counted = Integral::default();
    let begun = Instant::now();
    let mut latest = [None; 3];
    while begun.elapsed() < time {
        latest = fields(device)?;
        let at = begun.elapsed().as_secs_f64();
        for (changes, value) in changes.iter_mut().zip(latest) {
            if let Some(value) = value {
                changes.see(at, value);
            }
        }
        // Between the counter's changes nothing is known of it: all three are compared there.
        let changed = changes[0].latest_at() == Some(at);
        for (integral, milliwatts) in integrals.iter_mut().zip(latest.into_iter().skip(1)) {
            if let Some(milliwatts) = milliwatts {
                integral.hold(at, milliwatts as f64 * 1e-3);
            }
            if changed {
                integral.mark();
            }
        }
        if let (true, Some(millijoules)) = (changed, latest[0]) {
            counted.count(millijoules as f64 * 1e-3);
        }
        std::thread::sleep(POLL);
    }
    writeln!(text, "| | changes | between two, ms: p5 | p50 | p95 |")?;
    writeln!(text, "|---|--:|--:|--:|--:|")?;
    for ((name, changes), value) in names.iter().zip(&changes).zip(latest) {
        if value.is_none() {
            writeln!(text, "| {name} | not supported | | | |")?;
            continue;
        }
        let gaps = changes.gaps_ms();
        let at = |part| percentile(&gaps, part).map_or_else(String::new, |gap| format!("{gap:.1}"));
        let count = gaps.len();
        writeln!(
            text,
            "| {name} | {count} | {} | {} | {} |",
            at(0.05),
            at(0.5),
            at(0.95)
        )?;
    }
    if let Some(joules) = counted.total() {
        writeln!(text, "\nThe counter rose by {joules:.1} J.")?;
        for (name, integral) in ["Average", "Instant"].iter().zip(&integrals) {
            if let Some(integrated) = integral.total() {
                let off = (integrated / joules - 1.0) * 100.0;
                writeln!(
                    text,
                    "{name} power over the same time: {integrated:.1} J ({off:+.2} %)."
                )?;
            }
        }
    }
    Ok(())
}

/// Counter and power in one call; `None` for what the board does not have.
fn fields(device: &Device<'_>) -> Result<[Option<u64>; 3], NvmlError> {
    let mut values = [None; 3];
    let samples = device.field_values_for(&FIELDS)?;
    for (value, sample) in values.iter_mut().zip(samples) {
        *value = match sample.and_then(|sample| sample.value) {
            Ok(SampleValue::U64(number)) => Some(number),
            Ok(SampleValue::U32(number)) => Some(u64::from(number)),
            Ok(SampleValue::I64(number)) => u64::try_from(number).ok(),
            Ok(SampleValue::F64(number)) => Some(number as u64),
            Err(_) => None,
        };
    }
    Ok(values)
}
