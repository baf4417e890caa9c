//! What is read of the kubelet's answer, by the fields' numbers: no protoc, no generated code.
//!
//! Source: `k8s.io/kubelet/pkg/apis/podresources/v1/api.proto`. A kubelet that is older leaves fields out;
//! those it sends beside these are passed over.

use std::collections::BTreeSet;

use prost::Message;

use crate::pods::{GpuPod, PodNames};

/// More devices on one node are a mistake, or an attack on its memory.
const MOST_DEVICES: usize = 1_024;
/// What names of NVIDIA's resources begin with: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`.
const RESOURCES: &str = "nvidia.com/";
/// NVIDIA's driver for claims of GPUs.
const CLAIM_DRIVER: &str = "gpu.nvidia.com";

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListPodResourcesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) pod_resources: Vec<PodResources>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodResources {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerResources {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) devices: Vec<ContainerDevices>,
    #[prost(message, repeated, tag = "5")]
    pub(super) dynamic_resources: Vec<DynamicResource>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerDevices {
    #[prost(string, tag = "1")]
    pub(super) resource_name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) device_ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DynamicResource {
    #[prost(string, tag = "2")]
    pub(super) claim_name: String,
    #[prost(message, repeated, tag = "4")]
    pub(super) claim_resources: Vec<ClaimResource>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ClaimResource {
    #[prost(message, repeated, tag = "1")]
    pub(super) cdi_devices: Vec<CdiDevice>,
    #[prost(string, tag = "2")]
    pub(super) driver_name: String,
    #[prost(string, tag = "4")]
    pub(super) device_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CdiDevice {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

impl ListPodResourcesResponse {
    /// Which containers have which GPUs; a container's replicas of one GPU are one.
    pub(super) fn gpu_pods(self) -> Vec<GpuPod> {
        let mut found = BTreeSet::new();
        for pod in self.pod_resources {
            for container in pod.containers {
                let names = PodNames {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container: container.name,
                };
                let plugged = container.devices.into_iter().flat_map(plugged);
                let claimed = container.dynamic_resources.into_iter().flat_map(claimed);
                found.extend(plugged.chain(claimed).map(|(device, resource, claim)| {
                    let names = names.clone();
                    GpuPod {
                        device,
                        resource,
                        claim,
                        names,
                    }
                }));
            }
        }
        found.into_iter().take(MOST_DEVICES).collect()
    }
}

/// Device, resource, claim.
type Given = (String, String, String);

/// Of a device plugin. One that shares GPUs numbers a GPU's replicas: `GPU-…::3`.
fn plugged(devices: ContainerDevices) -> Vec<Given> {
    let resource = devices.resource_name;
    if !resource.starts_with(RESOURCES) {
        return Vec::new();
    }
    let given = |id: String| {
        let device = id
            .split_once("::")
            .map_or(id.as_str(), |(device, _)| device);
        (device.to_owned(), resource.clone(), String::new())
    };
    devices.device_ids.into_iter().map(given).collect()
}

/// Of a claim (DRA). What the driver calls a GPU there (`gpu-0`) is not its UUID, unless a CDI device
/// of it is named by one.
fn claimed(resource: DynamicResource) -> Vec<Given> {
    let claim = resource.claim_name;
    let given = |of: ClaimResource| {
        let cdi = of
            .cdi_devices
            .iter()
            .filter_map(|device| device.name.split_once('='));
        let (kind, cdi): (Vec<&str>, Vec<&str>) = cdi.unzip();
        let vendor = kind
            .first()
            .and_then(|kind| kind.split('/').next())
            .unwrap_or_default();
        let is_gpu = if of.driver_name.is_empty() {
            vendor.ends_with(CLAIM_DRIVER) || kind.contains(&"nvidia.com/gpu")
        } else {
            of.driver_name == CLAIM_DRIVER
        };
        let uuid = cdi
            .iter()
            .find(|name| name.starts_with("GPU-") || name.starts_with("MIG-"));
        let named = Some(of.device_name.as_str()).filter(|name| !name.is_empty());
        let device = uuid.copied().or(named).or(cdi.first().copied())?;
        is_gpu.then(|| (device.to_owned(), CLAIM_DRIVER.to_owned(), claim.clone()))
    };
    resource
        .claim_resources
        .into_iter()
        .filter_map(given)
        .collect()
}
