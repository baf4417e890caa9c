//! What the GPU draws when nobody of ours uses it, when a process holds a context, and when it is
//! as busy as can be.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;

use super::brief;
use super::check::Check;
use super::load::{Load, Running};
use super::trace::Trace;

/// Each level is held for so long, after so long.
const LEVEL_S: f64 = 10.0;
const SETTLE_S: f64 = 3.0;

type Start = fn(&Load) -> Result<Running>;

/// The section's text.
pub(super) fn measure(check: &Check<'_>) -> Result<String> {
    let mut text = format!("Others on the GPU before: {}.\n\n", holders(check.device));
    writeln!(
        text,
        "| | power, W | over, s | then °C | then SM clock, MHz |"
    )?;
    writeln!(text, "|---|--:|--:|--:|--:|")?;
    // Whoever held the GPU last may only just have gone.
    std::thread::sleep(check.time(SETTLE_S));
    let idle = level(check)?;
    row(&mut text, "no process of ours", check, idle)?;
    let states: [(&str, Start); 2] = [
        ("a process that holds a context", Load::context),
        ("full load", Load::full),
    ];
    let mut levels = vec![Some(idle.0)];
    for (name, start) in states {
        let held = check.load().and_then(start).and_then(|mut running| {
            std::thread::sleep(check.time(SETTLE_S));
            running.still_up()?;
            level(check)
        });
        match held {
            Ok(held) => {
                row(&mut text, name, check, held)?;
                levels.push(Some(held.0));
            }
            Err(why) => {
                writeln!(text, "| {name} | skipped: {} | | | |", brief(&why))?;
                levels.push(None);
            }
        }
    }
    if let [Some(idle), Some(context), Some(full)] = levels[..] {
        writeln!(
            text,
            "\nA context adds {:.1} W, the load {:.1} W more.",
            context - idle,
            full - context
        )?;
    }
    Ok(text)
}

/// Watts by the counter, and the seconds they are of.
fn level(check: &Check<'_>) -> Result<(f64, f64)> {
    let trace = Trace::look_for(check.device, check.time(LEVEL_S))?;
    let span = trace.span()?;
    Ok((span.watts(), span.seconds()))
}

fn row(
    text: &mut String,
    name: &str,
    check: &Check<'_>,
    (watts, seconds): (f64, f64),
) -> Result<()> {
    let known = |value: Option<u32>| value.map_or_else(String::new, |value| value.to_string());
    let temperature = check.device.temperature(TemperatureSensor::Gpu).ok();
    let clock = check.device.clock_info(Clock::SM).ok();
    writeln!(
        text,
        "| {name} | {watts:.1} | {seconds:.1} | {} | {} |",
        known(temperature),
        known(clock)
    )?;
    Ok(())
}

/// Who holds a context, as far as the driver tells.
fn holders(device: &Device<'_>) -> String {
    let processes = match device.running_compute_processes() {
        Ok(processes) => processes,
        Err(error) => return format!("not known ({error})"),
    };
    let named = processes.iter().map(|process| {
        // In a container the driver's process ids are those outside.
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid));
        let name = name.map_or_else(|_| String::new(), |name| format!(" {}", name.trim()));
        let memory = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => format!(", {} MiB", bytes >> 20),
            UsedGpuMemory::Unavailable => String::new(),
        };
        format!("process {}{name}{memory}", process.pid)
    });
    let named: Vec<String> = named.collect();
    if named.is_empty() {
        "nobody that the driver tells of".to_owned()
    } else {
        named.join("; ")
    }
}
