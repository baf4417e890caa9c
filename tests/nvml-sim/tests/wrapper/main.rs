//! The library as the agent meets it: loaded from its file by the real nvml-wrapper.

mod machine;
mod mig;

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use gpu_state::{Process, Segment, boottime_ns};
use nvml_sim::{counter_at, last_tick_ns};
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use object::{Object as _, ObjectSymbol as _};

use machine::{TURN, library, load, machine};

#[test]
fn devices_say_who_they_are_and_that_they_are_simulated() {
    let machine = machine("[[device]]\n[[device]]\nname = \"NVIDIA H100\"\nuuid = \"GPU-x\"\n");
    let nvml = &machine.nvml;
    assert_eq!(nvml.sys_driver_version().unwrap(), "550.54.15");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "12.550.54.15");
    assert_eq!(nvml.device_count().unwrap(), 2);
    let second = nvml.device_by_uuid("GPU-x").unwrap();
    assert_eq!(second.index().unwrap(), 1);
    assert_eq!(second.name().unwrap(), "NVIDIA H100 (simulated)");
    assert_eq!(second.uuid().unwrap(), "GPU-x");
    let pci = second.pci_info().unwrap();
    assert_eq!((pci.bus, pci.bus_id.as_str()), (2, "00000000:02:00.0"));
    assert!(matches!(
        nvml.device_by_index(2),
        Err(NvmlError::InvalidArg)
    ));
    assert!(matches!(
        nvml.device_by_uuid("GPU-y"),
        Err(NvmlError::NotFound)
    ));
}

#[test]
fn the_counter_read_through_the_wrapper_is_the_one_rust_callers_get() {
    let machine = machine("tick_ms = 20\n");
    let device = machine.nvml.device_by_index(0).unwrap();
    let mut writer = machine.state.writer(0).unwrap();
    let start_ns = boottime_ns() + 1_000_000;
    let end_ns = start_ns + 10_000_000_000;
    writer
        .publish(Segment {
            start_ns,
            end_ns,
            energy_uj: 2_000_000_000,
        })
        .unwrap();
    let begun = Instant::now();
    let mut values = Vec::new();
    while begun.elapsed() < Duration::from_millis(300) {
        let before = boottime_ns();
        let seen = device.total_energy_consumption().unwrap();
        let after = boottime_ns();
        // Between two ticks there is one right answer.
        let tick = last_tick_ns(&machine.scenario, before);
        if tick == last_tick_ns(&machine.scenario, after) {
            assert_eq!(
                counter_at(&machine.scenario, &machine.state, 0, before),
                Some(seen)
            );
            values.push((tick, seen));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(values.is_sorted());
    values.dedup();
    assert!(values.len() >= 8, "ticks of 20 ms in 300 ms: {values:?}");
    let ((first, start), (last, end)) = (values[0], values[values.len() - 1]);
    let watts = (end - start) as f64 * 1e-3 / ((last - first) as f64 * 1e-9);
    assert!((283.0 * 0.9..283.0 * 1.1).contains(&watts), "{watts} W");
}

#[test]
fn field_values_carry_counter_power_and_limits_with_their_types() {
    let machine = machine("noise_watts = 0\n[[device]]\nlimit_watts = 350\n");
    let device = machine.nvml.device_by_index(0).unwrap();
    let fields = [83, 185, 186, 191, 187, 188, 190, 60].map(FieldId);
    let values = device.field_values_for(&fields).unwrap();
    let value = |place: usize| values[place].as_ref().unwrap().value.as_ref();
    let (SampleValue::U64(energy), SampleValue::U64(same)) = (value(0).unwrap(), value(3).unwrap())
    else {
        panic!("energy is an unsigned long long");
    };
    assert!(same.abs_diff(*energy) <= 8_300);
    for (place, milliwatts) in [
        (1, 83_000),
        (2, 83_000),
        (4, 100_000),
        (5, 400_000),
        (6, 350_000),
    ] {
        let SampleValue::U32(seen) = value(place).unwrap() else {
            panic!("not unsigned int")
        };
        assert_eq!(*seen, milliwatts, "field {}", fields[place].0);
    }
    assert!(matches!(value(7), Err(NvmlError::NotSupported)));
    let taken = values[0].as_ref().unwrap().timestamp;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64;
    assert!((now - 10_000_000..=now).contains(&taken));
}

#[test]
fn limits_and_power_are_readable_one_by_one() {
    let machine = machine("noise_watts = 0\n");
    let device = machine.nvml.device_by_index(0).unwrap();
    assert_eq!(device.power_usage().unwrap(), 83_000);
    assert_eq!(device.enforced_power_limit().unwrap(), 400_000);
    assert_eq!(device.power_management_limit().unwrap(), 400_000);
    assert_eq!(device.power_management_limit_default().unwrap(), 400_000);
    let constraints = device.power_management_limit_constraints().unwrap();
    assert_eq!(
        (constraints.min_limit, constraints.max_limit),
        (100_000, 400_000)
    );
}

#[test]
fn processes_are_listed_while_they_hold_a_context() {
    let machine = machine("");
    let device = machine.nvml.device_by_index(0).unwrap();
    assert_eq!(device.running_compute_processes().unwrap(), []);
    let process = Process {
        pid: std::process::id(),
        memory_bytes: 70 << 30,
    };
    let context = machine.state.open_context(0, process).unwrap();
    let listed = device.running_compute_processes().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].pid, process.pid);
    assert_eq!(listed[0].used_gpu_memory, UsedGpuMemory::Used(70 << 30));
    assert_eq!(
        (listed[0].gpu_instance_id, listed[0].compute_instance_id),
        (None, None)
    );
    drop(context);
    assert_eq!(device.running_compute_processes().unwrap(), []);
}

#[test]
fn what_is_unsupported_or_missing_says_so() {
    let machine = machine("[faults]\nunsupported = [\"energy\", \"power_average\", \"limits\"]\n");
    let device = machine.nvml.device_by_index(0).unwrap();
    assert!(matches!(
        device.total_energy_consumption(),
        Err(NvmlError::NotSupported)
    ));
    assert!(matches!(
        device.enforced_power_limit(),
        Err(NvmlError::NotSupported)
    ));
    let values = device
        .field_values_for(&[83, 185, 186].map(FieldId))
        .unwrap();
    let supported: Vec<bool> = values
        .iter()
        .map(|value| value.as_ref().unwrap().value.is_ok())
        .collect();
    assert_eq!(supported, [false, false, true]);
    assert!(device.power_usage().is_ok());
    assert!(matches!(
        device.performance_state(),
        Err(NvmlError::FailedToLoadSymbol(_))
    ));
}

#[test]
fn a_lost_device_comes_back_with_its_counter_at_zero() {
    let machine = machine("[faults]\nlost_at_s = 0.3\nback_at_s = 0.6\n");
    let device = machine.nvml.device_by_index(0).unwrap();
    let created = machine.state.created_ns();
    let sleep_until = |after_ms: u64| {
        let wait = (created + after_ms * 1_000_000).saturating_sub(boottime_ns());
        std::thread::sleep(Duration::from_nanos(wait));
    };
    sleep_until(400);
    assert!(matches!(
        device.total_energy_consumption(),
        Err(NvmlError::GpuLost)
    ));
    assert!(matches!(device.power_usage(), Err(NvmlError::GpuLost)));
    sleep_until(900);
    let energy = device.total_energy_consumption().unwrap();
    let age_ms = (boottime_ns() - created) / 1_000_000;
    assert!(
        energy <= 83 * (age_ms - 600) + 3_400,
        "{energy} mJ after {age_ms} ms"
    );
}

#[test]
fn a_slow_driver_makes_every_call_wait() {
    let machine = machine("[faults]\nslow_call_ms = 30\n");
    let device = machine.nvml.device_by_index(0).unwrap();
    let begun = Instant::now();
    device.power_usage().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_broken_scenario_fails_at_init_and_a_good_one_still_loads() {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scenario.toml");
    std::fs::write(&path, "no_such_key = 1").unwrap();
    assert!(matches!(load(&path), Err(NvmlError::DriverNotLoaded)));
    std::fs::write(&path, "").unwrap();
    let nvml = load(&path).unwrap();
    assert_eq!(nvml.device_count().unwrap(), 1);
    // The next test's library must not find this one's still open.
    drop(nvml);
    drop(turn);
}

#[test]
fn two_users_in_one_process_share_the_library_until_both_have_left() {
    let machine = machine("");
    let second = Nvml::builder()
        .lib_path(library().as_os_str())
        .init()
        .unwrap();
    drop(second);
    assert_eq!(machine.nvml.device_count().unwrap(), 1);
}

#[test]
fn the_list_of_functions_is_what_the_library_exports() {
    let bytes = std::fs::read(library()).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let mut exported: Vec<&str> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.starts_with("nvml"))
        .collect();
    exported.sort_unstable();
    assert_eq!(exported, nvml_sim::FUNCTIONS);
}

#[test]
fn a_monitors_readings_are_the_scenarios() {
    let machine = machine(
        "[[device]]\nsm_clock_mhz = 1200\ntemperature_c = 55\nmig = true\ncompute_mode = 3\n\
         nvlink_bytes_per_s = 1024e3\nmodule_watts = 500\n\
         [[device.throttle]]\nreasons = 0x24\nfrom_s = 0\nuntil_s = 3600\n",
    );
    let device = machine.nvml.device_by_index(0).unwrap();
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 1_200);
    assert_eq!(device.clock_info(Clock::Memory).unwrap(), 1_593);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 55);
    assert_eq!(device.current_throttle_reasons().unwrap().bits(), 0x24);
    assert_eq!(device.mig_mode().unwrap().current, 1);
    assert_eq!(device.memory_info().unwrap().total, 80 << 30);
    let sent = device.pcie_throughput(PcieUtilCounter::Send).unwrap();
    assert_eq!(sent, 2_000);
    assert!(matches!(
        device.utilization_rates(),
        Err(NvmlError::NotSupported)
    ));
    assert!(device.compute_mode().is_ok() && device.virtualization_mode().is_ok());
    // Counters of traffic rise; without a scope the wrapper cannot ask for those of all links.
    let count = || {
        let values = device.field_values_for(&[FieldId(197)]).unwrap();
        match values[0].as_ref().unwrap().value.as_ref().unwrap() {
            SampleValue::U64(bytes) => *bytes,
            other => panic!("{other:?}"),
        }
    };
    let before = count();
    std::thread::sleep(Duration::from_millis(50));
    assert!(count() > before + 80_000);
}

#[test]
fn processes_use_the_device_in_samples_that_are_told_once() {
    let machine = machine("");
    let device = machine.nvml.device_by_index(0).unwrap();
    assert!(matches!(
        device.process_utilization_stats(None),
        Err(NvmlError::NotFound)
    ));
    let process = Process {
        pid: std::process::id(),
        memory_bytes: 1 << 30,
    };
    let _context = machine.state.open_context(0, process).unwrap();
    let samples = device.process_utilization_stats(None).unwrap();
    assert_eq!(samples.len(), 1);
    assert_eq!((samples[0].pid, samples[0].sm_util), (process.pid, 0));
    let again = device.process_utilization_stats(samples[0].timestamp);
    // The driver may have taken the next one meanwhile.
    match again {
        Err(error) => assert!(matches!(error, NvmlError::NotFound), "{error}"),
        Ok(newer) => assert!(newer[0].timestamp > samples[0].timestamp),
    }
}

#[test]
fn an_error_is_told_once_to_who_waits_for_it() {
    let machine = machine("[[device]]\n[[device.xid]]\nat_s = 0.2\ncode = 79\n");
    let nvml = &machine.nvml;
    let device = nvml.device_by_index(0).unwrap();
    let set = nvml.create_event_set().unwrap();
    let set = device
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .unwrap();
    let event = set.wait(2_000).unwrap();
    assert_eq!(event.event_data, Some(XidError::Value(79)));
    assert_eq!(event.device.index().unwrap(), 0);
    assert!(matches!(set.wait(10), Err(NvmlError::Timeout)));
    set.release_events().unwrap();
}

#[test]
fn a_device_that_appears_late_is_not_there_before() {
    let machine = machine("[[device]]\n[[device]]\nuuid = \"GPU-late\"\nappears_at_s = 0.5\n");
    let nvml = &machine.nvml;
    assert_eq!(nvml.device_count().unwrap(), 1);
    assert!(nvml.device_by_uuid("GPU-late").is_err());
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(nvml.device_count().unwrap(), 2);
    assert_eq!(nvml.device_by_index(1).unwrap().uuid().unwrap(), "GPU-late");
}

#[test]
fn a_fault_changes_one_call_and_the_log_names_every_call() {
    let machine = machine(
        "call_log = \"calls\"\n\
         [[fault]]\ncall = \"nvmlDeviceGetTemperature\"\nanswer = \"no_permission\"\n\
         [[fault]]\ncall = \"field:186\"\nanswer = \"not_supported\"\n\
         [[fault]]\ncall = \"nvmlDeviceGetName\"\ndelay_ms = 30\n\
         [[fault]]\ncall = \"nvmlDeviceGetPowerUsage\"\ndevice = 1\nanswer = \"gpu_is_lost\"\n",
    );
    let device = machine.nvml.device_by_index(0).unwrap();
    assert!(matches!(
        device.temperature(TemperatureSensor::Gpu),
        Err(NvmlError::NoPermission)
    ));
    let values = device.field_values_for(&[83, 186].map(FieldId)).unwrap();
    assert!(values[0].as_ref().unwrap().value.is_ok());
    assert!(values[1].as_ref().unwrap().value.is_err());
    let begun = Instant::now();
    device.name().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(30));
    assert!(device.power_usage().is_ok(), "another device's fault");
    let log = std::fs::read_to_string(machine.scenario.call_log.as_ref().unwrap()).unwrap();
    let calls: Vec<&str> = log.lines().collect();
    assert!(calls.contains(&"nvmlInit_v2") && calls.contains(&"nvmlDeviceGetTemperature"));
    assert!(calls.contains(&"field:83"), "{calls:?}");
}
