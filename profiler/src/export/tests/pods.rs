//! What runs in Kubernetes, by the names that it has there.

use super::*;
use crate::pods::{GpuPod, PodNames};

const SERVICE: ServiceId = ServiceId(9);
const METER: u32 = 9;

fn pod(name: &str) -> PodNames {
    PodNames {
        namespace: "team-a".to_owned(),
        pod: name.to_owned(),
        container: "server".to_owned(),
    }
}

fn given(device: &str, resource: &str, pod: PodNames) -> GpuPod {
    GpuPod {
        device: device.to_owned(),
        resource: resource.to_owned(),
        claim: String::new(),
        names: pod,
    }
}

/// So much energy for requests, and one of them.
fn book(metrics: &mut Metrics, energy: u64) {
    let mut booked = interval(METER, energy, 1_000_000);
    if let Booked::Interval(interval) = &mut booked {
        interval.services[0].service = SERVICE;
    }
    metrics.book(&booked);
    let mut request = request(Outcome::Done);
    request.request.service = SERVICE;
    metrics.book(&Booked::Request(request));
}

fn metrics_of_a_pod(name: &str) -> Metrics {
    let mut metrics = Metrics::new("0.1.0");
    metrics.describe_meter(MeterId(METER), &meter(Component::Gpu, "GPU-9"));
    metrics.describe_service(SERVICE, "server", None);
    metrics.describe_pod(SERVICE, &pod(name));
    metrics
}

/// A service in a pod, on a GPU that its container was given.
pub(super) fn serve_in_a_pod(metrics: &mut Metrics) {
    metrics.describe_meter(MeterId(METER), &meter(Component::Gpu, "GPU-9"));
    metrics.describe_service(SERVICE, "server", None);
    metrics.describe_pod(SERVICE, &pod("llama-0"));
    book(metrics, 1_000_000);
    let mut claimed = given("GPU-9", "gpu.nvidia.com", pod("llama-0"));
    claimed.claim = "one-gpu".to_owned();
    metrics.record_gpu_pods(Timestamp(9 * SECOND), &[claimed]);
}

/// A series of the service, in a pod or in none.
fn energy(part: &str, pod: Option<&str>) -> String {
    let place = pod.map_or_else(String::new, |pod| {
        format!(r#",namespace="team-a",pod="{pod}",container="server""#)
    });
    format!(
        r#"perjoule_service_energy_joules_total{{service="server",component="gpu",part="{part}"{place}}}"#
    )
}

fn requests(pod: &str) -> String {
    format!(
        "perjoule_requests_total{{service=\"server\",route=\"chat_completions\",code=\"2xx\",\
         outcome=\"done\",namespace=\"team-a\",pod=\"{pod}\",container=\"server\"}}"
    )
}

#[test]
fn a_services_pod_is_told_where_people_filter_by_it_and_nowhere_else() {
    let mut metrics = metrics_of_a_pod("llama-0");
    book(&mut metrics, 5_000_000);
    let seen = scrape(&mut metrics);
    assert_eq!(seen[&energy("requests", Some("llama-0"))], 5.0);
    assert_eq!(seen[&energy("overhead", Some("llama-0"))], 1.0);
    assert_eq!(seen[&requests("llama-0")], 1.0);
    let with_a_pod: std::collections::BTreeSet<&str> = seen
        .keys()
        .filter(|series| series.contains("pod=\""))
        .filter_map(|series| series.split('{').next())
        .collect();
    let told = [
        "perjoule_requests_total",
        "perjoule_service_energy_joules_total",
        "perjoule_service_info",
    ];
    assert_eq!(with_a_pod, told.into());
}

#[test]
fn a_service_in_no_pod_has_no_labels_of_one() {
    let seen = scrape(&mut everything());
    let of_the_host: Vec<&String> = seen
        .keys()
        .filter(|series| series.contains(r#"service="vllm""#))
        .collect();
    assert!(!of_the_host.is_empty());
    for label in ["namespace", "pod", "container"] {
        let label = format!("{label}=");
        assert!(of_the_host.iter().all(|series| !series.contains(&label)));
    }
}

#[test]
fn a_service_that_moves_to_another_pod_leaves_its_joules_with_the_first() {
    let mut metrics = metrics_of_a_pod("llama-a");
    book(&mut metrics, 5_000_000);
    metrics.describe_pod(SERVICE, &pod("llama-b"));
    book(&mut metrics, 7_000_000);
    let seen = scrape(&mut metrics);
    assert_eq!(seen[&energy("requests", Some("llama-a"))], 5.0);
    assert_eq!(seen[&energy("requests", Some("llama-b"))], 7.0);
    assert_eq!(
        (seen[&requests("llama-a")], seen[&requests("llama-b")]),
        (1.0, 1.0)
    );
    // One series to join by: where it runs at present.
    let info: Vec<&String> = seen
        .keys()
        .filter(|series| series.contains("service_info"))
        .collect();
    assert!(
        matches!(info.as_slice(), [one] if one.contains("llama-b")),
        "{info:?}"
    );
    // Another agent goes on from there, and so does the first pod.
    let mut next = metrics_of_a_pod("llama-b");
    let saved = serde_json::to_string(&metrics.save()).unwrap();
    next.resume(serde_json::from_str(&saved).unwrap());
    next.describe_pod(SERVICE, &pod("llama-a"));
    book(&mut next, 1_000_000);
    let seen = scrape(&mut next);
    assert_eq!(seen[&energy("requests", Some("llama-a"))], 6.0);
    assert_eq!(seen[&energy("requests", Some("llama-b"))], 7.0);
}

#[test]
fn a_service_of_many_pods_has_a_bounded_number_of_series_and_loses_no_joule() {
    let mut metrics = metrics_of_a_pod("llama-0");
    for number in 0..1_000 {
        metrics.describe_pod(SERVICE, &pod(&format!("llama-{number}")));
        book(&mut metrics, 1_000_000);
    }
    let seen = scrape(&mut metrics);
    let of_requests = |series: &&String| {
        series.starts_with("perjoule_service_energy") && series.contains("requests")
    };
    let sum: f64 = seen
        .iter()
        .filter(|(series, _)| of_requests(series))
        .map(|of| of.1)
        .sum();
    assert_eq!(sum, 1_000.0);
    let count = seen.keys().filter(of_requests).count();
    assert!(count <= 10, "{count} series");
    assert!(seen[&energy("requests", None)] > 900.0);
    let folded = seen[r#"perjoule_series_dropped_total{reason="pods"}"#];
    assert_eq!(folded as usize, 1_000 - (count - 1));
}

#[test]
fn services_that_share_a_name_of_the_rest_are_in_no_pod() {
    let mut metrics = metrics_of_a_pod("llama-0");
    for number in 10..60 {
        let id = ServiceId(number);
        metrics.describe_service(id, &format!("job-{number}"), None);
        metrics.describe_pod(id, &pod(&format!("job-{number}")));
    }
    let seen = scrape(&mut metrics);
    let other: Vec<&String> = seen
        .keys()
        .filter(|series| series.contains("\"other\""))
        .collect();
    assert!(!other.is_empty());
    assert!(
        other.iter().all(|series| !series.contains("pod=")),
        "{other:?}"
    );
}

#[test]
fn a_gpu_names_the_container_that_it_was_given_to() {
    let mut metrics = metrics();
    let mut board = telemetry();
    board.instances = vec![MigInstance {
        id: 3,
        slices: 2,
        uuid: "MIG-a".to_owned(),
    }];
    metrics.record_gpu_telemetry(board);
    let gpus = [
        given("GPU-7", "nvidia.com/gpu", pod("whole")),
        given("MIG-a", "nvidia.com/mig-2g.20gb", pod("part")),
        given("MIG-b", "nvidia.com/mig-2g.20gb", pod("elsewhere")),
    ];
    metrics.record_gpu_pods(Timestamp(9 * SECOND), &gpus);
    let seen = scrape(&mut metrics);
    let shown = |device: &str, uuid: &str, pod: &str, resource: &str| {
        let series = format!(
            "perjoule_gpu_pod_info{{device=\"{device}\",uuid=\"{uuid}\",namespace=\"team-a\",\
             pod=\"{pod}\",container=\"server\",resource=\"{resource}\",claim=\"\"}}"
        );
        seen.get(&series) == Some(&1.0)
    };
    assert!(shown("GPU-7", "", "whole", "nvidia.com/gpu"), "{seen:?}");
    assert!(shown("GPU-1", "MIG-a", "part", "nvidia.com/mig-2g.20gb"));
    // An instance of a board that was not seen.
    assert!(shown("MIG-b", "", "elsewhere", "nvidia.com/mig-2g.20gb"));
}

#[test]
fn names_that_are_one_once_they_are_cut_are_one_series() {
    let mut metrics = metrics();
    let long = "a".repeat(200);
    let gpus = [0, 1].map(|end| given("GPU-7", "nvidia.com/gpu", pod(&format!("{long}{end}"))));
    metrics.record_gpu_pods(Timestamp(9 * SECOND), &gpus);
    let seen = scrape(&mut metrics);
    let shown = seen.keys().filter(|series| series.contains("gpu_pod_info"));
    assert_eq!(shown.count(), 1);
}

#[test]
fn what_a_kubelet_said_that_is_silent_for_minutes_is_not_shown() {
    let mut metrics = metrics();
    let gpus = [given("GPU-7", "nvidia.com/gpu", pod("whole"))];
    metrics.record_gpu_pods(Timestamp(9 * SECOND), &gpus);
    for (at, shown) in [(300, true), (310, false)] {
        metrics.publish(Timestamp(at * SECOND), None);
        let text = body(&metrics, Format::Text);
        assert_eq!(text.contains("perjoule_gpu_pod_info{"), shown, "{at} s");
    }
}
