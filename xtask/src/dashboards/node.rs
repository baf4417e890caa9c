//! Where the energy of nodes and GPUs goes, and in what state they are.

use super::panel::{lines, stat};
use super::{Dashboard, NODE_CHOICES, Row};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "node-and-gpus",
        title: "Node and GPUs",
        description: "Where each meter's energy goes, power against limits, and what the boards show.",
        choices: NODE_CHOICES,
        from: "now-1h",
        rows: vec![energy(), power(), boards()],
    }
}

fn energy() -> Row {
    Row {
        title: "Where the energy goes",
        panels: vec![
            stat(
                "Power of all meters",
                "watt",
                "Energy of GPUs, CPUs and memory per second, mean over the time range.",
                "sum(rate(perjoule_meter_energy_joules_total{@node}[$__range]))",
            ),
            stat(
                "Energy",
                "joule",
                "Energy of GPUs, CPUs and memory in the time range.",
                "sum(increase(perjoule_meter_energy_joules_total{@node}[$__range]))",
            ),
            stat(
                "Given to requests",
                "percentunit",
                "Energy that requests caused ÷ energy of all meters, over the time range.",
                "sum(increase(perjoule_energy_account_joules_total{@node,account=\"requests\"}[$__range])) \
                 / (sum(increase(perjoule_meter_energy_joules_total{@node}[$__range])) > 0)",
            ),
            stat(
                "Idle and parked",
                "percentunit",
                "Idle floor and what open contexts add ÷ energy of all meters, over the time range.",
                "sum(increase(perjoule_energy_account_joules_total{@node,account=~\"idle|context\"}[$__range])) \
                 / (sum(increase(perjoule_meter_energy_joules_total{@node}[$__range])) > 0)",
            ),
            stat(
                "Nearest to its power limit",
                "percentunit",
                "The highest power of a GPU ÷ its enforced limit, now.",
                "max(perjoule_gpu_power_watts{@node} / on (job, instance, device) \
                 perjoule_gpu_power_limit_watts{@node,limit=\"enforced\"})",
            )
            .warning_from(&[("yellow", 0.9), ("red", 0.98)]),
            stat(
                "Critical errors",
                "short",
                "XID errors that the driver reported in the time range.",
                "sum(increase(perjoule_gpu_xid_errors_total{@node}[$__range]))",
            )
            .warning_from(&[("red", 1.0)]),
            lines(
                "GPU energy by account",
                "watt",
                "Every joule of the GPUs' counters, once: idle, parked contexts, requests, a service's overhead, \
                 other processes, and what has no known user. The sum is the meters'.",
            )
            .line(
                "sum by (account) (rate(perjoule_energy_account_joules_total{@node,component=\"gpu\"}[$__rate_interval]))",
                "{{account}}",
            )
            .stacked()
            .wide(12),
            lines(
                "Power by meter",
                "watt",
                "Energy per second of each component. A node's own meter (PSU, BMC) stands beside the sum and is \
                 never added to it.",
            )
            .line(
                "sum by (instance, component) (rate(perjoule_meter_energy_joules_total{@node}[$__rate_interval]))",
                "{{instance}} {{component}}",
            )
            .line(
                "perjoule_node_power_watts{@node}",
                "{{instance}} {{device}} (node meter)",
            )
            .wide(12),
        ],
    }
}

fn power() -> Row {
    Row {
        title: "Power",
        panels: vec![
            lines(
                "GPU power",
                "watt",
                "The GPU's own latest power reading and its enforced limit. The joules above come from the energy \
                 counter, not from this.",
            )
            .line("perjoule_gpu_power_watts{@node}", "{{instance}} {{device}}")
            .line(
                "perjoule_gpu_power_limit_watts{@node,limit=\"enforced\"}",
                "limit {{instance}} {{device}}",
            ),
            lines(
                "Idle floor",
                "watt",
                "What the ledger takes off before anybody's work: told by the user, learned when quiet, or a \
                 table's.",
            )
            .line("perjoule_gpu_idle_watts{@node}", "{{instance}} {{device}}"),
            lines(
                "Held down",
                "percentunit",
                "Share of the time in which a reason held the clocks down: power limit, heat, an external brake. \
                 Several can hold at once.",
            )
            .line(
                "sum by (instance, device, reason) (rate(perjoule_gpu_throttle_seconds_total{@node}[$__rate_interval]))",
                "{{reason}} {{instance}} {{device}}",
            ),
        ],
    }
}

fn boards() -> Row {
    Row {
        title: "Boards",
        panels: vec![
            lines(
                "Utilisation",
                "percentunit",
                "Share of the driver's last sample period in which any kernel ran; not how much of the chip it \
                 used.",
            )
            .line(
                "perjoule_gpu_utilization_ratio{@node,unit=\"gpu\"}",
                "{{instance}} {{device}}",
            ),
            lines(
                "Utilisation by service",
                "percentunit",
                "Share of the driver's last sample period in which kernels of each service ran.",
            )
            .line(
                "perjoule_service_gpu_utilization_ratio{@service}",
                "{{service}} {{instance}} {{device}}",
            ),
            lines(
                "Memory",
                "bytes",
                "Memory held by processes.",
            )
            .line(
                "perjoule_gpu_memory_bytes{@node,state=\"used\"}",
                "{{instance}} {{device}}",
            ),
            lines(
                "Clock",
                "hertz",
                "Present clock of the streaming multiprocessors.",
            )
            .line(
                "perjoule_gpu_clock_hertz{@node,clock=\"sm\"}",
                "{{instance}} {{device}}",
            ),
            lines("Temperature", "celsius", "The GPU's temperature.").line(
                "perjoule_gpu_temperature_celsius{@node}",
                "{{instance}} {{device}}",
            ),
            lines(
                "Links",
                "Bps",
                "Bytes per second over PCIe and NVLink, where the board counts them.",
            )
            .line(
                "sum by (instance, device, direction) (rate(perjoule_gpu_pcie_bytes_total{@node}[$__rate_interval]))",
                "PCIe {{direction}} {{instance}} {{device}}",
            )
            .line(
                "sum by (instance, device, direction) (rate(perjoule_gpu_nvlink_bytes_total{@node}[$__rate_interval]))",
                "NVLink {{direction}} {{instance}} {{device}}",
            ),
        ],
    }
}
