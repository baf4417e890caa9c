//! What GPUs show beside their energy. Readings of a source that has fallen silent are not shown;
//! its counters stay where they are.

use std::collections::BTreeMap;

use super::super::catalog::*;
use super::super::totals::{Gpu, Totals};
use super::{Families, SOURCE_SILENT};
use crate::clock::Timestamp;
use crate::ledger::FloorSource;
use crate::pods::PodNames;
use crate::telemetry::{GpuTelemetry, MigInstance, Modes, ThrottleReason, Traffic};

const NANOS: f64 = 1e9;

/// So long the kubelet is believed that says nothing more: it is being started again.
const KUBELET_SILENT: f64 = 300.0;

pub(super) fn families(out: &mut Families, totals: &Totals, now: Timestamp) {
    pods(out, totals, now);
    for (device, gpu) in &totals.gpus {
        let Gpu {
            name,
            driver,
            power,
            telemetry,
            errors,
            busy: (asked, busy),
            idle,
        } = gpu;
        if !name.is_empty() {
            out.number(&GPU_INFO, &[device, name, driver], 1.0);
        }
        out.known(&GPU_POWER, &[device], power.shown().map(|power| power.0));
        if let Some(floor) = idle {
            let source = FloorSource::name(floor.map(|floor| floor.source));
            out.number(&GPU_IDLE_INFO, &[device, source], 1.0);
            out.known(&GPU_IDLE, &[device], floor.map(|floor| floor.watts.0));
        }
        for (number, count) in errors {
            let number = match number {
                0 => "other".to_owned(),
                number => number.to_string(),
            };
            out.number(&GPU_XID_ERRORS, &[device, &number], *count as f64);
        }
        if is_fresh(*asked, now) {
            for (service, part) in busy {
                let service = totals.service_names.name(*service);
                out.number(&SERVICE_GPU_UTILIZATION, &[service, device], part.0);
            }
        }
        if let Some(telemetry) = telemetry {
            counters(out, device, telemetry);
            if is_fresh(telemetry.at, now) {
                readings(out, device, telemetry);
            }
        }
    }
}

/// Which containers have GPUs. An instance (MIG) is shown with the GPU that it is of, where that is
/// known.
fn pods(out: &mut Families, totals: &Totals, now: Timestamp) {
    let Some((at, pods)) = &totals.gpu_pods else {
        return;
    };
    if now.seconds_since(*at) > KUBELET_SILENT {
        return;
    }
    let instances: BTreeMap<&str, &str> = totals
        .gpus
        .iter()
        .filter_map(|(device, gpu)| Some((device, gpu.telemetry.as_ref()?)))
        .flat_map(|(device, telemetry)| telemetry.instances.iter().map(move |of| (device, of)))
        .map(|(device, instance)| (instance.uuid.as_str(), device.as_str()))
        .collect();
    for pod in pods {
        let (device, uuid) = match instances.get(pod.device.as_str()) {
            Some(device) => (*device, pod.device.as_str()),
            None => (pod.device.as_str(), ""),
        };
        let PodNames {
            namespace,
            pod: name,
            container,
        } = &pod.names;
        let labels = [
            device,
            uuid,
            namespace,
            name,
            container,
            &pod.resource,
            &pod.claim,
        ];
        out.number(&GPU_POD_INFO, &labels, 1.0);
    }
}

fn is_fresh(at: Timestamp, now: Timestamp) -> bool {
    now.seconds_since(at) <= SOURCE_SILENT
}

fn counters(out: &mut Families, device: &str, telemetry: &GpuTelemetry) {
    for (reason, nanos) in ThrottleReason::ALL
        .iter()
        .zip(telemetry.throttled.into_iter().flatten())
    {
        let seconds = nanos as f64 / NANOS;
        out.number(&GPU_THROTTLE, &[device, reason.name()], seconds);
    }
    for (family, traffic) in [
        (&GPU_PCIE_BYTES, &telemetry.pcie),
        (&GPU_NVLINK_BYTES, &telemetry.nvlink),
    ] {
        let Traffic { sent, received, .. } = traffic;
        for (direction, bytes) in [("sent", sent), ("received", received)] {
            let bytes = bytes.map(|bytes| bytes as f64);
            out.known(family, &[device, direction], bytes);
        }
    }
}

fn readings(out: &mut Families, device: &str, telemetry: &GpuTelemetry) {
    let limits = &telemetry.limits;
    for (limit, power) in [
        ("enforced", limits.enforced),
        ("min", limits.min),
        ("max", limits.max),
    ] {
        let watts = power.map(|power| power.0);
        out.known(&GPU_POWER_LIMIT, &[device, limit], watts);
    }
    let module = telemetry.module_power.map(|power| power.0);
    out.known(&GPU_MODULE_POWER, &[device], module);
    for (name, clock) in [
        ("sm", telemetry.sm_clock),
        ("memory", telemetry.memory_clock),
    ] {
        out.known(&GPU_CLOCK, &[device, name], clock.map(|clock| clock.0));
    }
    let degrees = telemetry.temperature.map(|temperature| temperature.0);
    out.known(&GPU_TEMPERATURE, &[device], degrees);
    if let Some(memory) = telemetry.memory {
        for (state, bytes) in [
            ("used", memory.used),
            ("free", memory.free),
            ("reserved", memory.reserved),
        ] {
            out.number(&GPU_MEMORY, &[device, state], bytes as f64);
        }
    }
    if let Some(busy) = telemetry.utilization {
        for (unit, part) in [("gpu", busy.gpu), ("memory", busy.memory)] {
            out.number(&GPU_UTILIZATION, &[device, unit], part.0);
        }
    }
    let Traffic {
        sent_rate,
        received_rate,
        ..
    } = telemetry.pcie;
    for (direction, rate) in [("sent", sent_rate), ("received", received_rate)] {
        out.known(&GPU_PCIE_RATE, &[device, direction], rate);
    }
    if let Some(activity) = telemetry.activity {
        for (part, ratio) in [
            ("graphics", activity.graphics),
            ("sm", activity.sm),
            ("occupancy", activity.occupancy),
            ("tensor", activity.tensor),
            ("memory", activity.memory),
        ] {
            let ratio = ratio.map(|ratio| ratio.0);
            out.known(&GPU_ACTIVITY, &[device, part], ratio);
        }
    }
    for MigInstance { id, slices, uuid } in &telemetry.instances {
        let labels = [device, &id.to_string(), &slices.to_string(), uuid];
        out.number(&GPU_INSTANCE_INFO, &labels, 1.0);
    }
    let latency = telemetry.field_latency.map(|latency| latency.as_secs_f64());
    out.known(&GPU_FIELD_LATENCY, &[device], latency);
    let Modes {
        mig,
        compute,
        virtualization,
    } = telemetry.modes;
    if telemetry.modes != Modes::default() {
        let mig = match mig {
            Some(true) => "enabled",
            Some(false) => "disabled",
            None => "",
        };
        let [compute, virtualization] = [compute, virtualization].map(Option::unwrap_or_default);
        out.number(&GPU_MODE_INFO, &[device, mig, compute, virtualization], 1.0);
    }
}
