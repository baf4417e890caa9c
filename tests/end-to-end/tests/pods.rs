//! What Kubernetes calls services and who has their GPUs, without a right in the cluster: from cgroups,
//! log directories and the kubelet's socket.

#[path = "pods/kubelet.rs"]
mod kubelet;
#[path = "pods/services.rs"]
mod services;
