//! Boards that are split, and what their parts do.

use std::time::Duration;

use gpu_state::{Process, Segment, boottime_ns};
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::gpm_metrics_get;

use crate::machine::machine;

const SPLIT: &str = "noise_watts = 0\n[[device]]\nuuid = \"GPU-a\"\nmig = true\ngpm = true\n\
                     [[device.instance]]\nid = 7\nengines = [0]\n\
                     [[device.instance]]\nid = 2\nslices = 3\nuuid = \"MIG-x\"\nengines = [1, 2]\n";

#[test]
fn a_split_board_lists_its_mig_devices_which_have_neither_energy_nor_power() {
    let machine = machine(SPLIT);
    let board = machine.nvml.device_by_index(0).unwrap();
    assert_eq!(machine.nvml.device_count().unwrap(), 1);
    assert_eq!(board.mig_device_count().unwrap(), 7);
    assert!(!board.mig_is_mig_device_handle().unwrap());
    let mig = board.mig_device_by_index(1).unwrap();
    assert!(mig.mig_is_mig_device_handle().unwrap());
    assert_eq!(mig.uuid().unwrap(), "MIG-x");
    assert_eq!(mig.mig_parent_device().unwrap().uuid().unwrap(), "GPU-a");
    let absent = board.mig_device_by_index(2);
    assert!(matches!(absent, Err(NvmlError::NotFound)));
    let refused = [
        mig.total_energy_consumption().map(drop),
        mig.power_usage().map(drop),
        mig.enforced_power_limit().map(drop),
        board.utilization_rates().map(drop),
        board.process_utilization_stats(None).map(drop),
    ];
    for told in refused {
        assert!(matches!(told, Err(NvmlError::NotSupported)), "{told:?}");
    }
    assert_eq!(board.power_usage().unwrap(), 83_000);
}

#[test]
fn processes_are_on_the_instance_whose_engine_they_drive() {
    let machine = machine(SPLIT);
    let board = machine.nvml.device_by_index(0).unwrap();
    let pid = std::process::id();
    let process = Process {
        pid,
        memory_bytes: 1 << 30,
    };
    let _context = machine.state.open_context(2, process).unwrap();
    let listed = board.running_compute_processes().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].pid, listed[0].gpu_instance_id), (pid, Some(2)));
}

#[test]
fn monitors_tell_what_an_instance_did_between_two_samples() {
    let machine = machine(SPLIT);
    let (nvml, state) = (&machine.nvml, &machine.state);
    let board = nvml.device_by_index(0).unwrap();
    let mut writer = state.writer(1).unwrap();
    let start_ns = boottime_ns() + 1_000_000;
    // A prompt that is read all the time.
    writer
        .publish(Segment {
            start_ns,
            end_ns: start_ns + 2_000_000_000,
            energy_uj: 2 * 397_000_000,
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(board.gpm_support().unwrap());
    let first = [7, 2].map(|id| board.gpm_mig_sample(id).unwrap());
    let early = [2].map(|id| board.gpm_mig_sample(id).unwrap());
    std::thread::sleep(Duration::from_millis(300));
    let second = [7, 2].map(|id| board.gpm_mig_sample(id).unwrap());
    let metrics = [
        GpmMetricId::GraphicsUtil,
        GpmMetricId::SmUtil,
        GpmMetricId::AnyTensorUtil,
        GpmMetricId::DramBwUtil,
    ];
    let told = |place: usize| -> Vec<f64> {
        let told = gpm_metrics_get(nvml, &first[place], &second[place], &metrics).unwrap();
        told.into_iter()
            .map(|metric| metric.unwrap().value.round())
            .collect()
    };
    assert_eq!(told(0), [0.0; 4]);
    assert_eq!(told(1), [100.0, 100.0, 70.0, 40.0]);
    let too_close = gpm_metrics_get(nvml, &first[1], &early[0], &metrics);
    assert!(matches!(too_close, Err(NvmlError::InvalidArg)));
    let others = gpm_metrics_get(nvml, &first[0], &second[1], &metrics);
    assert!(matches!(others, Err(NvmlError::InvalidArg)));
    assert!(matches!(board.gpm_mig_sample(9), Err(NvmlError::NotFound)));
    let unknown = gpm_metrics_get(nvml, &first[0], &second[0], &[GpmMetricId::Fp64Util]).unwrap();
    assert!(matches!(unknown[0], Err(NvmlError::NotSupported)));
}

#[test]
fn an_ampere_has_instances_and_no_monitors_and_a_board_that_is_whole_has_none() {
    let machine = machine("[[device]]\nmig = true\n[[device.instance]]\nid = 1\n[[device]]\n");
    let split = machine.nvml.device_by_index(0).unwrap();
    assert!(!split.gpm_support().unwrap());
    assert!(matches!(
        split.gpm_mig_sample(1),
        Err(NvmlError::NotSupported)
    ));
    assert!(split.mig_device_by_index(0).is_ok());
    let whole = machine.nvml.device_by_index(1).unwrap();
    assert_eq!(whole.mig_device_count().unwrap(), 0);
    assert!(matches!(
        whole.mig_device_by_index(0),
        Err(NvmlError::NotSupported)
    ));
}
