//! What the host did while energy was spent: why a GPU waited.

use super::panel::{lines, quantiles, stat};
use super::{Dashboard, NODE_CHOICES, Row};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "host-against-energy",
        title: "Host against energy",
        description: "What services' threads waited for, beside what their requests cost.",
        choices: NODE_CHOICES,
        from: "now-1h",
        rows: vec![starved(), waiting(), calls()],
    }
}

fn starved() -> Row {
    Row {
        title: "GPUs that wait for the host",
        panels: vec![
            stat(
                "Starved by the run queue",
                "percentunit",
                "Share of the time in which the thread that feeds a GPU was runnable and did not run, with \
                 requests in flight and the GPU below its busy base; summed over GPUs.",
                "sum(rate(perjoule_gpu_starved_seconds_total{@service,reason=\"run_queue\"}[$__range]))",
            )
            .warning_from(&[("yellow", 0.02), ("red", 0.1)])
            .wide(6),
            stat(
                "Starved by waits",
                "percentunit",
                "The same where that thread was blocked, and the GPU's power was short of its busy base.",
                "sum(rate(perjoule_gpu_starved_seconds_total{@service,reason!=\"run_queue\"}[$__range]))",
            )
            .warning_from(&[("yellow", 0.1), ("red", 0.3)])
            .wide(6),
            stat(
                "CPUs in use",
                "suffix:CPUs",
                "CPUs kept busy by the services, mean over the time range.",
                "sum(rate(perjoule_cpu_seconds_total{@service}[$__range]))",
            )
            .wide(6),
            stat(
                "CPU share of the energy",
                "percentunit",
                "Energy of services that CPUs drew ÷ energy of services, over the time range.",
                "sum(increase(perjoule_service_energy_joules_total{@service,component=\"cpu\"}[$__range])) \
                 / (sum(increase(perjoule_service_energy_joules_total{@service}[$__range])) > 0)",
            )
            .wide(6),
            lines(
                "Starvation",
                "percentunit",
                "Share of the time in which the thread that feeds a GPU waited, by what for.",
            )
            .line(
                "sum by (service, reason) (rate(perjoule_gpu_starved_seconds_total{@service}[$__rate_interval]))",
                "{{service}} {{reason}}",
            )
            .stacked()
            .wide(12),
            lines(
                "Energy per request",
                "joule",
                "Mean of the requests that ended: what starvation and batches of other sizes do to it.",
            )
            .line(
                "sum by (service) (rate(perjoule_request_energy_joules_sum{@service}[$__rate_interval])) \
                 / (sum by (service) (rate(perjoule_request_energy_joules_count{@service}[$__rate_interval])) > 0)",
                "{{service}}",
            )
            .wide(12),
        ],
    }
}

fn waiting() -> Row {
    Row {
        title: "What threads wait for",
        panels: vec![
            quantiles(
                "Run-queue latency",
                "s",
                "How long threads were runnable and did not run, each time. Right within a factor of two.",
                "perjoule_run_queue_latency_seconds",
                "@service",
            ),
            lines(
                "Off CPU by reason",
                "suffix:threads",
                "Threads that wait, on average, by what for. Preempted is a part of the run queue's time.",
            )
            .line(
                "sum by (service, reason) (rate(perjoule_off_cpu_seconds_total{@service}[$__rate_interval]))",
                "{{service}} {{reason}}",
            )
            .stacked(),
            quantiles(
                "Disk waits",
                "s",
                "How long threads waited for a disk or in another uninterruptible state, each time.",
                "perjoule_disk_wait_seconds",
                "@service",
            ),
            lines(
                "CPU time",
                "suffix:CPUs",
                "CPUs kept busy by each service.",
            )
            .line(
                "sum by (service) (rate(perjoule_cpu_seconds_total{@service}[$__rate_interval]))",
                "{{service}}",
            ),
            lines(
                "Context switches",
                "ops",
                "Switches away from threads that blocked (voluntary) or stayed runnable (involuntary).",
            )
            .line(
                "sum by (service, kind) (rate(perjoule_context_switches_total{@service}[$__rate_interval]))",
                "{{service}} {{kind}}",
            ),
            lines(
                "Migrations",
                "ops",
                "Times threads ran on another CPU than before.",
            )
            .line(
                "sum by (service) (rate(perjoule_migrations_total{@service}[$__rate_interval]))",
                "{{service}}",
            ),
        ],
    }
}

fn calls() -> Row {
    Row {
        title: "Calls (with --syscalls, --faults, --cuda, --pmc)",
        panels: vec![
            lines(
                "System calls",
                "ops",
                "System calls per second by class, of services that are profiled for them.",
            )
            .line(
                "sum by (service, class) (rate(perjoule_syscalls_total{@service}[$__rate_interval]))",
                "{{service}} {{class}}",
            ),
            lines(
                "Time in system calls",
                "suffix:threads",
                "Threads inside system calls, on average, by class. Where calls are sampled, of those that were \
                 timed.",
            )
            .line(
                "sum by (service, class) (rate(perjoule_syscall_duration_seconds_sum{@service}[$__rate_interval]))",
                "{{service}} {{class}}",
            ),
            lines(
                "Page faults",
                "ops",
                "Page faults per second: minor, or major where a page had to be read.",
            )
            .line(
                "sum by (service, kind) (rate(perjoule_page_faults_total{@service}[$__rate_interval]))",
                "{{service}} {{kind}}",
            ),
            lines(
                "CUDA launches",
                "ops",
                "Launches per second through CUDA's driver library: single kernels, and graphs of them.",
            )
            .line(
                "sum by (service, kind) (rate(perjoule_cuda_launches_total{@service}[$__rate_interval]))",
                "{{service}} {{kind}}",
            ),
            lines(
                "Waiting for the GPU",
                "suffix:threads",
                "Threads inside CUDA's synchronising calls, on average.",
            )
            .line(
                "sum by (service) (rate(perjoule_cuda_sync_seconds_total{@service}[$__rate_interval]))",
                "{{service}}",
            ),
            lines(
                "Instructions per cycle",
                "short",
                "By the CPUs' own counters, where there are any.",
            )
            .line(
                "sum by (service) (rate(perjoule_cpu_instructions_total{@service}[$__rate_interval])) \
                 / (sum by (service) (rate(perjoule_cpu_cycles_total{@service}[$__rate_interval])) > 0)",
                "{{service}}",
            ),
        ],
    }
}
