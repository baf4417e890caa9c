//! Services that come and go, as scrapes see them.

use std::collections::BTreeMap;

use super::super::tests::body;
use super::super::{Encoding, Format, Metrics};
use super::*;
use crate::ledger::*;
use crate::units::Microjoules;

const SECOND: u64 = 1_000_000_000;
const STREAMED: [Route; 3] = [Route::ChatCompletions, Route::Completions, Route::Responses];

fn metrics(budget: usize) -> Metrics {
    let mut metrics = Metrics::new("0.1.0");
    metrics.set_series_budget(budget);
    metrics.describe_meter(
        MeterId(0),
        &Meter {
            component: Component::Gpu,
            device: "GPU-1".to_owned(),
            source: Source::Counter,
            limit: None,
            tick: SECOND / 10,
            stale_after: SECOND,
            gain_error_ratio: 0.05,
            idle: None,
        },
    );
    metrics
}

/// A request on each of the first `routes` routes, of a joule each, and a joule of overhead.
fn serve(metrics: &mut Metrics, id: ServiceId, routes: usize) {
    let requests = Microjoules(1_000_000 * routes as u64);
    let overhead = Microjoules(1_000_000);
    metrics.book(&Booked::Interval(BookedInterval {
        meter: MeterId(0),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        energy: requests + overhead,
        accounts: Accounts {
            requests,
            overhead,
            ..Accounts::default()
        },
        services: vec![ServiceShare {
            service: id,
            requests,
            overhead,
            phases: None,
        }],
        holders: Some(1),
    }));
    for &route in STREAMED.iter().take(routes) {
        let at = Timestamp(3 * SECOND);
        let request = Request {
            id: RequestId(1),
            service: id,
            route,
            start: Timestamp(SECOND),
            first_data: Some(Timestamp(2 * SECOND)),
            last_data: Some(at),
            input: Input::Bytes(900),
            chunks: 100,
            streamed: true,
            status: 200,
            end: Some(End {
                at,
                outcome: Outcome::Done,
            }),
        };
        metrics.book(&Booked::Request(BookedRequest {
            request,
            gpu: Some(Microjoules(1_000_000)),
            phases: None,
            cpu: None,
            dram: None,
            class: Class::A,
            errors: Some(ErrorRatios {
                own: 0.0,
                common: 0.04,
            }),
            tokens: None,
        }));
    }
    metrics.record_cpu(&CpuTime {
        owner: Owner::Service(id),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        package: 0,
        on_cpu: 1_000_000,
        cycles: None,
    });
    metrics.record_waits(id, &crate::waits::Waits::default());
    metrics.record_syscalls(id, "read", 3);
    metrics.record_starved(id, "futex", 7);
}

/// One scrape of what is published at a second: value by series.
fn scrape(metrics: &mut Metrics, second: u64) -> BTreeMap<String, f64> {
    metrics.publish(Timestamp(second * SECOND), None);
    metrics.exposition().scrape().unwrap();
    let text = body(metrics, Format::Text);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// What `sum()` over each counter, and over each histogram's parts, gives.
fn sums(seen: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (series, value) in seen {
        let name = series.split('{').next().unwrap();
        let by_bound = series.split_once("le=").map_or("", |(_, bound)| bound);
        let is_sum = ["_total", "_bucket", "_sum", "_count"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if is_sum && name.starts_with("perjoule_") && !name.contains("probe") {
            *sums.entry(format!("{name} {by_bound}")).or_default() += value;
        }
    }
    sums
}

fn assert_none_fell(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) {
    for (name, sum) in before {
        let later = after.get(name).copied().unwrap_or(0.0);
        assert!(later >= sum * (1.0 - 1e-12), "{name}: {sum}, then {later}");
    }
}

fn services(seen: &BTreeMap<String, f64>) -> Vec<&str> {
    let mut found: Vec<&str> = seen
        .keys()
        .filter_map(|series| series.split_once("service=\"")?.1.split('"').next())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn a_service_that_has_ended_leaves_after_two_scrapes_and_its_sums_stay() {
    let mut metrics = metrics(SERIES_BUDGET);
    metrics.describe_service(ServiceId(0), "vllm", None);
    metrics.describe_service(ServiceId(1), "job", Some("llama"));
    serve(&mut metrics, ServiceId(0), 1);
    serve(&mut metrics, ServiceId(1), 2);
    let before = sums(&scrape(&mut metrics, 1));
    metrics.forget_service(ServiceId(1));
    for second in [2, 3] {
        let seen = scrape(&mut metrics, second);
        assert_eq!(services(&seen), ["job", "vllm"]);
    }
    let seen = scrape(&mut metrics, 4);
    assert_eq!(services(&seen), ["finished-1", "vllm"]);
    let of = |part: &str| {
        seen[&format!(
            r#"perjoule_service_energy_joules_total{{service="finished-1",component="gpu",part="{part}"}}"#
        )]
    };
    assert_eq!((of("requests"), of("overhead")), (2.0, 1.0));
    assert!(!seen.contains_key(
        r#"perjoule_service_info{service="finished-1",model="",engine="",version=""}"#
    ));
    let mut after = sums(&seen);
    let dropped = after.remove("perjoule_series_dropped_total ");
    assert_eq!(dropped, Some(1.0));
    let mut before = before;
    before.remove("perjoule_series_dropped_total ");
    // Durations, tokens, waits and all: nothing is lost and nothing is counted twice.
    assert_eq!(before, after);
}

#[test]
fn one_more_that_leaves_makes_a_new_series_and_no_increase_of_an_old_one() {
    let mut metrics = metrics(SERIES_BUDGET);
    let mut last = BTreeMap::new();
    let mut second = 1;
    for number in 0..4 {
        let id = ServiceId(number);
        metrics.describe_service(id, &format!("job-{number}"), None);
        serve(&mut metrics, id, 1);
        scrape(&mut metrics, second);
        metrics.forget_service(id);
        for _ in 0..4 {
            second += 1;
            let seen = scrape(&mut metrics, second);
            for (series, value) in &seen {
                if series.contains("service=\"finished-") {
                    let before = last.insert(series.clone(), *value);
                    assert!(before.is_none_or(|before| before == *value), "{series}");
                }
            }
        }
    }
    assert!(last.keys().any(|series| series.contains("finished-4")));
}

#[test]
fn a_service_that_comes_back_in_time_goes_on_with_its_series() {
    let mut metrics = metrics(SERIES_BUDGET);
    metrics.describe_service(ServiceId(0), "vllm", None);
    serve(&mut metrics, ServiceId(0), 1);
    scrape(&mut metrics, 1);
    metrics.forget_service(ServiceId(0));
    scrape(&mut metrics, 2);
    metrics.describe_service(ServiceId(0), "vllm", None);
    serve(&mut metrics, ServiceId(0), 1);
    for second in 3..9 {
        let seen = scrape(&mut metrics, second);
        let joules = r#"perjoule_service_energy_joules_total{service="vllm",component="gpu",part="requests"}"#;
        assert_eq!(seen[joules], 2.0);
    }
}

#[test]
fn without_scrapes_a_service_leaves_after_ten_minutes() {
    let mut metrics = metrics(SERIES_BUDGET);
    metrics.describe_service(ServiceId(0), "vllm", None);
    serve(&mut metrics, ServiceId(0), 1);
    metrics.forget_service(ServiceId(0));
    let mut shown = |second| {
        metrics.publish(Timestamp(second * SECOND), None);
        body(&metrics, Format::Text).contains("service=\"vllm\"")
    };
    assert!(shown(1));
    assert!(shown(600));
    assert!(!shown(602));
}

#[test]
fn what_left_stays_in_the_sums_of_the_next_agent() {
    let mut first = metrics(SERIES_BUDGET);
    for (number, name) in [(0, "vllm"), (1, "job")] {
        first.describe_service(ServiceId(number), name, None);
        serve(&mut first, ServiceId(number), 1);
    }
    first.forget_service(ServiceId(1));
    for second in 1..5 {
        scrape(&mut first, second);
    }
    let before = scrape(&mut first, 5);
    assert_eq!(services(&before), ["finished-1", "vllm"]);
    let saved = serde_json::to_string(&first.save()).unwrap();

    let mut second = metrics(SERIES_BUDGET);
    second.resume(serde_json::from_str(&saved).unwrap());
    let seen = scrape(&mut second, 1);
    assert_eq!(sums(&seen), sums(&before));
    // The service is looked for for a minute.
    let seen = scrape(&mut second, 50);
    assert_eq!(services(&seen), ["finished-1", "vllm"]);
    let seen = scrape(&mut second, 62);
    assert_eq!(services(&seen), ["finished-2"]);
    assert_none_fell(&sums(&before), &sums(&seen));
}

#[test]
fn the_number_of_series_never_exceeds_the_budget_and_who_has_used_most_keeps_its_own() {
    let mut metrics = metrics(1_000);
    for number in 0..40 {
        let id = ServiceId(number);
        metrics.describe_service(id, &format!("s-{number}"), None);
        serve(&mut metrics, id, 0);
    }
    let big = ServiceId(0);
    let mut before = sums(&scrape(&mut metrics, 1));
    for round in 0..6 {
        for number in 0..40 {
            serve(&mut metrics, ServiceId(number), (round / 2).min(3));
        }
        serve(&mut metrics, big, 3);
        let seen = scrape(&mut metrics, 2 + round as u64);
        assert!(
            seen.len() <= 1_000,
            "{} series in round {round}",
            seen.len()
        );
        let after = sums(&seen);
        assert_none_fell(&before, &after);
        before = after;
        assert!(services(&seen).contains(&"s-0"));
    }
    let seen = scrape(&mut metrics, 20);
    assert!(services(&seen).contains(&"other"));
    assert!(seen[r#"perjoule_series_dropped_total{reason="services"}"#] >= 36.0);
    let joules: f64 = seen
        .iter()
        .filter(|(series, _)| series.starts_with("perjoule_service_energy_joules_total"))
        .map(|(_, joules)| joules)
        .sum();
    let meter =
        r#"perjoule_meter_energy_joules_total{component="gpu",device="GPU-1",source="counter"}"#;
    assert!((joules - seen[meter]).abs() < 1e-6, "{joules}");
}

#[test]
fn series_are_counted_as_they_are_shown() {
    let mut metrics = super::super::tests::everything();
    metrics.publish(Timestamp(10 * SECOND), None);
    let shown = body(&metrics, Format::Text)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count();
    assert_eq!(metrics.series, Some(shown));
}

#[test]
fn a_hundred_thousand_short_lived_services_leave_series_and_memory_bounded_and_no_sum_falls() {
    let mut metrics = metrics(SERIES_BUDGET);
    let mut before = BTreeMap::new();
    let mut most = 0;
    for batch in 0..1_000_u32 {
        for number in 0..100 {
            let id = ServiceId(batch * 100 + number);
            metrics.describe_service(id, &format!("job-{}", id.0), Some("llama"));
            serve(&mut metrics, id, 1);
            // The one before ends.
            if let Some(earlier) = id.0.checked_sub(1) {
                metrics.forget_service(ServiceId(earlier));
            }
        }
        if batch % 20 == 0 {
            let seen = scrape(&mut metrics, u64::from(batch) + 1);
            let after = sums(&seen);
            assert_none_fell(&before, &after);
            (before, most) = (after, most.max(seen.len()));
        }
    }
    assert!(most <= SERIES_BUDGET, "{most} series");
    let seen = scrape(&mut metrics, 1_002);
    let joules: f64 = seen
        .iter()
        .filter(|(series, _)| series.starts_with("perjoule_service_energy_joules_total"))
        .map(|(_, joules)| joules)
        .sum();
    assert_eq!(joules, 200_000.0);
    // All that grows with services.
    assert_eq!(metrics.services.len(), 1);
    assert!(metrics.leaving.len() < 20);
    assert!(metrics.totals.services.len() < 20);
    assert!(metrics.totals.service_names.all().count() < 20);
    let kept = serde_json::to_string(&metrics.save()).unwrap();
    assert!(kept.len() < 200_000, "{} bytes", kept.len());
    let snapshot = metrics.exposition().latest().unwrap();
    let gzip = snapshot.body(Format::OpenMetrics, Encoding::Gzip);
    assert!(gzip.len() < 200_000);
}
