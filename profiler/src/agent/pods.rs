//! What Kubernetes calls services and who has which GPU, as the agent tells its sinks.
//!
//! A container's names come from the host's log directories (with the service); where they do not say
//! all, from the kubelet: a GPU that one container alone has was given to that one.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Agent;
use super::sinks::Sinks;
use crate::finding::{Finding, Status};
use crate::kubelet::{Kubelet, LONGEST_SILENCE};
use crate::ledger::ServiceId;
use crate::meters::SourceState;
use crate::pods::{GpuPod, PodNames};
use crate::services::cgroups::{Group, Kind, Runtime};
use crate::services::{self, POD_LOGS, Service};

/// The name of this source.
const SOURCE: &str = "kubelet";

/// The pods of one agent's services.
#[derive(Debug)]
pub(super) struct Pods {
    socket: PathBuf,
    /// From when its socket is first seen.
    kubelet: Option<Kubelet>,
    /// As it told last.
    gpus: Vec<GpuPod>,
    /// As the sinks were told last, and of which container.
    told: HashMap<ServiceId, (Option<Group>, PodNames)>,
    /// Of the kubelet.
    state: SourceState,
}

impl Pods {
    pub(super) fn new(host_root: &Path) -> Self {
        Self {
            socket: Kubelet::socket(host_root),
            kubelet: None,
            gpus: Vec::new(),
            told: HashMap::new(),
            state: SourceState::new(SOURCE, LONGEST_SILENCE),
        }
    }

    /// Asks the kubelet once there is one, and again when a pod is new on a GPU.
    pub(super) fn watch(&mut self, before: &[Service], services: &[Service]) {
        let Some(kubelet) = &self.kubelet else {
            if self.socket.exists() {
                match Kubelet::start(self.socket.clone()) {
                    Ok(kubelet) => self.kubelet = Some(kubelet),
                    Err(error) => log::warn!("the kubelet is not asked: {error}"),
                }
            }
            return;
        };
        let is_new = |service: &Service| {
            let was = services::find(before, service.id);
            is_in_a_pod(service)
                && service
                    .gpus
                    .iter()
                    .any(|gpu| was.is_none_or(|was| !was.gpus.contains(gpu)))
        };
        if services.iter().any(is_new) {
            kubelet.ask();
        }
    }

    /// The service has ended.
    pub(super) fn forget(&mut self, service: ServiceId) {
        self.told.remove(&service);
    }

    /// Takes what the kubelet has told since; its state, if it told anything.
    fn take_news(&mut self, sinks: &mut Sinks) -> Option<SourceState> {
        let mut told = false;
        while let Some(news) = self.kubelet.as_ref().and_then(Kubelet::next) {
            told = true;
            self.state.calls += 1;
            self.state.busy += news.took;
            self.state.up = news.gpus.is_ok();
            match news.gpus {
                Ok(gpus) => {
                    sinks.metrics.record_gpu_pods(news.at, &gpus);
                    self.gpus = gpus;
                    self.state.last_at = Some(news.at);
                    self.state.error = None;
                }
                Err(error) => {
                    self.state.errors += 1;
                    self.state.error = Some(error);
                }
            }
        }
        told.then(|| self.state.clone())
    }

    /// Tells the sinks the names of services whose names are not those that were told. `devices`: the
    /// GPUs of a service.
    fn name(
        &mut self,
        services: &[Service],
        sinks: &mut Sinks,
        devices: impl Fn(&Service) -> Vec<String>,
    ) {
        for service in services.iter().filter(|service| !service.pids.is_empty()) {
            let told = self.told.get(&service.id);
            let told = told.filter(|(group, _)| *group == service.group);
            // A container keeps its names, also when it has left its GPU.
            if told.is_some_and(|(_, names)| !names.container.is_empty()) {
                continue;
            }
            let names = names(service, &devices(service), &self.gpus).unwrap_or_default();
            if told.is_none_or(|(_, told)| *told != names) {
                sinks.metrics.describe_pod(service.id, &names);
                self.told.insert(service.id, (service.group.clone(), names));
            }
        }
    }
}

impl Agent {
    /// Takes what the kubelet has told.
    pub(super) fn take_pods(&mut self) {
        if let Some(state) = self.pods.take_news(&mut self.sinks) {
            self.take_state(&state);
            self.name_services();
        }
    }

    /// Tells where in Kubernetes services run.
    pub(super) fn name_services(&mut self) {
        let meters = &self.meters;
        self.pods.name(&self.services, &mut self.sinks, |service| {
            let meters = service.gpus.iter().filter_map(|gpu| meters.get(gpu));
            meters.map(|meter| meter.device.clone()).collect()
        });
    }
}

/// A service's container, for the log: `, pod team-a/llama-0, containerd 4f1e8a0c6d9b`.
pub(super) fn told(service: &Service) -> String {
    let pod = service.pod.as_ref();
    let pod = pod.map(|names| format!(", pod {}/{}", names.namespace, names.pod));
    let container = service
        .group
        .as_ref()
        .filter(|group| group.kind == Kind::Container);
    let container = container.map(|group| {
        let runtime = group.runtime.map_or("container", Runtime::name);
        format!(", {runtime} {}", group.short_id())
    });
    [pod, container].into_iter().flatten().collect()
}

fn is_in_a_pod(service: &Service) -> bool {
    service
        .group
        .as_ref()
        .is_some_and(|group| group.pod.is_some())
}

/// What a service's container is called: what is missing in the log directories is told by its GPUs,
/// if all of them that are known were given to one container.
fn names(service: &Service, devices: &[String], gpus: &[GpuPod]) -> Option<PodNames> {
    let known = service.pod.as_ref();
    if known.is_some_and(|names| !names.container.is_empty()) || !is_in_a_pod(service) {
        return known.cloned();
    }
    let may_be = |names: &PodNames| {
        known.is_none_or(|known| (&known.namespace, &known.pod) == (&names.namespace, &names.pod))
    };
    let holders: BTreeSet<&PodNames> = gpus
        .iter()
        .filter(|given| devices.contains(&given.device) && may_be(&given.names))
        .map(|given| &given.names)
        .collect();
    let mut holders = holders.into_iter();
    match (holders.next(), holders.next()) {
        (Some(only), None) => Some(only.clone()),
        _ => known.cloned(),
    }
}

/// Where names come from on this machine.
pub(super) fn examine(host_root: &Path) -> Vec<Finding> {
    let logs = host_root.join(POD_LOGS);
    let names = match fs::read_dir(&logs) {
        Ok(entries) => {
            let found = format!("names of {} pods in {}", entries.count(), logs.display());
            Finding::pass("pod-names", found)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let found = format!("no {}: no Kubernetes, or another host_root", logs.display());
            Finding::pass("pod-names", found)
        }
        Err(error) => {
            let found = format!("{}: {error}", logs.display());
            let fix = "let perjoule read the names in it; services then have their pods' names";
            Finding::of("pod-names", Status::Warn, found, fix)
        }
    };
    let socket = Kubelet::socket(host_root);
    let kubelet = if socket.exists() {
        match Kubelet::list(&socket) {
            Ok(gpus) => Finding::pass(SOURCE, format!("GPUs given to containers: {}", gpus.len())),
            Err(error) => {
                let fix = "see that perjoule may open the socket and the kubelet runs; without it no pod is told of a GPU";
                Finding::of(SOURCE, Status::Warn, error, fix)
            }
        }
    } else {
        Finding::pass(SOURCE, format!("no {}", socket.display()))
    };
    vec![names, kubelet]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::services::cgroups;

    const ID: &str = "4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c";
    const UID: &str = "0b2f6f8e-4d0c-4a53-9a0f-0b7d2a5c1e11";

    fn service(path: &str, pod: Option<PodNames>) -> Service {
        Service {
            id: ServiceId(0),
            name: "vllm".to_owned(),
            group: cgroups::group(&format!("0::{path}\n")),
            pod,
            pids: BTreeSet::from([7]),
            listeners: Vec::new(),
            gpus: Vec::new(),
        }
    }

    fn in_a_pod(pod: Option<PodNames>) -> Service {
        service(&format!("/kubepods/pod{UID}/{ID}"), pod)
    }

    fn pod(name: &str, container: &str) -> PodNames {
        PodNames {
            namespace: "a".to_owned(),
            pod: name.to_owned(),
            container: container.to_owned(),
        }
    }

    fn given(device: &str, names: PodNames) -> GpuPod {
        GpuPod {
            device: device.to_owned(),
            resource: "nvidia.com/gpu".to_owned(),
            claim: String::new(),
            names,
        }
    }

    fn named(service: &Service, gpus: &[GpuPod]) -> Option<PodNames> {
        names(service, &["GPU-1".to_owned(), "GPU-2".to_owned()], gpus)
    }

    #[test]
    fn a_gpu_that_one_container_has_names_the_service_on_it() {
        let own = given("GPU-1", pod("llama", "vllm"));
        let second = given("GPU-2", pod("llama", "vllm"));
        let foreign = given("GPU-3", pod("other", "x"));
        let gpus = [own, second, foreign];
        assert_eq!(named(&in_a_pod(None), &gpus), Some(pod("llama", "vllm")));
        // A pod with several containers, of which the log directories say no more.
        let several = in_a_pod(Some(pod("llama", "")));
        assert_eq!(named(&several, &gpus), Some(pod("llama", "vllm")));
    }

    #[test]
    fn a_gpu_that_containers_share_names_nobody_unless_the_pod_is_known() {
        let gpus = ["llama", "mistral"].map(|name| given("GPU-1", pod(name, "vllm")));
        assert_eq!(named(&in_a_pod(None), &gpus), None);
        let known = in_a_pod(Some(pod("mistral", "")));
        assert_eq!(named(&known, &gpus), Some(pod("mistral", "vllm")));
        let elsewhere = in_a_pod(Some(pod("qwen", "")));
        assert_eq!(named(&elsewhere, &gpus), Some(pod("qwen", "")));
    }

    #[test]
    fn what_is_in_no_pod_is_not_named_by_its_gpu() {
        let gpus = [given("GPU-1", pod("llama", "vllm"))];
        let unit = service("/system.slice/vllm.service", None);
        assert_eq!(named(&unit, &gpus), None);
        assert_eq!(named(&service("/", None), &gpus), None);
    }

    #[test]
    fn a_machine_without_kubernetes_lacks_nothing() {
        let findings = examine(Path::new("/nonexistent"));
        assert!(
            findings
                .iter()
                .all(|finding| finding.status == Status::Pass)
        );
    }
}
