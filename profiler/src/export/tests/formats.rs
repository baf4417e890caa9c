//! The same figures in both formats, compressed, and under others' names.

use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::read::GzDecoder;

use super::*;

#[test]
fn what_is_compressed_is_the_same_and_smaller() {
    let metrics = &mut everything();
    metrics.publish(Timestamp(SECOND), None);
    let snapshot = metrics.exposition().latest().unwrap();
    for format in [Format::Text, Format::OpenMetrics] {
        let plain = snapshot.body(format, Encoding::Identity);
        let gzip = snapshot.body(format, Encoding::Gzip);
        assert!(
            gzip.len() * 4 < plain.len(),
            "{} {}",
            gzip.len(),
            plain.len()
        );
        let mut read = Vec::new();
        GzDecoder::new(gzip.as_ref())
            .read_to_end(&mut read)
            .unwrap();
        assert_eq!(read, plain);
    }
}

/// Series with their values as both formats have them.
fn samples(text: &str) -> Vec<(String, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let plain = line.split(" # {").next().unwrap();
            let (series, value) = plain.rsplit_once(' ').unwrap();
            let series = match series.split_once("le=\"") {
                Some((series, bound)) => {
                    let bound: f64 = bound.trim_end_matches("\"}").parse().unwrap();
                    format!("{series}{bound}")
                }
                None => series.to_owned(),
            };
            (series, value.parse().unwrap())
        })
        .collect()
}

#[test]
fn both_formats_say_the_same_and_only_openmetrics_has_units_and_exemplars() {
    let metrics = &mut everything();
    let text = text(metrics);
    let openmetrics = body(metrics, Format::OpenMetrics);
    assert_eq!(samples(&text), samples(&openmetrics));
    assert!(!text.contains(" # {") && !text.contains("# UNIT"));
    assert!(openmetrics.ends_with("\n# EOF\n"));
    let carrying: Vec<&str> = openmetrics
        .lines()
        .filter(|line| line.contains("service=\"vllm\"") && line.contains(" # {request_id=\"1\"} "))
        .collect();
    let of = |name: &str, value: &str| {
        carrying
            .iter()
            .any(|line| line.starts_with(name) && line.contains(value))
    };
    assert!(
        of("perjoule_request_energy_joules_bucket", "} 42 "),
        "{carrying:?}"
    );
    assert!(of("perjoule_request_duration_seconds_bucket", "} 2 "));
    assert!(of("perjoule_time_to_first_token_seconds_bucket", "} 0.25 "));
    assert_eq!(carrying.len(), 3);
    // What a request can be told by beside its number.
    for line in openmetrics.lines().filter(|line| line.contains(" # {")) {
        let (_, exemplar) = line.split_once(" # ").unwrap();
        assert_eq!(exemplar.matches('=').count(), 1, "{line}");
    }
}

#[test]
fn an_exemplar_is_dated_by_the_systems_clock() {
    let metrics = &mut metrics();
    let now = Timestamp::now();
    let mut booked = request(Outcome::Done);
    booked.request.start = now.minus(Duration::from_secs(2));
    booked.request.end = Some(End {
        at: now,
        outcome: Outcome::Done,
    });
    metrics.book(&Booked::Request(booked));
    metrics.publish(now, None);
    let text = body(metrics, Format::OpenMetrics);
    let (_, exemplar) = text.split_once(" # {request_id").unwrap();
    let dated = exemplar.lines().next().unwrap().rsplit(' ').next().unwrap();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let late = unix.as_secs_f64() - dated.parse::<f64>().unwrap();
    assert!((-0.1..30.0).contains(&late), "{late}");
}

#[test]
fn otels_names_are_shown_where_they_are_asked_for_and_say_the_same() {
    let metrics = &mut metrics();
    metrics.record_gpu("GPU-1", "NVIDIA A100", "550.54");
    metrics.book(&interval(0, 50_000_000, 3));
    metrics.book(&interval(1, 50_000_000, 3));
    for route in [Route::ChatCompletions, Route::ApiChat, Route::Health] {
        let mut booked = request(Outcome::Done);
        booked.request.route = route;
        metrics.book(&Booked::Request(booked));
    }
    let seen = scrape(metrics);
    assert!(
        !seen
            .keys()
            .any(|name| name.starts_with("hw_") || name.starts_with("gen_ai_"))
    );

    metrics.set_aliases(Aliases::Otel);
    let seen = scrape(metrics);
    assert_eq!(
        seen[r#"hw_energy_joules_total{hw_id="GPU-1",hw_type="gpu",hw_name="NVIDIA A100"}"#],
        seen[r#"perjoule_meter_energy_joules_total{component="gpu",device="GPU-1",source="counter"}"#],
    );
    assert!(
        seen.contains_key(r#"hw_energy_joules_total{hw_id="package-0",hw_type="cpu",hw_name=""}"#)
    );
    let of = |name: &str| {
        let labels = r#"{service_name="vllm",gen_ai_operation_name="chat",gen_ai_provider_name="",gen_ai_request_model="llama"}"#;
        seen[&format!("gen_ai_server_{name}{labels}")]
    };
    assert_eq!(
        of("request_duration_seconds_count"),
        2.0,
        "two routes, one operation"
    );
    assert_eq!(of("request_duration_seconds_sum"), 4.0);
    assert_eq!(of("time_to_first_token_seconds_sum"), 0.5);
    let counts = seen
        .keys()
        .filter(|name| name.starts_with("gen_ai_server_request_duration_seconds_count"));
    assert_eq!(counts.count(), 1, "a health check is none of them");
}
