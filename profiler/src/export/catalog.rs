//! Every metric the agent can show: name, kind, labels and help, in one table.
//!
//! The exposition, the tests of the dashboards and the metrics' documentation all read it; a
//! name that is not here does not exist.

/// What kind of series a family holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Never falls while the agent lives.
    Counter,
    /// Goes up and down, or holds a constant 1.
    Gauge,
    /// Cumulative buckets, sum and count.
    Histogram,
}

/// One metric family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Full name, with unit and, for a counter, `_total`.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// One sentence for `# HELP`.
    pub help: &'static str,
    /// The heading under which it is documented.
    pub section: &'static str,
}

/// Labels that only what runs in Kubernetes has; elsewhere they are left out.
pub(super) const POD_LABELS: [&str; 3] = ["namespace", "pod", "container"];

macro_rules! families {
    ($($section:literal {
        $($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal)*
    })*) => {
        $($(
            #[doc = concat!("`", $name, "`")]
            pub(super) const $id: Family = Family {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
                section: $section,
            };
        )*)*
        /// Every family there is.
        pub const FAMILIES: &[Family] = &[$($($id),*),*];
    };
}

families! {
    "Energy" {
        METER_ENERGY Counter "perjoule_meter_energy_joules_total" ["component", "device", "source"]
            "Energy of one meter since the agent's first reading; summing over components is right."
        NODE_ENERGY Counter "perjoule_node_energy_joules_total" ["device"]
            "Energy of a meter of the whole machine; never to be added to its parts' meters."
        NODE_POWER Gauge "perjoule_node_power_watts" ["device"]
            "A node meter's own latest reading."
        ENERGY_ACCOUNT Counter "perjoule_energy_account_joules_total"
            ["component", "device", "account"]
            "Where a meter's energy went; the sum over account is the meter's energy."
        LEDGER_RESIDUAL Gauge "perjoule_ledger_residual_joules" []
            "Meters' energy less the sum of their accounts, from the integers: 0."
        SERVICE_ENERGY Counter "perjoule_service_energy_joules_total"
            ["service", "component", "part", "namespace", "pod", "container"]
            "A service's energy: given to its requests, or overhead with nothing in flight. Each pod that it ran in has a series."
    }
    "Requests and tokens" {
        REQUEST_ENERGY Histogram "perjoule_request_energy_joules" ["service", "route", "class"]
            "Active energy of one request over all components; class says how it was made."
        REQUESTS Counter "perjoule_requests_total"
            ["service", "route", "code", "outcome", "namespace", "pod", "container"]
            "Requests that ended; code is none where no status line was seen. Each pod that it ran in has a series."
        SESSIONS Counter "perjoule_sessions_total" ["service"]
            "Connections that switched to another protocol (101); the exchange that asked is no request."
        REQUEST_DURATION Histogram "perjoule_request_duration_seconds" ["service", "route"]
            "First byte read to last byte written; incomplete requests are left out."
        TIME_TO_FIRST_TOKEN Histogram "perjoule_time_to_first_token_seconds" ["service", "route"]
            "First byte read to first byte of the body, streamed responses only."
        TOKENS Counter "perjoule_tokens_total" ["service", "kind", "source"]
            "Tokens by the engine's own counters (server_metrics), else by what it says at a response's end (usage), else by streamed chunks times tokens per chunk (chunks)."
        TOKEN_ENERGY Counter "perjoule_token_energy_joules_total" ["service", "source"]
            "Active energy of the requests whose output tokens are counted."
        TOKENS_PER_CHUNK Gauge "perjoule_tokens_per_chunk" ["service"]
            "Tokens a streamed chunk holds, as learned; without it a chunk is taken for a token."
        ENGINE_REQUESTS Gauge "perjoule_engine_requests" ["service", "state"]
            "Requests in the engine by its own metrics: running or waiting."
    }
    "What services' threads did" {
        CPU_SECONDS Counter "perjoule_cpu_seconds_total" ["service"]
            "Time on CPU, summed over CPUs."
        RUN_QUEUE Histogram "perjoule_run_queue_latency_seconds" ["service"]
            "Time that threads were runnable and did not run: since waking up, or since losing the CPU."
        OFF_CPU Counter "perjoule_off_cpu_seconds_total" ["service", "reason"]
            "Time threads were off CPU, summed over threads, once each wait has ended; preempted is a part of the run queue's time, no other reason is."
        DISK_WAIT Histogram "perjoule_disk_wait_seconds" ["service"]
            "Waits of threads for a disk or in another uninterruptible state, each once it has ended."
        CONTEXT_SWITCHES Counter "perjoule_context_switches_total" ["service", "kind"]
            "Switches away from threads that blocked (voluntary) or stayed runnable (involuntary)."
        MIGRATIONS Counter "perjoule_migrations_total" ["service"]
            "Times threads ran on another CPU than before."
        GPU_STARVED Counter "perjoule_gpu_starved_seconds_total" ["service", "reason"]
            "Time that the thread which feeds a GPU waited, with requests in flight and the GPU below its busy base: in the run_queue, or blocked."
        SYSCALLS Counter "perjoule_syscalls_total" ["service", "class"]
            "System calls by class, of services that are profiled for them."
        SYSCALL_DURATION Histogram "perjoule_syscall_duration_seconds" ["service", "class"]
            "System calls' time from entry to exit, of those that were timed: all of them, or one in 64 where they are sampled."
        PAGE_FAULTS Counter "perjoule_page_faults_total" ["service", "kind"]
            "Page faults by the kernel's own account: minor, or major where a page had to be read."
        TRACEPOINT_EVENTS Counter "perjoule_tracepoint_events_total" ["service", "event"]
            "Events of tracepoints that the user named, in a service's processes."
        CUDA_LAUNCHES Counter "perjoule_cuda_launches_total" ["service", "kind"]
            "Launches through CUDA's driver library, by kind: kernel or graph (of kernels, as one)."
        CUDA_SYNCS Counter "perjoule_cuda_sync_total" ["service"]
            "Calls that waited for the GPU (stream, event or context) and returned."
        CUDA_SYNC_SECONDS Counter "perjoule_cuda_sync_seconds_total" ["service"]
            "Time inside calls that waited for the GPU, summed over threads."
        CPU_CYCLES Counter "perjoule_cpu_cycles_total" ["service"]
            "Cycles of a service's threads by the CPUs' own counters; absent where there are none."
        CPU_INSTRUCTIONS Counter "perjoule_cpu_instructions_total" ["service"]
            "Instructions of a service's threads by the CPUs' own counters; absent where there are none."
        CACHE_MISSES Counter "perjoule_cache_misses_total" ["service"]
            "Cache misses of a service's threads, last level on most CPUs; absent where they are not counted."
    }
    "GPUs" {
        GPU_INFO Gauge "perjoule_gpu_info" ["device", "name", "driver"]
            "Constant 1: a GPU's name and driver."
        GPU_POWER Gauge "perjoule_gpu_power_watts" ["device"]
            "Mean of the GPU's own power readings over a second or more; energy is the meter's counter, not this."
        GPU_IDLE Gauge "perjoule_gpu_idle_watts" ["device"]
            "The idle floor that the ledger takes off before anybody's work; absent while it is not known."
        GPU_IDLE_INFO Gauge "perjoule_gpu_idle_info" ["device", "idle_source"]
            "Constant 1: where the idle floor comes from: user, learned, table (of the GPU's model) or none."
        GPU_POWER_LIMIT Gauge "perjoule_gpu_power_limit_watts" ["device", "limit"]
            "Power limits: enforced, and the lowest (min) and highest (max) that can be set."
        GPU_MODULE_POWER Gauge "perjoule_gpu_module_power_watts" ["device"]
            "Power of a superchip's module, CPU included; not to be added to the GPU's."
        GPU_CLOCK Gauge "perjoule_gpu_clock_hertz" ["device", "clock"]
            "Present clock of the streaming multiprocessors (sm) and of the memory."
        GPU_TEMPERATURE Gauge "perjoule_gpu_temperature_celsius" ["device"]
            "The GPU's temperature."
        GPU_MEMORY Gauge "perjoule_gpu_memory_bytes" ["device", "state"]
            "Memory by state: used by processes, free, reserved by driver and firmware."
        GPU_UTILIZATION Gauge "perjoule_gpu_utilization_ratio" ["device", "unit"]
            "Part of the driver's last sample period in which any kernel ran (gpu) or memory was accessed (memory)."
        SERVICE_GPU_UTILIZATION Gauge "perjoule_service_gpu_utilization_ratio" ["service", "device"]
            "Part of the driver's last sample period in which kernels of a service ran; tells processes apart, not requests."
        GPU_THROTTLE Counter "perjoule_gpu_throttle_seconds_total" ["device", "reason"]
            "Time for which a reason held the clocks down, from a look a second; several can hold at once."
        GPU_PCIE_BYTES Counter "perjoule_gpu_pcie_bytes_total" ["device", "direction"]
            "Bytes sent and received by the GPU over PCIe, where the board counts them."
        GPU_PCIE_RATE Gauge "perjoule_gpu_pcie_bytes_per_second" ["device", "direction"]
            "PCIe throughput over 20 ms, looked at every 10 s, where the board does not count bytes."
        GPU_NVLINK_BYTES Counter "perjoule_gpu_nvlink_bytes_total" ["device", "direction"]
            "Bytes sent and received by the GPU over all its NVLinks."
        GPU_XID_ERRORS Counter "perjoule_gpu_xid_errors_total" ["device", "xid"]
            "Critical errors by the driver's number (XID); other for all beyond the first 32 numbers."
        GPU_ACTIVITY Gauge "perjoule_gpu_activity_ratio" ["device", "part"]
            "What a GPU's parts did over the last second (GPM; Hopper and later, not split): graphics, sm, occupancy, tensor, memory."
        GPU_INSTANCE_INFO Gauge "perjoule_gpu_instance_info" ["device", "instance", "slices", "uuid"]
            "Constant 1: what a GPU is split into (MIG). An instance has no energy of its own: it is the device's."
        GPU_POD_INFO Gauge "perjoule_gpu_pod_info"
            ["device", "uuid", "namespace", "pod", "container", "resource", "claim"]
            "Constant 1: which container the kubelet has given a GPU to; uuid is its instance's (MIG), claim that of DRA."
        GPU_FIELD_LATENCY Gauge "perjoule_gpu_field_latency_seconds" ["device"]
            "How long the driver says it needed for the slowest of the values that it reads in one batch."
        GPU_MODE_INFO Gauge "perjoule_gpu_mode_info" ["device", "mig", "compute", "virtualization"]
            "Constant 1: how a GPU is set up at present; empty where it does not say."
    }
    "Services" {
        SERVICE_INFO Gauge "perjoule_service_info"
            ["service", "model", "engine", "version", "namespace", "pod", "container"]
            "Constant 1: what a service serves, and where in Kubernetes it runs at present."
    }
    "How far to trust it, and what it costs" {
        ATTRIBUTION_ERROR Gauge "perjoule_attribution_error_ratio" ["service"]
            "Half-width of a 95 % interval over the energy of all requests so far, without gain."
        METER_GAIN_ERROR Gauge "perjoule_meter_gain_error_ratio" ["component", "device"]
            "Systematic gain error of the sensor; component is node for a node meter."
        GAP_SECONDS Counter "perjoule_gap_seconds_total" ["component", "device"]
            "Time of a meter whose energy nobody knows; component is node for a node meter."
        SOURCE_UP Gauge "perjoule_source_up" ["source"]
            "1 if a source of readings works, 0 if it is stale or broken."
        SOURCE_AGE Gauge "perjoule_source_age_seconds" ["source"]
            "Time since a source's latest reading."
        SOURCE_CALLS Counter "perjoule_source_calls_total" ["source"]
            "Calls of a source's devices."
        SOURCE_CALL_ERRORS Counter "perjoule_source_call_errors_total" ["source"]
            "Calls that failed; what a device does not have is no failure."
        SOURCE_CALL_SECONDS Counter "perjoule_source_call_seconds_total" ["source"]
            "Time spent inside calls of a source's devices."
        SOURCE_CALL_LATENCY Gauge "perjoule_source_call_latency_seconds" ["source", "percentile"]
            "Time of one call, by percentile (50, 99) of the latest 512."
        PROBE_UP Gauge "perjoule_probe_up" ["program", "tier"]
            "1 if a kernel program runs; tier is the kind of hook it runs on."
        PROBE_RUN_SECONDS Counter "perjoule_probe_run_seconds_total" ["program"]
            "Time spent in a kernel program."
        PROBE_RUNS Counter "perjoule_probe_runs_total" ["program"]
            "Runs of a kernel program."
        PROBES_THINNED Counter "perjoule_probes_thinned_total" ["probe"]
            "Optional probes that were taken off because the agent cost more than its budget."
        EVENTS_DROPPED Counter "perjoule_events_dropped_total" ["reason"]
            "Events that were lost on their way to the ledger."
        SERIES_DROPPED Counter "perjoule_series_dropped_total" ["reason"]
            "Services without series of their own: over the series budget (services), or long ended and scraped since (finished); pods of services that are not named (pods)."
        AGENT_ENERGY Counter "perjoule_agent_energy_joules_total" []
            "Energy of the agent's own CPU time."
        BUILD_INFO Gauge "perjoule_build_info" ["version"]
            "Constant 1: the agent's version."
        PROCESS_CPU Counter "process_cpu_seconds_total" []
            "Total user and system CPU time spent in seconds."
        PROCESS_RESIDENT Gauge "process_resident_memory_bytes" []
            "Resident memory size in bytes."
        PROCESS_VIRTUAL Gauge "process_virtual_memory_bytes" []
            "Virtual memory size in bytes."
        PROCESS_OPEN_FDS Gauge "process_open_fds" []
            "Number of open file descriptors."
        PROCESS_MAX_FDS Gauge "process_max_fds" []
            "Maximum number of open file descriptors."
        PROCESS_START Gauge "process_start_time_seconds" []
            "Start time of the process since unix epoch in seconds."
    }
    "Aliases of OpenTelemetry's names, with `--aliases otel`" {
        HW_ENERGY Counter "hw_energy_joules_total" ["hw_id", "hw_type", "hw_name"]
            "hw.energy: perjoule_meter_energy_joules_total, whatever the source."
        GEN_AI_DURATION Histogram "gen_ai_server_request_duration_seconds"
            ["service_name", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
            "gen_ai.server.request.duration: perjoule_request_duration_seconds, by operation instead of route."
        GEN_AI_FIRST_TOKEN Histogram "gen_ai_server_time_to_first_token_seconds"
            ["service_name", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
            "gen_ai.server.time_to_first_token: perjoule_time_to_first_token_seconds, by operation instead of route."
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = HashSet::new();
        for family in FAMILIES {
            assert!(seen.insert(family.name), "{} twice", family.name);
            assert_eq!(
                family.kind == Kind::Counter,
                family.name.ends_with("_total"),
                "{}",
                family.name
            );
            let is_alias = family.section.starts_with("Aliases");
            let prefixes: &[&str] = if is_alias {
                &["hw_", "gen_ai_"]
            } else {
                &["perjoule_", "process_"]
            };
            assert!(
                prefixes
                    .iter()
                    .any(|prefix| family.name.starts_with(prefix)),
                "{}",
                family.name
            );
            assert!(family.help.ends_with('.'), "{}", family.name);
            assert!(
                !family.labels.contains(&"pid") && !family.labels.contains(&"le"),
                "{}",
                family.name
            );
        }
    }
}
