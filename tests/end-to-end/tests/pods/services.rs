//! The agent beside a serving stack in a cgroup as a kubelet makes it. Root.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::cgroup::{Cgroup, container_id};
use end_to_end::kubelet::{Answer, Container, Devices, Kubelet, List, Pod};
use end_to_end::stack::Stack;
use end_to_end::{http, is_root, scaled};

const POD: &str = "llama-7d9f8b6c5-x2vwz";
const PLACE: [&str; 3] = [
    "namespace=\"team-a\"",
    "pod=\"llama-7d9f8b6c5-x2vwz\"",
    "container=\"vllm\"",
];

/// A stack in a pod's container on a node with a kubelet.
struct Served {
    agent: Agent,
    stack: Stack,
    kubelet: Kubelet,
    /// The container's first twelve digits.
    short: String,
    _cgroup: Cgroup,
}

impl Served {
    /// `None`, said, where no cgroup can be made.
    fn start(number: u32, link: bool, answer: impl Fn(&str) -> Answer) -> Option<Self> {
        let stack = Stack::start();
        let kubelet = Kubelet::start(answer(&device(&stack)));
        let id = container_id(number);
        // systemd's driver, burstable.
        let uid = format!("{number:08x}_4d0c_4a53_9a0f_{:012x}", std::process::id());
        let slice = format!("kubepods-burstable-pod{uid}.slice");
        let path = format!("kubepods.slice/kubepods-burstable.slice/{slice}");
        let cgroup = Cgroup::make(&format!("{path}/cri-containerd-{id}.scope"))?;
        stack.pids().into_iter().for_each(|pid| cgroup.take(pid));
        if link {
            let links = kubelet.root().join("var/log/containers");
            fs::create_dir_all(&links).expect("a folder");
            let name = format!("{POD}_team-a_vllm-{id}.log");
            symlink("/var/log/pods/nowhere", links.join(name)).expect("a link");
        }
        let root = kubelet.root().to_str().expect("a path").to_owned();
        let agent = Agent::start_with(stack.perjoule(), &["--host-root", &root]);
        Some(Self {
            agent,
            stack,
            kubelet,
            short: id[..12].to_owned(),
            _cgroup: cgroup,
        })
    }

    fn scrape(&self) -> String {
        http::body(&http::get(self.agent.port(), "/metrics")).to_owned()
    }

    /// Scrapes until it shows this.
    fn wait_for(&self, what: &str, shown: impl Fn(&str) -> bool) -> String {
        let give_up = Instant::now() + scaled(Duration::from_secs(15));
        loop {
            let text = self.scrape();
            if shown(&text) {
                return text;
            }
            assert!(
                Instant::now() < give_up,
                "{what}: {text}\n{}",
                self.agent.log()
            );
            sleep(Duration::from_millis(100));
        }
    }

    fn load(&self) {
        let mut load = self.stack.load(6.0, 3);
        assert!(load.wait().expect("a load").success());
        sleep(Duration::from_millis(1_500));
    }
}

/// What the stack's GPU is called, as the library says.
fn device(stack: &Stack) -> String {
    let agent = Agent::start_with(stack.perjoule(), &[]);
    let text = http::get(agent.port(), "/metrics");
    let device = text.split("perjoule_gpu_info{device=\"").nth(1);
    let device = device.and_then(|rest| rest.split('"').next());
    device.expect("a GPU").to_owned()
}

/// A kubelet that has given the GPU to the pod.
fn given(device: &str) -> Answer {
    let devices = Devices {
        resource: "nvidia.com/gpu".to_owned(),
        ids: vec![device.to_owned()],
        topology: None,
    };
    let container = Container {
        name: "vllm".to_owned(),
        devices: vec![devices],
        ..Container::default()
    };
    Answer::List(List {
        pods: vec![Pod {
            name: POD.to_owned(),
            namespace: "team-a".to_owned(),
            containers: vec![container],
        }],
    })
}

/// The sum of all series of a name with these labels.
fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(&format!("{name}{{")))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn assert_adds_up(text: &str) {
    assert!(
        text.contains("perjoule_ledger_residual_joules 0\n"),
        "{text}"
    );
    for component in ["gpu", "cpu"] {
        let component = format!("component=\"{component}\"");
        let meter = sum(text, "perjoule_meter_energy_joules_total", &[&component]);
        let accounts = sum(text, "perjoule_energy_account_joules_total", &[&component]);
        assert!(
            (meter - accounts).abs() < 1e-6 * meter,
            "{meter} {accounts}"
        );
        for part in ["requests", "overhead"] {
            let account = format!("account=\"{part}\"");
            let account = sum(
                text,
                "perjoule_energy_account_joules_total",
                &[&component, &account],
            );
            let part = format!("part=\"{part}\"");
            let services = sum(
                text,
                "perjoule_service_energy_joules_total",
                &[&component, &part],
            );
            println!("{component} {part}: {services} J of services, {account} J in the account");
            assert!(
                (services - account).abs() <= 1e-6 * meter,
                "{services} {account}"
            );
        }
    }
}

#[test]
fn a_pods_container_is_a_service_by_its_name_and_its_energy_has_its_pod() {
    if !is_root("pods") {
        return;
    }
    let Some(served) = Served::start(1, true, given) else {
        return;
    };
    served.load();
    let text = served.wait_for("requests", |text| {
        sum(text, "perjoule_requests_total", &PLACE) as usize >= served.stack.served()
    });
    let of = |name: &str, more: &[&str]| sum(&text, name, &[&PLACE[..], more].concat());
    let service = "service=\"vllm\"";
    assert_eq!(of("perjoule_service_info", &[service]), 1.0);
    let energy = "perjoule_service_energy_joules_total";
    let requests = of(energy, &[service, "component=\"gpu\"", "part=\"requests\""]);
    assert!(requests > 0.0);
    // All of it is the pod's.
    assert_eq!(
        requests,
        sum(&text, energy, &["component=\"gpu\"", "part=\"requests\""])
    );
    assert_eq!(
        of("perjoule_gpu_pod_info", &["resource=\"nvidia.com/gpu\""]),
        1.0
    );
    assert_adds_up(&text);
    let log = served.agent.log();
    let told = format!(
        "service vllm, pod team-a/{POD}, containerd {}",
        served.short
    );
    assert!(log.contains(&told), "{log}");
}

#[test]
fn without_log_directories_the_gpu_names_the_pod() {
    if !is_root("pods") {
        return;
    }
    let Some(served) = Served::start(2, false, given) else {
        return;
    };
    let text = served.wait_for("the pod", |text| {
        sum(text, "perjoule_service_info", &PLACE) == 1.0
    });
    // Its name was given before the kubelet had answered.
    let service = format!("service=\"{}\"", served.short);
    assert_eq!(
        sum(&text, "perjoule_service_info", &[&service]),
        1.0,
        "{text}"
    );
    served.load();
    let text = served.wait_for("requests", |text| {
        sum(text, "perjoule_requests_total", &PLACE) > 0.0
    });
    assert_adds_up(&text);
}

#[test]
fn a_kubelet_that_hangs_holds_nothing_up() {
    if !is_root("pods") {
        return;
    }
    let Some(served) = Served::start(3, true, |_| Answer::Mute) else {
        return;
    };
    served.load();
    let text = served.wait_for("requests", |text| {
        sum(text, "perjoule_requests_total", &PLACE) as usize >= served.stack.served()
    });
    assert_adds_up(&text);
    let up = "perjoule_source_up{source=\"kubelet\"}";
    served.wait_for("a source that is down", |text| {
        text.contains(&format!("{up} 0"))
    });
    assert!(
        served.agent.log().contains("the kubelet does not answer"),
        "{}",
        served.agent.log()
    );
    assert!(served.kubelet.calls() >= 1);
}
