//! Which container, job or systemd unit a process belongs to, from its cgroup paths.
//!
//! In: the text of `/proc/<pid>/cgroup`, version 1, 2 or both. Out: a [`Group`], or none for
//! processes of a login session, of a service manager, or of no cgroup in particular.

/// What kind of boundary a cgroup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A container of Docker, containerd, CRI-O, Podman or LXC.
    Container,
    /// A job of Slurm.
    Job,
    /// A systemd service.
    Unit,
}

/// A cgroup in which all processes belong together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// What it is.
    pub kind: Kind,
    /// What identifies it: the container's id, the job's number, the unit's path.
    pub id: String,
    /// The pod it is part of, as Kubernetes writes its UID.
    pub pod: Option<String>,
}

impl Group {
    /// A short name: twelve digits of a container's id, `job-<number>`, the unit without suffix.
    pub fn name(&self) -> String {
        match self.kind {
            Kind::Container => match self.id.get(..12) {
                Some(short) if is_container_id(&self.id) => short.to_owned(),
                _ => self.id.clone(),
            },
            Kind::Job => format!("job-{}", self.id),
            Kind::Unit => {
                let unit = self.id.rsplit('/').next().unwrap_or_default();
                unit.strip_suffix(".service").unwrap_or(unit).to_owned()
            }
        }
    }
}

/// Units whose processes are other people's: they start sessions, containers and jobs, but serve
/// nothing themselves. A name that ends in `@` or `-` stands for all that begin so.
const MANAGERS: [&str; 24] = [
    "user@",
    "ssh",
    "sshd",
    "ssh@",
    "sshd@",
    "cron",
    "crond",
    "atd",
    "docker",
    "containerd",
    "crio",
    "podman",
    "kubelet",
    "k3s",
    "slurmd",
    "slurmstepd",
    "supervisor",
    "supervisord",
    "getty@",
    "serial-getty@",
    "dbus",
    "display-manager",
    "gdm",
    "systemd-",
];

/// The group of a process with this `/proc/<pid>/cgroup`. Containers and jobs go before units,
/// the deepest before those around it (a node in a container: the pod's, not the node's).
pub fn group(text: &str) -> Option<Group> {
    let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths()
        .find_map(container_or_job)
        .or_else(|| paths().find_map(unit))
}

fn container_or_job(path: &str) -> Option<Group> {
    let segments: Vec<&str> = path.split('/').collect();
    let (depth, kind, id) = segments
        .iter()
        .enumerate()
        .rev()
        .find_map(|(depth, segment)| {
            let above = depth
                .checked_sub(1)
                .and_then(|above| segments.get(above))
                .copied();
            if let Some(id) = container_id(segment) {
                return Some((depth, Kind::Container, id));
            }
            if let Some(name) = segment.strip_prefix("lxc.payload.") {
                return Some((depth, Kind::Container, name));
            }
            if above == Some("lxc") && !segment.is_empty() {
                return Some((depth, Kind::Container, segment));
            }
            let job = segment
                .strip_prefix("job_")
                .filter(|number| is_number(number))?;
            path.contains("slurm").then_some((depth, Kind::Job, job))
        })?;
    let pod = segments
        .iter()
        .take(depth)
        .rev()
        .find_map(|segment| pod_uid(segment))
        .or_else(
            // The unit that systemd's driver writes in front of a container's id.
            || {
                segments
                    .get(depth)
                    .and_then(|segment| pod_uid(segment.split(':').next()?))
            },
        );
    Some(Group {
        kind,
        id: id.to_owned(),
        pod,
    })
}

/// The 64 digits in `<id>`, `<runtime>-<id>.scope` or `<unit>:<runtime>:<id>`. A container's
/// monitor has a scope of its own with the same id: it is not of the container.
fn container_id(segment: &str) -> Option<&str> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (before, id) = match name.rfind(['-', ':']) {
        Some(place) => (name.get(..place)?, name.get(place + 1..)?),
        None => ("", name),
    };
    (is_container_id(id) && !before.ends_with("conmon")).then_some(id)
}

fn is_container_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The UID in `pod<uid>` or `kubepods-burstable-pod<uid>.slice`, where `_` stands for `-`; static
/// pods have 32 digits instead.
fn pod_uid(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let place = name.rfind("pod")?;
    let uid = name.get(place + 3..)?.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = uid.bytes().filter(|byte| *byte == b'-').count();
    (digits == 32 && digits + dashes == uid.len()).then_some(uid)
}

/// The innermost service of systemd, if it is one that serves.
fn unit(path: &str) -> Option<Group> {
    let end = path
        .match_indices(".service")
        .map(|(place, suffix)| place + suffix.len())
        .filter(|end| {
            path.get(*end..)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .last()?;
    let id = path.get(..end)?;
    let name = id.rsplit('/').next()?.strip_suffix(".service")?;
    let manages = MANAGERS.iter().any(|manager| {
        if manager.ends_with(['@', '-']) {
            name.starts_with(manager)
        } else {
            name == *manager
        }
    });
    (!manages).then(|| Group {
        kind: Kind::Unit,
        id: id.to_owned(),
        pod: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c";
    const OUTER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const UID: &str = "0b2f6f8e-4d0c-4a53-9a0f-0b7d2a5c1e11";

    fn found(path: &str) -> Option<(Kind, String, Option<String>)> {
        group(&format!("0::{path}\n")).map(|group| (group.kind, group.id, group.pod))
    }

    fn container(pod: Option<&str>) -> Option<(Kind, String, Option<String>)> {
        Some((Kind::Container, ID.to_owned(), pod.map(str::to_owned)))
    }

    #[test]
    fn pods_of_every_runtime_and_driver_are_recognised() {
        let uid = UID.replace('-', "_");
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/\
                 cri-containerd-{ID}.scope"
            ),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/\
                 crio-{ID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}"),
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{uid}.slice:\
                 cri-containerd:{ID}"
            ),
            format!(
                "/system.slice/docker-{OUTER}.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{uid}.slice/\
                 cri-containerd-{ID}.scope"
            ),
            format!("/podruntime/kubepods/burstable/pod{UID}/{ID}"),
            format!("/../../kubepods-burstable-pod{uid}.slice/cri-containerd-{ID}.scope"),
        ] {
            assert_eq!(found(&path), container(Some(UID)), "{path}");
        }
    }

    #[test]
    fn containers_outside_kubernetes_are_recognised() {
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/system.slice/docker-{ID}.scope/init.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            format!("/system.slice/vllm.service/libpod-payload-{ID}"),
            format!("/docker/{OUTER}/docker/{ID}"),
            format!("/ecs/0123456789/{ID}"),
        ] {
            assert_eq!(found(&path), container(None), "{path}");
        }
        let lxc = |name: &str| Some((Kind::Container, name.to_owned(), None));
        assert_eq!(found("/lxc/web"), lxc("web"));
        assert_eq!(
            found("/lxc.payload.web/system.slice/nginx.service"),
            lxc("web")
        );
    }

    #[test]
    fn a_containers_monitor_is_not_of_the_container() {
        assert_eq!(
            found(&format!("/machine.slice/libpod-conmon-{ID}.scope")),
            None
        );
        assert_eq!(
            found(&format!("/system.slice/crio-conmon-{ID}.scope")),
            None
        );
    }

    #[test]
    fn slurm_jobs_are_one_group_over_their_steps() {
        let job = |id: &str| Some((Kind::Job, id.to_owned(), None));
        assert_eq!(
            found("/slurm/uid_1000/job_4711/step_batch/task_0"),
            job("4711")
        );
        assert_eq!(
            found("/system.slice/slurmstepd.scope/job_4711/step_0/user/task_0"),
            job("4711")
        );
        assert_eq!(found("/host/slurm_node1/uid_5/job_8/step_0"), job("8"));
        assert_eq!(found("/batch/job_8"), None);
    }

    #[test]
    fn units_that_serve_are_groups_and_those_that_manage_are_not() {
        let unit = |path: &str| Some((Kind::Unit, path.to_owned(), None));
        assert_eq!(
            found("/system.slice/vllm.service"),
            unit("/system.slice/vllm.service")
        );
        assert_eq!(
            found("/system.slice/ollama.service/child"),
            unit("/system.slice/ollama.service")
        );
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/vllm.service";
        assert_eq!(found(user), unit(user));
        for path in [
            "/",
            "/init.scope",
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
    fn version_1_hierarchies_are_searched_line_by_line() {
        let text = format!(
            "12:cpuset:/\n4:memory:/docker/{ID}\n1:name=systemd:/system.slice/docker.service\n0::/\n"
        );
        assert_eq!(group(&text).map(|group| group.id), Some(ID.to_owned()));
        let unit = "3:cpu,cpuacct:/\n1:name=systemd:/system.slice/triton.service\n";
        assert_eq!(
            group(unit).map(|group| group.name()),
            Some("triton".to_owned())
        );
        assert_eq!(
            group("4:memory:/tenant/0123456789abcdef0123456789abcdef\n0::/\n"),
            None
        );
        assert_eq!(group("no cgroup file at all"), None);
    }

    #[test]
    fn names_are_short() {
        let name = |path: &str| group(&format!("0::{path}")).map(|group| group.name());
        assert_eq!(
            name(&format!("/docker/{ID}")).as_deref(),
            Some("4f1e8a0c6d9b")
        );
        assert_eq!(name("/lxc/web").as_deref(), Some("web"));
        assert_eq!(name("/slurm/uid_1/job_42").as_deref(), Some("job-42"));
    }
}
