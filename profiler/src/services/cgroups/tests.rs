use proptest::prelude::*;

use super::*;

const ID: &str = "4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c";
const OUTER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const UID: &str = "0b2f6f8e-4d0c-4a53-9a0f-0b7d2a5c1e11";
/// Of a static pod: the hash of its file.
const HASH: &str = "7c1f0b2f6f8e4d0c4a539a0f0b7d2a5c";

const CONTAINERD: Option<Runtime> = Some(Runtime::Containerd);
const CRI_O: Option<Runtime> = Some(Runtime::CriO);
const DOCKER: Option<Runtime> = Some(Runtime::Docker);
const PODMAN: Option<Runtime> = Some(Runtime::Podman);

/// Of one path, as version 2 shows it.
fn found(path: &str) -> Option<Group> {
    group(&format!("0::{path}\n"))
}

fn container(pod: Option<&str>, runtime: Option<Runtime>) -> Group {
    Group {
        pod: pod.map(str::to_owned),
        runtime,
        ..Group::new(Kind::Container, ID)
    }
}

#[test]
fn pods_of_every_runtime_driver_and_quality_of_service_are_recognised() {
    let uid = UID.replace('-', "_");
    for (path, runtime) in [
        // systemd's driver: burstable, best effort, guaranteed.
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/\
                 cri-containerd-{ID}.scope"
            ),
            CONTAINERD,
        ),
        (
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/\
                 crio-{ID}.scope"
            ),
            CRI_O,
        ),
        (
            format!("/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{ID}.scope"),
            CONTAINERD,
        ),
        (
            format!("/kubepods.slice/kubepods-pod{uid}.slice/docker-{ID}.scope"),
            DOCKER,
        ),
        // With a child of its own (crun), and with systemd inside.
        (
            format!("/kubepods.slice/kubepods-pod{uid}.slice/crio-{ID}.scope/container"),
            CRI_O,
        ),
        (
            format!(
                "/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{ID}.scope/system.slice/\
                 nginx.service"
            ),
            CONTAINERD,
        ),
        // The file system's driver.
        (format!("/kubepods/burstable/pod{UID}/{ID}"), None),
        (format!("/kubepods/besteffort/pod{UID}/{ID}"), None),
        (format!("/kubepods/pod{UID}/{ID}"), None),
        (format!("/kubepods/burstable/pod{UID}/crio-{ID}"), CRI_O),
        // Another root than the machine's.
        (
            format!("/podruntime/kubepods/burstable/pod{UID}/{ID}"),
            None,
        ),
        (
            format!(
                "/gpu.slice/gpu-kubepods.slice/gpu-kubepods-pod{uid}.slice/cri-containerd-{ID}.scope"
            ),
            CONTAINERD,
        ),
        // runc with systemd's driver and cgroupfs's names.
        (
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{uid}.slice:\
                 cri-containerd:{ID}"
            ),
            CONTAINERD,
        ),
        // From another cgroup namespace: relative to the one who reads.
        (
            format!("/../../kubepods-burstable-pod{uid}.slice/cri-containerd-{ID}.scope"),
            CONTAINERD,
        ),
        // A unit around the kubelet's own containers does not name them.
        (
            format!("/system.slice/k3s-agent.service/kubepods/burstable/pod{UID}/{ID}"),
            None,
        ),
    ] {
        assert_eq!(found(&path), Some(container(Some(UID), runtime)), "{path}");
    }
}

#[test]
fn static_pods_have_the_hash_of_their_file_for_a_uid() {
    for path in [
        format!("/kubepods/burstable/pod{HASH}/{ID}"),
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/{ID}"),
    ] {
        assert_eq!(found(&path), Some(container(Some(HASH), None)), "{path}");
    }
}

#[test]
fn a_node_in_a_container_counts_for_its_pods_and_only_for_its_own_processes() {
    let uid = UID.replace('-', "_");
    let node = format!("/system.slice/docker-{OUTER}.scope");
    let pod = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
               kubelet-kubepods-burstable-pod";
    let inner = format!("{pod}{uid}.slice/cri-containerd-{ID}.scope");
    // As the machine sees it, as the node sees it, as a neighbour of the node sees it.
    for around in [node.as_str(), "", "/../docker.scope"] {
        let path = format!("{around}{inner}");
        let expected = container(Some(UID), CONTAINERD);
        assert_eq!(found(&path), Some(expected), "{path}");
    }
    let cgroupfs = format!("/docker/{OUTER}/kubelet/kubepods/burstable/pod{UID}/{ID}");
    assert_eq!(found(&cgroupfs), Some(container(Some(UID), None)));
    for path in [
        format!("{node}/system.slice/kubelet.service"),
        format!("{node}/kubelet.slice/kubelet.service"),
        format!("{node}/system.slice/containerd.service"),
        format!("{node}/init.scope"),
    ] {
        let of_the_node = found(&path).map(|group| (group.id, group.pod, group.unit));
        assert_eq!(of_the_node, Some((OUTER.to_owned(), None, None)), "{path}");
    }
    // A pod's container in which docker runs another: that one is of no pod.
    let inside = format!("/kubepods/pod{UID}/{OUTER}/docker/{ID}");
    assert_eq!(found(&inside), Some(container(None, DOCKER)));
}

#[test]
fn containers_outside_kubernetes_are_recognised() {
    let user = "/user.slice/user-1000.slice/user@1000.service";
    for (path, runtime) in [
        (format!("/docker/{ID}"), DOCKER),
        (format!("/system.slice/docker-{ID}.scope"), DOCKER),
        (
            format!("/system.slice/docker-{ID}.scope/init.scope"),
            DOCKER,
        ),
        (format!("{user}/user.slice/docker-{ID}.scope"), DOCKER),
        (format!("/docker/{OUTER}/docker/{ID}"), DOCKER),
        (format!("/machine.slice/libpod-{ID}.scope"), PODMAN),
        (
            format!("/machine.slice/libpod-{ID}.scope/container"),
            PODMAN,
        ),
        (
            format!("{user}/user.slice/libpod-{ID}.scope/container"),
            PODMAN,
        ),
        (
            format!("/machine.slice/machine-libpod_pod_{OUTER}.slice/libpod-{ID}.scope"),
            PODMAN,
        ),
        (format!("/libpod_parent/libpod-{ID}"), PODMAN),
        (format!("/libpod_parent/{ID}"), PODMAN),
        (format!("/system.slice/nerdctl-{ID}.scope"), CONTAINERD),
        (format!("/k8s.io/{ID}"), CONTAINERD),
        (format!("/ecs/0123456789/{ID}"), None),
        (format!("/system.slice/other-{ID}.scope"), None),
    ] {
        assert_eq!(found(&path), Some(container(None, runtime)), "{path}");
    }
}

#[test]
fn a_container_that_a_unit_or_job_runs_is_named_by_it() {
    let user = "/user.slice/user-1000.slice/user@1000.service";
    for (path, name) in [
        // Quadlet, and units that run `podman run --cgroups=split`.
        (
            format!("/system.slice/vllm.service/libpod-payload-{ID}"),
            "vllm",
        ),
        (
            format!("{user}/app.slice/vllm.service/libpod-payload-{ID}"),
            "vllm",
        ),
        (
            format!("/system.slice/vllm@a.service/libpod-payload-{ID}"),
            "vllm@a",
        ),
        (format!("/slurm/uid_1/job_42/step_0/libpod-{ID}"), "job-42"),
        (
            format!("/system.slice/slurmstepd.scope/job_42/step_0/docker-{ID}.scope"),
            "job-42",
        ),
        // A manager, and a unit that runs the container around it, name nothing.
        (format!("/system.slice/docker.service/{ID}"), "4f1e8a0c6d9b"),
        (
            format!("/system.slice/node.service/docker-{OUTER}.scope/docker/{ID}"),
            "4f1e8a0c6d9b",
        ),
    ] {
        let group = found(&path).expect("a container");
        assert_eq!((group.kind, group.id.as_str()), (Kind::Container, ID));
        assert_eq!(group.name(), name, "{path}");
        assert_eq!(group.short_id(), "4f1e8a0c6d9b");
    }
}

#[test]
fn system_containers_are_known_by_their_names() {
    for (path, name) in [
        ("/lxc/web", "web"),
        ("/lxc.payload/web", "web"),
        ("/lxc.payload.web", "web"),
        ("/lxc.payload.web/system.slice/nginx.service", "web"),
        ("/lxc.payload.project_web/init.scope", "project_web"),
        ("/lxc.payload.outer/lxc.payload.inner", "inner"),
    ] {
        let group = found(path).expect("a container");
        assert_eq!((group.kind, group.id.as_str()), (Kind::Container, name));
        assert_eq!(group.runtime, Some(Runtime::Lxc), "{path}");
        assert_eq!(group.container_id(), None, "no id of 64 digits");
        assert_eq!(group.name(), name);
    }
    let inside = found(&format!("/lxc.payload.web/docker/{ID}"));
    assert_eq!(inside, Some(container(None, DOCKER)));
    for path in ["/lxc.monitor.web", "/lxc/", "/lxc.payload."] {
        assert_eq!(found(path), None, "{path}");
    }
}

#[test]
fn a_containers_monitor_is_not_of_the_container() {
    for path in [
        format!("/machine.slice/libpod-conmon-{ID}.scope"),
        format!("/system.slice/crio-conmon-{ID}.scope"),
    ] {
        assert_eq!(found(&path), None, "{path}");
    }
}

#[test]
fn slurm_jobs_are_one_group_over_their_steps() {
    for (path, number) in [
        ("/slurm/uid_1000/job_4711/step_batch/task_0", "4711"),
        ("/slurm_node1/uid_1000/job_4711/step_0", "4711"),
        (
            "/system.slice/slurmstepd.scope/job_4711/step_0/user/task_0",
            "4711",
        ),
        (
            "/system.slice/node1_slurmstepd.scope/job_4711/step_extern",
            "4711",
        ),
        ("/host/slurm_node1/uid_5/job_8/step_0", "8"),
    ] {
        assert_eq!(found(path), Some(Group::new(Kind::Job, number)), "{path}");
    }
    for path in ["/batch/job_8", "/slurm/uid_5/job_x", "/slurm/uid_5/job_"] {
        assert_eq!(found(path), None, "{path}");
    }
}

#[test]
fn units_that_serve_are_groups_and_those_that_manage_are_not() {
    let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/vllm.service";
    for (path, unit, name) in [
        (
            "/system.slice/vllm.service",
            "/system.slice/vllm.service",
            "vllm",
        ),
        (
            "/system.slice/vllm.service/child",
            "/system.slice/vllm.service",
            "vllm",
        ),
        (user, user, "vllm"),
        (
            "/system.slice/system-vllm.slice/vllm@8000.service",
            "/system.slice/system-vllm.slice/vllm@8000.service",
            "vllm@8000",
        ),
        (
            "/gpu.slice/gpu-a.slice/a.service",
            "/gpu.slice/gpu-a.slice/a.service",
            "a",
        ),
    ] {
        let group = found(path);
        assert_eq!(group, Some(Group::new(Kind::Unit, unit)), "{path}");
        assert_eq!(group.map(|group| group.name()).as_deref(), Some(name));
    }
    for path in [
        "/",
        "/init.scope",
        "/machine.slice",
        "/user.slice/user-1000.slice/session-3.scope",
        "/user.slice/user-1000.slice/user@1000.service/init.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-terminal-42.scope",
        "/system.slice/ssh.service",
        "/system.slice/cron.service",
        "/system.slice/docker.service",
        "/system.slice/system-getty.slice/getty@tty1.service",
        "/system.slice/systemd-journald.service",
    ] {
        assert_eq!(found(path), None, "{path}");
    }
}

#[test]
fn version_1_hierarchies_are_searched_and_the_innermost_counts() {
    let text = format!(
        "12:cpuset:/\n4:memory:/docker/{ID}\n1:name=systemd:/system.slice/docker.service\n0::/\n"
    );
    assert_eq!(group(&text), Some(container(None, DOCKER)));
    let unit = "3:cpu,cpuacct:/\n1:name=systemd:/system.slice/triton.service\n";
    let name = group(unit).map(|group| group.name());
    assert_eq!(name.as_deref(), Some("triton"));
    // A controller that the node's container does not hand on to its pods.
    let node = format!(
        "5:rdma:/docker/{OUTER}\n4:memory:/docker/{OUTER}/kubepods/pod{UID}/{ID}\n0::/docker/{OUTER}\n"
    );
    assert_eq!(group(&node), Some(container(Some(UID), None)));
    let digits = "4:memory:/tenant/0123456789abcdef0123456789abcdef\n0::/\n";
    assert_eq!(group(digits), None);
    // A name may end in what else ends a line.
    let odd = group("0::/lxc/web\r\n").map(|group| group.name());
    assert_eq!(odd.as_deref(), Some("web\r"));
    assert_eq!(group("no cgroup file at all"), None);
}

/// A path of parts that mean something, and of some that do not.
fn path() -> impl Strategy<Value = String> {
    let uid = UID.replace('-', "_");
    let known = [
        ID.to_owned(),
        format!("docker-{ID}.scope"),
        format!("cri-containerd-{ID}.scope"),
        format!("crio-conmon-{ID}.scope"),
        format!("kubepods-pod{uid}.slice:cri-containerd:{ID}"),
        format!("pod{UID}"),
        format!("kubepods-pod{uid}.slice"),
        "kubepods.slice".to_owned(),
        "lxc".to_owned(),
        "lxc.payload.web".to_owned(),
        "slurm".to_owned(),
        "job_7".to_owned(),
        "vllm.service".to_owned(),
        "containerd.service".to_owned(),
        "..".to_owned(),
        String::new(),
    ];
    let part = prop_oneof![4 => proptest::sample::select(known.to_vec()), 1 => "[^/\n]{0,80}"];
    proptest::collection::vec(part, 0..8).prop_map(|parts| format!("/{}", parts.join("/")))
}

proptest! {
    #[test]
    fn no_text_is_too_odd(text in any::<String>()) {
        let _ = group(&text);
    }

    #[test]
    fn what_is_found_stands_in_the_path_and_has_a_name(path in path()) {
        if let Some(group) = found(&path) {
            prop_assert!(path.contains(&group.id));
            prop_assert!(!group.name().is_empty());
            prop_assert!(group.short_id().len() <= group.id.len());
        }
    }

    #[test]
    fn a_child_cgroup_of_its_own_does_not_take_a_process_out_of_its_container(path in path()) {
        // What is below these is a container by its name alone.
        prop_assume!(!path.ends_with("/lxc"));
        let around = found(&path).filter(|group| group.kind == Kind::Container);
        if let Some(around) = around {
            prop_assert_eq!(found(&format!("{path}/workers")), Some(around));
        }
    }
}
