//! The modes that the GPU is in, and how long NVML's calls take.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::ticks::percentile;
use super::trace::fields;

const CALLS: usize = 1_000;
/// Calls that take milliseconds are not made a thousand times.
const LONGEST_SERIES: Duration = Duration::from_secs(3);

/// The section's text.
pub(super) fn measure(device: &Device<'_>) -> Result<String> {
    let mut text = String::new();
    modes(&mut text, device)?;
    latencies(&mut text, device)?;
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
