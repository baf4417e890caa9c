//! docs/METRICS.md is what the catalogue says. After a change there:
//! `PERJOULE_WRITE_DOCS=1 cargo test -p profiler --test metrics_reference` writes it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use profiler::export::{FAMILIES, Family, Kind, SERIES_BUDGET};

/// How many values a label has on a node of [`NODE`].
const VALUES: &[(&str, usize)] = &[
    ("account", 8),
    ("claim", 1),
    ("class", 2),
    ("clock", 2),
    ("code", 3),
    ("component", 3),
    ("compute", 1),
    ("container", 1),
    ("device", 8),
    ("direction", 2),
    ("driver", 1),
    ("engine", 1),
    ("event", 1),
    ("gen_ai_operation_name", 1),
    ("gen_ai_provider_name", 1),
    ("gen_ai_request_model", 1),
    ("hw_id", 12),
    ("hw_name", 1),
    ("hw_type", 1),
    ("idle_source", 1),
    ("instance", 1),
    ("kind", 2),
    ("limit", 3),
    ("mig", 1),
    ("model", 1),
    ("name", 1),
    ("namespace", 1),
    ("outcome", 2),
    ("part", 2),
    ("percentile", 2),
    ("pod", 1),
    ("probe", 1),
    ("program", 14),
    ("reason", 7),
    ("resource", 1),
    ("route", 2),
    ("service", 4),
    ("service_name", 4),
    ("slices", 1),
    ("source", 1),
    ("state", 2),
    ("tier", 1),
    ("unit", 2),
    ("uuid", 1),
    ("version", 1),
    ("virtualization", 1),
    ("xid", 1),
];

const NODE: &str = "8 GPUs, 2 CPU packages with memory and 4 services";

/// Meters of such a node: GPUs, packages, memory.
const METERS: usize = 12;

/// Series of a histogram's buckets, its sum and its count; as many as the longest has.
const BUCKETS: usize = 24;

fn unit(family: &Family) -> &'static str {
    let name = family.name.strip_suffix("_total").unwrap_or(family.name);
    for (suffix, unit) in [
        ("_joules", "J"),
        ("_seconds", "s"),
        ("_watts", "W"),
        ("_bytes", "bytes"),
        ("_bytes_per_second", "bytes/s"),
        ("_hertz", "Hz"),
        ("_celsius", "°C"),
        ("_ratio", "ratio"),
    ] {
        if name.ends_with(suffix) {
            return unit;
        }
    }
    if name.ends_with("_info") {
        "1"
    } else {
        "count"
    }
}

fn series(family: &Family) -> usize {
    let is_meter = family.labels.contains(&"component") && family.labels.contains(&"device");
    let labels: usize = family
        .labels
        .iter()
        .filter(|label| !(is_meter && matches!(**label, "component" | "device")))
        .map(|label| {
            let known = VALUES.iter().find(|(name, _)| name == label);
            known
                .unwrap_or_else(|| panic!("{}: how many values has {label}?", family.name))
                .1
        })
        .product();
    let each = if family.kind == Kind::Histogram {
        BUCKETS + 3
    } else {
        1
    };
    labels * each * if is_meter { METERS } else { 1 }
}

fn reference() -> String {
    let mut text = format!(
        "# Metrics\n\n\
         Written from the code (`profiler/src/export/catalog.rs`); a test fails where this page differs.\n\n\
         Names have base units. *Series* is how many there are at most on a node with {NODE}, everything turned on; what a\n\
         machine does not have has no series, and what nobody knows is absent, never 0. Counters go on over restarts where the\n\
         agent has a state file. Labels that a workload controls are cut to a length.\n\n\
         A node shows at most {SERIES_BUDGET} series (`series_budget`). A service that comes when they are used up shares those of the service\n\
         `other`, under the route `other`; one that outgrows them goes on there. A service that has ended leaves once its last figures were\n\
         scraped twice, a minute after its last process at the earliest (after ten seconds where more than a hundred have ended of late). Its sums stay, so that no `sum()` falls: together with those of all that\n\
         left before they are the service `finished-N`, which has a new number each time. A counter that is new with what it begins with is no\n\
         increase to Prometheus, so that no rate jumps either. `perjoule_series_dropped_total` counts both.\n\n\
         `/metrics` has two formats, by `Accept`: text 0.0.4, and OpenMetrics 1.0 with units and exemplars. There the buckets of\n\
         `perjoule_request_energy_joules`, `perjoule_request_duration_seconds` and `perjoule_time_to_first_token_seconds` name their latest\n\
         request (`request_id`): the `id` of `perjoule script` and the column `request` of a recording of the same agent. Either is gzipped for\n\
         who takes it. Watts of a GPU are means over a second or more, and nothing changes more often than `intervals.publish_ms`: what a GPU draws\n\
         from moment to moment tells what is computed on it.\n"
    );
    let mut section = "";
    let mut sum = 0;
    for family in FAMILIES {
        if family.section != section {
            section = family.section;
            let _ = write!(
                text,
                "\n## {section}\n\n| metric | type | unit | labels | series | |\n|---|---|---|---|---|---|\n"
            );
        }
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        if !family.section.starts_with("Aliases") {
            sum += series(family);
        }
        let _ = writeln!(
            text,
            "| `{}` | {kind} | {} | {} | {} | {} |",
            family.name,
            unit(family),
            labels.join(", "),
            series(family),
            family.help,
        );
    }
    let _ = write!(
        text,
        "\nAll together at most {sum} series on such a node, without the aliases.\n"
    );
    text
}

#[test]
fn the_page_of_metrics_is_what_the_catalogue_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    if std::env::var_os("PERJOULE_WRITE_DOCS").is_some() {
        fs::write(&path, reference()).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/METRICS.md differs; PERJOULE_WRITE_DOCS=1 cargo test -p profiler --test metrics_reference writes it"
    );
}
