//! How far to trust the figures, and what measuring them costs.

use super::panel::{lines, stat};
use super::{Dashboard, NODE_CHOICES, Row};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "agent",
        title: "Agent health and cost",
        description: "How far to trust the figures, what was lost, and what measuring costs.",
        choices: NODE_CHOICES,
        from: "now-1h",
        rows: vec![trust(), cost()],
    }
}

fn trust() -> Row {
    Row {
        title: "How far to trust it",
        panels: vec![
            stat(
                "Ledger residual",
                "joule",
                "Meters less accounts, from the integers. Anything but 0 is a defect: please report it.",
                "sum(perjoule_ledger_residual_joules{@node})",
            )
            .warning_from(&[("red", 1e-6)])
            .wide(6),
            stat(
                "Events lost",
                "short",
                "Events that never reached the ledger, in the time range. Switches that a kernel told nobody of \
                 are found and divided, and left out.",
                "sum(increase(perjoule_events_dropped_total{@node,reason!~\"(thread_)?switch_unseen\"}[$__range]))",
            )
            .warning_from(&[("yellow", 1.0)])
            .wide(6),
            stat(
                "Time with unknown energy",
                "s",
                "Device time in the range whose energy nobody knows.",
                "sum(increase(perjoule_gap_seconds_total{@node}[$__range]))",
            )
            .warning_from(&[("yellow", 1.0)])
            .wide(6),
            stat(
                "Sources and probes down",
                "short",
                "Sources of readings that are stale or broken, and kernel programs that do not run.",
                "sum(1 - perjoule_source_up{@node}) + (sum(1 - perjoule_probe_up{@node}) or vector(0))",
            )
            .warning_from(&[("red", 1.0)])
            .wide(6),
            lines(
                "Bound by service",
                "percentunit",
                "Half-width of a 95 % interval ÷ energy so far, and the sensors' systematic gain error, which is \
                 not in it.",
            )
            .line(
                "max by (service) (perjoule_attribution_error_ratio{@service})",
                "{{service}}",
            )
            .line(
                "max by (component) (perjoule_meter_gain_error_ratio{@node})",
                "{{component}} sensor gain",
            ),
            lines(
                "Age of readings",
                "s",
                "Time since each source's latest reading.",
            )
            .line(
                "max by (source) (perjoule_source_age_seconds{@node})",
                "{{source}}",
            ),
            lines(
                "Events lost by reason",
                "ops",
                "Events per second that never reached the ledger, by where they were lost.",
            )
            .line(
                "sum by (instance, reason) (rate(perjoule_events_dropped_total{@node}[$__rate_interval]))",
                "{{instance}} {{reason}}",
            ),
        ],
    }
}

fn cost() -> Row {
    Row {
        title: "What it costs",
        panels: vec![
            stat(
                "Agent CPU",
                "percentunit",
                "CPUs kept busy by the agent itself, the busiest node. Time inside kernel programs is below.",
                "max(rate(process_cpu_seconds_total{@node}[$__range]) and on (job, instance) perjoule_build_info)",
            )
            .warning_from(&[("red", 0.02)])
            .wide(6),
            stat(
                "Agent memory",
                "bytes",
                "Resident memory of the agent, the largest node.",
                "max(process_resident_memory_bytes{@node} and on (job, instance) perjoule_build_info)",
            )
            .warning_from(&[("red", 40_000_000.0)])
            .wide(6),
            stat(
                "Agent power",
                "watt",
                "Energy of the agents' own CPU time per second, all chosen nodes.",
                "sum(rate(perjoule_agent_energy_joules_total{@node}[$__range]))",
            )
            .wide(6),
            stat(
                "Agents",
                "short",
                "Agents on the chosen nodes that answer at present.",
                "count(perjoule_build_info{@node})",
            )
            .wide(6),
            lines(
                "CPU",
                "percentunit",
                "CPU of the agent's process, and time inside its kernel programs, in CPUs. The second is spent in \
                 whatever process triggers a program.",
            )
            .line(
                "sum by (instance) (rate(process_cpu_seconds_total{@node}[$__rate_interval]) \
                 and on (job, instance) perjoule_build_info)",
                "{{instance}} process",
            )
            .line(
                "sum by (program) (rate(perjoule_probe_run_seconds_total{@node}[$__rate_interval]))",
                "kernel {{program}}",
            ),
            lines(
                "Kernel program runs",
                "ops",
                "Runs of each kernel program per second.",
            )
            .line(
                "sum by (program) (rate(perjoule_probe_runs_total{@node}[$__rate_interval]))",
                "{{program}}",
            ),
            lines(
                "Calls of devices",
                "s",
                "The 99th percentile of the latest calls of each source's devices.",
            )
            .line(
                "max by (instance, source) (perjoule_source_call_latency_seconds{@node,percentile=\"99\"})",
                "{{instance}} {{source}}",
            ),
        ],
    }
}
