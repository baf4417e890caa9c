//! Every function that the simulated driver exports is unsupported in turn: all else goes on.

use std::time::Duration;

use profiler::export::{Encoding, Format, Metrics};
use profiler::ledger::{MeterId, Source as Kind};
use profiler::meters::News;
use profiler::telemetry::{GpuTelemetry, PowerLimits, Traffic};

use crate::driver::{Driver, Source, readings};
use crate::telemetry::bare;

const DEVICE: &str = "GPU-a";
/// Without these nothing can be asked of a board.
const NEEDED: [&str; 4] = [
    "nvmlInit_v2",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetUUID",
];
const FIELDS: [&str; 6] = [
    "field:83",
    "field:186",
    "field:138",
    "field:139",
    "field:197",
    "field:198",
];

#[test]
fn with_every_function_unsupported_in_turn_all_else_goes_on() {
    let whole = run("");
    assert_eq!(whole.kind, Some(Kind::Counter));
    let calls = nvml_sim::FUNCTIONS.iter().chain(&FIELDS);
    for call in calls {
        for answer in ["not_supported", "function_not_found"] {
            let told = run(&format!(
                "[[fault]]\ncall = \"{call}\"\nanswer = \"{answer}\"\n"
            ));
            let what = format!("{call} {answer}");
            if NEEDED.contains(call) {
                assert!(told.kind.is_none() && told.telemetry.is_none(), "{what}");
                assert!(told.metrics.is_empty(), "{what}: {:?}", told.metrics);
                continue;
            }
            // The counter is a field and a function; so is power.
            assert_eq!(told.kind, Some(Kind::Counter), "{what}");
            assert!(told.rises, "{what}: energy is measured");
            let seen = told.telemetry.expect(&what);
            let wanted = without(call, whole.telemetry.as_ref().expect("a look"));
            assert_eq!(shape(&seen), shape(&wanted), "{what}");
            let names = |metrics: &[String]| metrics.join(" ");
            let lost = whole
                .metrics
                .iter()
                .filter(|series| !told.metrics.contains(series));
            let lost: Vec<String> = lost.cloned().collect();
            assert_eq!(names(&lost), series_of(call), "{what}");
        }
    }
}

#[test]
fn without_a_counter_power_is_integrated_and_without_both_there_is_no_meter_and_no_zero() {
    let absent = |calls: &[&str]| {
        let fault =
            |call: &&str| format!("[[fault]]\ncall = \"{call}\"\nanswer = \"not_supported\"\n");
        calls.iter().map(fault).collect::<String>()
    };
    let counters = ["field:83", "nvmlDeviceGetTotalEnergyConsumption"];
    let told = run(&absent(&counters));
    assert_eq!(told.kind, Some(Kind::Integrated));
    assert!(told.rises);
    let powers = ["field:186", "nvmlDeviceGetPowerUsage"];
    let told = run(&absent(&[counters, powers].concat()));
    assert_eq!(told.kind, None);
    assert!(told.metrics.iter().all(|series| !series.contains("joules")));
}

/// What a source told within a second.
struct Told {
    kind: Option<Kind>,
    /// Its energy was seen to rise.
    rises: bool,
    telemetry: Option<GpuTelemetry>,
    /// Names of the GPU's series.
    metrics: Vec<String>,
}

fn run(faults: &str) -> Told {
    let driver = Driver::play(&format!(
        "tick_ms = 20\n[[device]]\nuuid = \"{DEVICE}\"\n{faults}"
    ));
    let mut source = driver.start();
    let measured = !source.meters.is_empty();
    let wait = Duration::from_millis(if measured { 4_000 } else { 300 });
    source.listen(wait, |news| {
        let telemetry = |news: &News| matches!(news, News::Telemetry(_));
        readings(news, 0).len() >= 3 && news.iter().any(telemetry)
    });
    let seen = source.readings(0);
    let rises = seen.windows(2).all(|pair| pair[1].energy > pair[0].energy) && seen.len() >= 3;
    let told = Told {
        kind: source.meters.first().map(|meter| meter.source),
        rises,
        telemetry: source.telemetry(DEVICE),
        metrics: gpu_series(&source),
    };
    source.end();
    told
}

/// The GPU's series as a scrape shows them, without labels.
fn gpu_series(source: &Source) -> Vec<String> {
    let mut metrics = Metrics::new("test");
    for (id, meter) in source.meters.iter().enumerate() {
        metrics.describe_meter(MeterId(id as u32), meter);
    }
    if let Some(telemetry) = source.telemetry(DEVICE) {
        metrics.record_gpu_telemetry(telemetry);
    }
    for news in &source.news {
        if let News::Power { sample, .. } = news {
            metrics.record_gpu_power(DEVICE, Some(sample.power));
        }
    }
    metrics.publish(profiler::clock::Timestamp::now(), None);
    let snapshot = metrics.exposition().latest().expect("a snapshot");
    let text = snapshot.body(Format::Text, Encoding::Identity);
    let text = String::from_utf8_lossy(&text);
    let mut names: Vec<String> = text
        .lines()
        .filter(|line| line.contains("device="))
        .filter_map(|line| line.split('{').next())
        .map(|name| name.trim_start_matches("perjoule_").to_owned())
        .collect();
    names.dedup();
    names
}

/// Which parts of a look are known, whatever their values.
fn shape(told: &GpuTelemetry) -> String {
    let GpuTelemetry {
        limits,
        module_power,
        sm_clock,
        memory_clock,
        temperature,
        memory,
        utilization,
        throttled,
        pcie,
        nvlink,
        modes,
        ..
    } = told;
    let PowerLimits { enforced, min, max } = limits;
    let traffic = |traffic: &Traffic| {
        let Traffic {
            sent,
            received,
            sent_rate,
            received_rate,
        } = traffic;
        format!(
            "{} {} {} {}",
            sent.is_some(),
            received.is_some(),
            sent_rate.is_some(),
            received_rate.is_some()
        )
    };
    format!(
        "limits {} {} {}, module {}, clocks {} {}, temperature {}, memory {}, utilisation {}, \
         throttled {}, pcie {}, nvlink {}, modes {modes:?}",
        enforced.is_some(),
        min.is_some(),
        max.is_some(),
        module_power.is_some(),
        sm_clock.is_some(),
        memory_clock.is_some(),
        temperature.is_some(),
        memory.is_some(),
        utilization.is_some(),
        throttled.is_some(),
        traffic(pcie),
        traffic(nvlink),
    )
}

/// A look without what a function or field tells.
fn without(call: &str, whole: &GpuTelemetry) -> GpuTelemetry {
    let mut told = whole.clone();
    match call {
        "nvmlDeviceGetClockInfo" => (told.sm_clock, told.memory_clock) = (None, None),
        "nvmlDeviceGetComputeMode" => told.modes.compute = None,
        "nvmlDeviceGetEnforcedPowerLimit" => told.limits.enforced = None,
        "nvmlDeviceGetFieldValues" => {
            let bare = bare(whole);
            (told.pcie, told.nvlink) = (bare.pcie, bare.nvlink);
            (told.pcie.sent_rate, told.pcie.received_rate) = (Some(0.0), Some(0.0));
        }
        "nvmlDeviceGetMemoryInfo_v2" => told.memory = None,
        "nvmlDeviceGetMigMode" => told.modes.mig = None,
        "nvmlDeviceGetPowerManagementLimitConstraints" => {
            (told.limits.min, told.limits.max) = (None, None);
        }
        "nvmlDeviceGetTemperature" => told.temperature = None,
        "nvmlDeviceGetUtilizationRates" => told.utilization = None,
        "nvmlDeviceGetVirtualizationMode" => told.modes.virtualization = None,
        "field:138" => told.nvlink.sent = None,
        "field:139" => told.nvlink.received = None,
        "field:197" => (told.pcie.sent, told.pcie.sent_rate) = (None, Some(0.0)),
        "field:198" => (told.pcie.received, told.pcie.received_rate) = (None, Some(0.0)),
        _ => {}
    }
    told
}

/// The series that a GPU does not show without a function or field.
fn series_of(call: &str) -> &'static str {
    match call {
        "nvmlDeviceGetClockInfo" => "gpu_clock_hertz",
        "nvmlDeviceGetFieldValues" => {
            "gpu_field_latency_seconds gpu_nvlink_bytes_total gpu_pcie_bytes_total"
        }
        "nvmlDeviceGetMemoryInfo_v2" => "gpu_memory_bytes",
        "nvmlDeviceGetTemperature" => "gpu_temperature_celsius",
        "nvmlDeviceGetUtilizationRates" => "gpu_utilization_ratio",
        _ => "",
    }
}
