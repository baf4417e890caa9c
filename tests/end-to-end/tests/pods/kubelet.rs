//! What is made of a kubelet's answers, and of its failures. Needs no root.

use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::kubelet::{
    Answer, Cdi, Claim, ClaimResource, Container, Devices, Kubelet, List, Node, Pod, Topology,
};
use end_to_end::scaled;
use profiler::kubelet::{Kubelet as Asked, News};
use profiler::pods::GpuPod;

fn pod(name: &str, containers: Vec<Container>) -> Pod {
    Pod {
        name: name.to_owned(),
        namespace: "team-a".to_owned(),
        containers,
    }
}

fn container(name: &str, resource: &str, ids: &[&str]) -> Container {
    Container {
        name: name.to_owned(),
        devices: vec![Devices {
            resource: resource.to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            topology: Some(Topology {
                nodes: vec![Node { id: 1 }],
            }),
        }],
        cpu_ids: vec![2, 3, 4],
        claims: Vec::new(),
    }
}

/// With one claim, as kubelets of 1.31 and later tell it.
fn claiming(claim: &str, resource: ClaimResource) -> Container {
    Container {
        name: "server".to_owned(),
        claims: vec![Claim {
            name: claim.to_owned(),
            namespace: "team-a".to_owned(),
            resources: vec![resource],
            ..Claim::default()
        }],
        ..Container::default()
    }
}

fn resource(driver: &str, device: &str, cdi: &str) -> ClaimResource {
    ClaimResource {
        cdi: vec![Cdi {
            name: cdi.to_owned(),
        }],
        driver: driver.to_owned(),
        pool: "node-1".to_owned(),
        device: device.to_owned(),
    }
}

/// Device, resource, claim, pod and container, as they are understood.
fn understood(pods: Vec<Pod>) -> Vec<[String; 5]> {
    let kubelet = Kubelet::start(Answer::List(List { pods }));
    let gpus = Asked::list(&kubelet.socket()).expect("an answer");
    let row = |gpu: GpuPod| {
        assert_eq!(gpu.names.namespace, "team-a");
        let GpuPod {
            device,
            resource,
            claim,
            names,
        } = gpu;
        [device, resource, claim, names.pod, names.container]
    };
    gpus.into_iter().map(row).collect()
}

fn rows<const N: usize>(rows: [[&str; 5]; N]) -> Vec<[String; 5]> {
    rows.map(|row| row.map(str::to_owned)).into()
}

#[test]
fn a_gpu_of_its_own_a_part_of_one_and_no_gpu_are_told_apart() {
    let own = container("vllm", "nvidia.com/gpu", &["GPU-2", "GPU-1"]);
    let part = container("tgi", "nvidia.com/mig-1g.10gb", &["MIG-1"]);
    let none = container("proxy", "example.com/nic", &["eth1"]);
    let found = understood(vec![
        pod("llama", vec![own, none]),
        pod("small", vec![part]),
        pod("idle", vec![Container::default()]),
    ]);
    let expected = rows([
        ["GPU-1", "nvidia.com/gpu", "", "llama", "vllm"],
        ["GPU-2", "nvidia.com/gpu", "", "llama", "vllm"],
        ["MIG-1", "nvidia.com/mig-1g.10gb", "", "small", "tgi"],
    ]);
    assert_eq!(found, expected);
}

#[test]
fn replicas_of_a_shared_gpu_are_that_gpu_once_for_each_container() {
    let shared = |ids: &[&str]| container("server", "nvidia.com/gpu.shared", ids);
    let found = understood(vec![
        pod("one", vec![shared(&["GPU-1::0", "GPU-1::3"])]),
        pod("two", vec![shared(&["GPU-1::2"])]),
    ]);
    let expected = rows([
        ["GPU-1", "nvidia.com/gpu.shared", "", "one", "server"],
        ["GPU-1", "nvidia.com/gpu.shared", "", "two", "server"],
    ]);
    assert_eq!(found, expected);
}

#[test]
fn claims_name_the_device_as_their_driver_does_or_by_its_uuid() {
    let by_name = resource(
        "gpu.nvidia.com",
        "gpu-0",
        "k8s.gpu.nvidia.com/claim=4f1e-gpu-0",
    );
    let by_uuid = resource("gpu.nvidia.com", "gpu-1", "nvidia.com/gpu=GPU-7");
    // Until 1.30: the CDI device alone.
    let before = resource("", "", "k8s.gpu.nvidia.com/device=gpu-2");
    let other = resource("nic.example.com", "eth1", "example.com/nic=eth1");
    let found = understood(vec![
        pod("a", vec![claiming("one-gpu", by_name)]),
        pod("b", vec![claiming("by-uuid", by_uuid)]),
        pod("c", vec![claiming("before", before)]),
        pod("d", vec![claiming("network", other)]),
    ]);
    let expected = rows([
        ["GPU-7", "gpu.nvidia.com", "by-uuid", "b", "server"],
        ["gpu-0", "gpu.nvidia.com", "one-gpu", "a", "server"],
        ["gpu-2", "gpu.nvidia.com", "before", "c", "server"],
    ]);
    assert_eq!(found, expected);
}

#[test]
fn an_older_kubelet_leaves_fields_out_and_is_understood() {
    let mut old = container("vllm", "nvidia.com/gpu", &["GPU-1"]);
    old.cpu_ids.clear();
    old.devices[0].topology = None;
    let found = understood(vec![pod("llama", vec![old])]);
    let expected = rows([["GPU-1", "nvidia.com/gpu", "", "llama", "vllm"]]);
    assert_eq!(found, expected);
    assert_eq!(understood(Vec::new()), rows([]));
}

#[test]
fn a_node_with_many_pods_is_understood() {
    // A few hundred kilobytes: more than HTTP/2 sends without being asked for more.
    let pods = (0..250).map(|number| {
        let mut big = container("server", "nvidia.com/gpu", &[&format!("GPU-{number:03}")]);
        big.cpu_ids = (0..2_000).collect();
        pod(&format!("llama-{number}"), vec![big])
    });
    assert_eq!(understood(pods.collect()).len(), 250);
}

#[test]
fn what_is_no_answer_is_an_error_that_says_why() {
    let kubelet = Kubelet::start(Answer::Refuse);
    for (answer, told) in [
        (Answer::Refuse, "status 7 not for you"),
        (Answer::NotGrpc, "not gRPC"),
        (Answer::Noise, "failed"),
        (Answer::Cut, "makes no sense"),
        (Answer::Message(vec![0xff; 40]), "makes no sense"),
    ] {
        kubelet.set(answer.clone());
        let error = Asked::list(&kubelet.socket()).expect_err("no answer");
        assert!(error.contains(told), "{answer:?}: {error}");
    }
    let error = Asked::list(&kubelet.root().join("nowhere")).expect_err("no socket");
    assert!(error.contains("cannot be opened"), "{error}");
}

#[test]
fn a_kubelet_that_hangs_is_given_up_in_seconds() {
    for answer in [Answer::Hang, Answer::Mute] {
        let kubelet = Kubelet::start(answer);
        let began = Instant::now();
        let error = Asked::list(&kubelet.socket()).expect_err("no answer");
        assert!(error.contains("does not answer within 5 s"), "{error}");
        assert!(began.elapsed() < scaled(Duration::from_secs(7)));
    }
}

/// The next news, and how long it was waited for.
fn next(asked: &Asked) -> (News, Duration) {
    let began = Instant::now();
    loop {
        if let Some(news) = asked.next() {
            return (news, began.elapsed());
        }
        assert!(began.elapsed() < scaled(Duration::from_secs(10)), "no news");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_is_asked_at_once_and_when_told_to_but_not_more_than_once_a_second() {
    let kubelet = Kubelet::start(Answer::List(List::default()));
    let asked = Asked::start(kubelet.socket()).expect("a thread");
    let (first, _) = next(&asked);
    assert_eq!(first.gpus, Ok(Vec::new()));
    let one = container("vllm", "nvidia.com/gpu", &["GPU-1"]);
    kubelet.set(Answer::List(List {
        pods: vec![pod("llama", vec![one])],
    }));
    for _ in 0..50 {
        asked.ask();
    }
    let (second, waited) = next(&asked);
    assert_eq!(second.gpus.expect("an answer").len(), 1);
    assert!(waited < scaled(Duration::from_secs(2)), "{waited:?}");
    sleep(Duration::from_millis(1_500));
    assert!(kubelet.calls() <= 3, "{} calls", kubelet.calls());
}

#[test]
fn asking_and_hearing_never_wait_for_a_kubelet_that_hangs() {
    let kubelet = Kubelet::start(Answer::Mute);
    let asked = Asked::start(kubelet.socket()).expect("a thread");
    let began = Instant::now();
    for _ in 0..1_000 {
        asked.ask();
        assert!(asked.next().is_none());
    }
    assert!(began.elapsed() < scaled(Duration::from_millis(500)));
}
