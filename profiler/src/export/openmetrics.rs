//! OpenMetrics 1.0 of the same metric families that the text format 0.0.4 is made of.
//!
//! In: families and exemplars. Out: the whole body, `# EOF` included. What differs from 0.0.4: a
//! counter's family is named without `_total`, families have a `# UNIT`, help escapes quotes,
//! buckets' bounds are floats in one canonical form and may carry an exemplar. No `_created`: it
//! would add a series to each counter and histogram, and rates do without. The `prometheus` crate
//! has no such encoder.
//! Source: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use prometheus::proto::{Histogram, LabelPair, MetricFamily, MetricType};

use super::families::{Shown, ShownExemplar};

/// The endings of names that are units.
const UNITS: [&str; 8] = [
    "joules",
    "watts",
    "seconds",
    "bytes",
    "bytes_per_second",
    "ratio",
    "hertz",
    "celsius",
];

/// About how long the line of one series is.
const LINE: usize = 140;

/// The body of a scrape.
pub(super) fn encode(shown: &Shown) -> String {
    let mut out = String::with_capacity(shown.series * LINE);
    for family in &shown.families {
        encode_family(&mut out, family, shown);
    }
    out.push_str("# EOF\n");
    out
}

fn encode_family(out: &mut String, family: &MetricFamily, shown: &Shown) {
    let full = family.name();
    let (name, kind) = match family.get_field_type() {
        MetricType::COUNTER => (full.strip_suffix("_total").unwrap_or(full), "counter"),
        MetricType::GAUGE => (full, "gauge"),
        MetricType::HISTOGRAM => (full, "histogram"),
        // The catalogue has no such kind.
        MetricType::SUMMARY | MetricType::UNTYPED => return,
    };
    push(out, &["# TYPE ", name, " ", kind, "\n"]);
    if let Some(unit) = unit(name) {
        push(out, &["# UNIT ", name, " ", unit, "\n"]);
    }
    push(out, &["# HELP ", name, " "]);
    push_escaped(out, family.help());
    out.push('\n');
    let mut labels = String::new();
    for (place, metric) in family.get_metric().iter().enumerate() {
        labels.clear();
        push_labels(&mut labels, metric.get_label());
        match family.get_field_type() {
            MetricType::COUNTER => {
                push_sample(
                    out,
                    [name, "_total"],
                    &labels,
                    metric.get_counter().get_value(),
                );
            }
            MetricType::HISTOGRAM => {
                let exemplars = shown.exemplars(full, place);
                push_histogram(out, name, &labels, metric.get_histogram(), exemplars);
            }
            _ => push_sample(out, [name, ""], &labels, metric.get_gauge().get_value()),
        }
    }
}

fn push_histogram(
    out: &mut String,
    name: &str,
    labels: &str,
    histogram: &Histogram,
    exemplars: &[ShownExemplar],
) {
    let separator = if labels.is_empty() { "" } else { "," };
    let bounded = histogram.get_bucket().iter();
    let bounded = bounded.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    let above = (f64::INFINITY, histogram.get_sample_count());
    for (place, (bound, count)) in bounded.chain([above]).enumerate() {
        push(out, &[name, "_bucket{", labels, separator, "le=\""]);
        push_canonical(out, bound);
        push(out, &["\"} ", &count.to_string()]);
        if let Some(exemplar) = exemplars.iter().find(|exemplar| exemplar.bucket == place) {
            push_exemplar(out, exemplar);
        }
        out.push('\n');
    }
    push_sample(out, [name, "_sum"], labels, histogram.get_sample_sum());
    let count = histogram.get_sample_count() as f64;
    push_sample(out, [name, "_count"], labels, count);
}

fn push_exemplar(out: &mut String, exemplar: &ShownExemplar) {
    let request = exemplar.request.to_string();
    push(out, &[" # {request_id=\"", &request, "\"} "]);
    push_number(out, exemplar.value);
    let (seconds, millis) = (exemplar.unix_millis / 1_000, exemplar.unix_millis % 1_000);
    push(out, &[" ", &seconds.to_string(), &format!(".{millis:03}")]);
}

fn push_sample(out: &mut String, [name, suffix]: [&str; 2], labels: &str, value: f64) {
    push(out, &[name, suffix]);
    if !labels.is_empty() {
        push(out, &["{", labels, "}"]);
    }
    out.push(' ');
    push_number(out, value);
    out.push('\n');
}

fn push_labels(out: &mut String, labels: &[LabelPair]) {
    for (place, label) in labels.iter().enumerate() {
        let separator = if place == 0 { "" } else { "," };
        push(out, &[separator, label.name(), "=\""]);
        push_escaped(out, label.value());
        out.push('"');
    }
}

fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

fn push_escaped(out: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let mut characters = special.chars();
        match characters.next() {
            Some('\n') => out.push_str("\\n"),
            Some(other) => out.extend(['\\', other]),
            None => {}
        }
        rest = characters.as_str();
    }
    out.push_str(rest);
}

fn push_number(out: &mut String, value: f64) {
    if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else {
        out.push_str(&value.to_string());
    }
}

/// A bucket's bound as Go's `%g` writes it, with `.0` where it is whole: readers compare bounds as
/// text.
fn push_canonical(out: &mut String, bound: f64) {
    if bound.is_finite() && bound != 0.0 && !(1e-4..1e6).contains(&bound.abs()) {
        let text = format!("{bound:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("+", exponent),
        };
        push(out, &[mantissa, "e", sign, &format!("{digits:0>2}")]);
    } else if bound.is_finite() {
        out.push_str(&format!("{bound:?}"));
    } else {
        push_number(out, bound);
    }
}

fn unit(name: &str) -> Option<&'static str> {
    let is_unit = |unit: &&&str| {
        name.strip_suffix(**unit)
            .is_some_and(|rest| rest.ends_with('_'))
    };
    UNITS.iter().find(is_unit).copied()
}

#[cfg(test)]
mod tests;
