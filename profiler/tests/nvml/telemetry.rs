//! What boards show beside their energy.

use std::time::{Duration, Instant};

use gpu_state::{Process, Segment, boottime_ns};
use profiler::finding::{Finding, Status};
use profiler::meters::{News, examine};
use profiler::telemetry::{GpuTelemetry, ThrottleReason};
use profiler::units::{Celsius, Hertz, Watts};

use crate::driver::Driver;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_board_shows_what_the_driver_knows() {
    let driver = Driver::play(
        "[[device]]\nuuid = \"GPU-a\"\nsm_clock_mhz = 1200\ntemperature_c = 55\nmodule_watts = 500\n\
         min_limit_watts = 150\nlimit_watts = 350\nmax_limit_watts = 400\ncompute_mode = 3\n\
         virtualization = 1\npcie_bytes_per_s = 1e6\nnvlink_bytes_per_s = 4.096e6\n\
         [[device.throttle]]\nreasons = 0x24\nfrom_s = 0\n",
    );
    let me = Process {
        pid: std::process::id(),
        memory_bytes: 10 << 30,
    };
    let _context = driver.state.open_context(0, me).expect("a context");
    let mut writer = driver.state.writer(0).expect("a writer");
    let start_ns = boottime_ns() + 1_000_000;
    writer
        .publish(Segment {
            start_ns,
            end_ns: start_ns + 10_000_000_000,
            energy_uj: 1_600_000_000,
        })
        .expect("room");
    let mut source = driver.start();
    source.listen_for(3 * SECOND + SECOND / 2);
    let seen = source.telemetry("GPU-a").expect("a look");
    assert_eq!(seen.limits.enforced, Some(Watts(350.0)));
    assert_eq!(seen.limits.min, Some(Watts(150.0)));
    assert_eq!(seen.limits.max, Some(Watts(400.0)));
    assert_eq!(seen.module_power, Some(Watts(500.0)));
    assert_eq!(seen.sm_clock, Some(Hertz(1.2e9)));
    assert_eq!(seen.memory_clock, Some(Hertz(1.593e9)));
    assert_eq!(seen.temperature, Some(Celsius(55.0)));
    let memory = seen.memory.expect("memory");
    assert_eq!(memory.used, 10 << 30);
    assert_eq!(memory.used + memory.free + memory.reserved, 80 << 30);
    assert_eq!(seen.modes.mig, Some(false));
    assert_eq!(seen.modes.compute, Some("exclusive_process"));
    assert_eq!(seen.modes.virtualization, Some("passthrough"));
    // 160 W above idle of 267 W.
    let busy = seen.utilization.expect("utilisation");
    assert!((0.59..=0.61).contains(&busy.gpu.0), "{busy:?}");
    // Looks at about 0, 1, 2 and 3 s.
    let throttled = seen.throttled.expect("reasons");
    for (reason, nanos) in ThrottleReason::ALL.iter().zip(throttled) {
        let held = matches!(
            reason,
            ThrottleReason::SwPowerCap | ThrottleReason::SwThermal
        );
        let expected = if held { 2.5..3.5 } else { -0.1..0.1 };
        assert!(
            expected.contains(&(nanos as f64 * 1e-9)),
            "{reason:?} {nanos}"
        );
    }
    for (bytes, rate) in [
        (seen.pcie.sent, 1e6),
        (seen.pcie.received, 1e6),
        (seen.nvlink.sent, 4.096e6),
        (seen.nvlink.received, 4.096e6),
    ] {
        let bytes = bytes.expect("counted") as f64;
        assert!(
            (2.5 * rate..3.5 * rate).contains(&bytes),
            "{bytes} of {rate}"
        );
    }
    assert_eq!(seen.pcie.sent_rate, None, "counted");
    let latency = seen.field_latency.expect("the driver tells");
    assert!(latency < SECOND / 10, "{latency:?}");

    // Each of the driver's samples is told once.
    let samples: Vec<_> = source
        .news
        .iter()
        .filter_map(|news| match news {
            News::Utilization(told) => Some(told),
            _ => None,
        })
        .collect();
    assert!((2..=4).contains(&samples.len()), "{}", samples.len());
    assert!(samples.iter().all(|told| told.processes[0].pid == me.pid));
    let state = source.state("nvml-telemetry").expect("a state");
    assert!(state.up && state.errors == 0 && state.latency_p99.is_some());
    source.end();
}

#[test]
fn what_a_board_does_not_have_is_asked_for_once_and_where_bytes_are_not_counted_their_rate_is_shown()
 {
    let driver = Driver::play(
        "[[device]]\nuuid = \"GPU-a\"\npcie_bytes_per_s = 3e6\n\
         [[fault]]\ncall = \"nvmlDeviceGetTemperature\"\nanswer = \"not_supported\"\n\
         [[fault]]\ncall = \"field:197\"\nanswer = \"not_supported\"\n",
    );
    let mut source = driver.start();
    source.listen_for(3 * SECOND + SECOND / 2);
    let seen = source.telemetry("GPU-a").expect("a look");
    assert_eq!(seen.temperature, None);
    assert_eq!(seen.pcie.sent, None);
    assert_eq!(seen.pcie.sent_rate, Some(3e6));
    assert!(seen.pcie.received.is_some());
    assert_eq!(seen.pcie.received_rate, None);
    assert_eq!(driver.calls("nvmlDeviceGetTemperature"), 1);
    assert_eq!(driver.calls("field:197"), 1);
    assert!(driver.calls("nvmlDeviceGetClockInfo") >= 6);
    // It waits for 20 ms inside the driver.
    assert!(driver.calls("nvmlDeviceGetPcieThroughput") <= 2);
    source.end();
}

#[test]
fn a_change_of_the_mig_mode_is_noticed_and_all_else_is_asked_again() {
    let driver = Driver::play("[[device]]\nuuid = \"GPU-a\"\nmig = true\nmig_changes_at_s = 2.5\n");
    let mut source = driver.start();
    source.listen_for(2 * SECOND);
    let split = source.telemetry("GPU-a").expect("a look");
    assert_eq!(split.modes.mig, Some(true));
    assert_eq!(split.utilization, None, "a split board tells none");
    source.listen_for(3 * SECOND);
    let whole = source.telemetry("GPU-a").expect("a look");
    assert_eq!(whole.modes.mig, Some(false));
    assert!(whole.utilization.is_some());
    source.end();
}

#[test]
fn a_critical_error_is_told_also_of_a_board_that_is_lost_with_it() {
    let driver = Driver::play(
        "[[device]]\nuuid = \"GPU-a\"\n[[device]]\nuuid = \"GPU-b\"\n\
         [[device.xid]]\nat_s = 1.2\ncode = 79\n\
         [[fault]]\ncall = \"*\"\ndevice = 1\nanswer = \"gpu_is_lost\"\nfrom_s = 1.2\n",
    );
    let mut source = driver.start();
    source.listen_for(3 * SECOND + SECOND / 2);
    let errors: Vec<_> = source
        .news
        .iter()
        .filter_map(|news| match news {
            News::CriticalErrors(errors) => Some(errors),
            _ => None,
        })
        .collect();
    assert_eq!(errors.len(), 1, "once");
    assert_eq!(errors[0].device, "GPU-b");
    assert_eq!(errors[0].counts.get(&79), Some(&1));
    let looks = |device: &str| {
        let of = |news: &&News| matches!(news, News::Telemetry(told) if told.device == device);
        source.news.iter().filter(of).count()
    };
    assert!(looks("GPU-a") >= 3, "the other goes on");
    assert!(looks("GPU-b") <= 2);
    let state = source.state("nvml-telemetry").expect("a state");
    let error = state.error.expect("a board is lost");
    assert!(!state.up && error.contains("GPU-b"), "{error}");
    source.end();
}

#[test]
fn doctor_says_of_each_board_what_it_does_not_have_and_what_fails() {
    let driver = Driver::play(
        "[[device]]\nuuid = \"GPU-a\"\n[[device]]\nuuid = \"GPU-b\"\n\
         [[fault]]\ncall = \"nvmlDeviceGetTemperature\"\ndevice = 0\nanswer = \"not_supported\"\n\
         [[fault]]\ncall = \"nvmlDeviceGetProcessUtilization\"\ndevice = 1\n\
         answer = \"no_permission\"\n",
    );
    let findings = examine(&driver.config());
    let of = |id: &str| -> Finding {
        let found = findings.iter().find(|finding| finding.id == id);
        found.cloned().expect(id)
    };
    let first = of("nvml.GPU-a.readings");
    assert_eq!((first.status, first.fix), (Status::Pass, None));
    // No superchip, so no module either; where bytes are counted their rate is not asked for.
    let absent = "20 readings; not supported: module power, temperature, activity (GPM)";
    assert_eq!(first.found, absent);
    let second = of("nvml.GPU-b.readings");
    assert_eq!(second.status, Status::Warn);
    assert!(second.fix.is_some());
    let failing = "failing: utilisation by process (";
    assert!(second.found.contains(failing), "{}", second.found);
    assert_eq!(of("nvml.GPU-a").status, Status::Pass);
}

#[test]
fn doctor_does_not_wait_for_a_call_that_hangs_and_says_so() {
    let driver = Driver::play(
        "[[device]]\nuuid = \"GPU-a\"\n[[device]]\nuuid = \"GPU-b\"\n\
         [[fault]]\ncall = \"nvmlDeviceGetTemperature\"\ndevice = 1\nhangs = true\nuntil_s = 15\n",
    );
    let begun = Instant::now();
    let findings = examine(&driver.config());
    assert!(begun.elapsed() < 15 * SECOND);
    let of = |id: &str| findings.iter().find(|finding| finding.id == id);
    assert!(of("nvml.GPU-a.readings").is_some());
    assert!(of("nvml.GPU-b.readings").is_none());
    let hung = of("nvml.readings").expect("it hangs");
    assert_eq!(hung.status, Status::Fail);
    // The thread that was left behind holds the library until then.
    driver.wait_until(16);
}

/// A look with nothing in it but what every look has.
pub(crate) fn bare(told: &GpuTelemetry) -> GpuTelemetry {
    GpuTelemetry {
        device: told.device.clone(),
        at: told.at,
        ..GpuTelemetry::default()
    }
}
