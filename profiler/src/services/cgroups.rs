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

/// What runs a container, where its cgroup says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman.
    Podman,
    /// LXC, LXD or Incus.
    Lxc,
}

impl Runtime {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Containerd => "containerd",
            Self::CriO => "CRI-O",
            Self::Podman => "Podman",
            Self::Lxc => "LXC",
        }
    }
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
    /// The path of the unit that the container is of (a Quadlet's), if it serves.
    pub unit: Option<String>,
    /// The job that the container is of.
    pub job: Option<String>,
    /// What runs the container.
    pub runtime: Option<Runtime>,
}

impl Group {
    fn new(kind: Kind, id: &str) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            pod: None,
            unit: None,
            job: None,
            runtime: None,
        }
    }

    /// A short name: of a container its unit's or job's, else twelve digits of its id; of a job
    /// `job-<number>`; of a unit its own, without suffix.
    pub fn name(&self) -> String {
        let job = |number: &str| format!("job-{number}");
        match self.kind {
            Kind::Container => match (&self.unit, &self.job) {
                (Some(unit), _) => unit_name(unit).to_owned(),
                (None, Some(number)) => job(number),
                (None, None) => self.short_id().to_owned(),
            },
            Kind::Job => job(&self.id),
            Kind::Unit => unit_name(&self.id).to_owned(),
        }
    }

    /// What identifies it, a container's id cut to the twelve digits that its runtime shows.
    pub fn short_id(&self) -> &str {
        self.container_id()
            .and_then(|id| id.get(..12))
            .unwrap_or(&self.id)
    }

    /// A container's id of 64 digits; LXC's have names instead.
    pub fn container_id(&self) -> Option<&str> {
        (self.kind == Kind::Container && is_container_id(&self.id)).then_some(&self.id)
    }
}

fn unit_name(path: &str) -> &str {
    let unit = path.rsplit('/').next().unwrap_or_default();
    unit.strip_suffix(".service").unwrap_or(unit)
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
/// the innermost before those around it (a node in a container: the pod's, not the node's), also
/// where the hierarchies of version 1 do not all reach as deep.
pub fn group(text: &str) -> Option<Group> {
    let paths = || {
        text.split('\n')
            .filter_map(|line| line.splitn(3, ':').nth(2))
    };
    let mut innermost: Option<(usize, Group)> = None;
    for (depth, group) in paths().filter_map(container_or_job) {
        if innermost.as_ref().is_none_or(|(known, _)| depth > *known) {
            innermost = Some((depth, group));
        }
    }
    innermost
        .map(|(_, group)| group)
        .or_else(|| paths().find_map(unit))
}

/// The innermost container or job of a path, and how many there are in it.
fn container_or_job(path: &str) -> Option<(usize, Group)> {
    let segments: Vec<&str> = path.split('/').collect();
    let boundaries: Vec<(usize, Boundary<'_>)> = (0..segments.len())
        .filter_map(|depth| Some((depth, boundary(&segments, depth)?)))
        .collect();
    let (depth, innermost) = *boundaries.last()?;
    // What lies between it and the container around it, if there is one.
    let outside = boundaries
        .iter()
        .rev()
        .find(|(at, boundary)| *at < depth && matches!(boundary, Boundary::Container(..)));
    let from = outside.map_or(0, |(at, _)| at + 1);
    let above = segments.get(from..depth).unwrap_or_default();
    let group = match innermost {
        Boundary::Container(id, runtime) => {
            // The unit that systemd's driver writes in front of a container's id.
            let own = segments.get(depth).and_then(|own| own.split(':').next());
            let pod = above.iter().copied().rev().chain(own).find_map(pod_uid);
            let path = segments.get(..depth).unwrap_or_default().join("/");
            let unit = unit(&path).map(|unit| unit.id).filter(|unit| {
                let name = unit.rsplit('/').next().unwrap_or_default();
                pod.is_none() && above.contains(&name)
            });
            let job = boundaries
                .iter()
                .rev()
                .find_map(|(at, around)| match around {
                    Boundary::Job(number) if *at >= from => Some((*number).to_owned()),
                    _ => None,
                });
            Group {
                pod,
                unit,
                job,
                runtime,
                ..Group::new(Kind::Container, id)
            }
        }
        Boundary::Job(number) => Group::new(Kind::Job, number),
    };
    Some((boundaries.len(), group))
}

/// A segment of a path below which all processes belong together.
#[derive(Debug, Clone, Copy)]
enum Boundary<'a> {
    Container(&'a str, Option<Runtime>),
    Job(&'a str),
}

fn boundary<'a>(segments: &[&'a str], depth: usize) -> Option<Boundary<'a>> {
    let segment = *segments.get(depth)?;
    let above = depth
        .checked_sub(1)
        .and_then(|above| segments.get(above))
        .copied();
    if let Some((before, id)) = container_id(segment) {
        return Some(Boundary::Container(id, runtime(before, above)));
    }
    let lxc = segment
        .strip_prefix("lxc.payload.")
        .or_else(|| matches!(above, Some("lxc" | "lxc.payload")).then_some(segment));
    if let Some(name) = lxc.filter(|name| !name.is_empty()) {
        return Some(Boundary::Container(name, Some(Runtime::Lxc)));
    }
    let job = segment
        .strip_prefix("job_")
        .filter(|number| is_number(number))?;
    let mut around = segments.iter().take(depth);
    around
        .any(|around| around.contains("slurm"))
        .then_some(Boundary::Job(job))
}

/// What stands before the 64 digits in `<id>`, `<runtime>-<id>.scope` or `<unit>:<runtime>:<id>`, and
/// the digits. A container's monitor has a scope of its own with the same id: it is not of the
/// container.
fn container_id(segment: &str) -> Option<(&str, &str)> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (before, id) = match name.rfind(['-', ':']) {
        Some(place) => (name.get(..place)?, name.get(place + 1..)?),
        None => ("", name),
    };
    (is_container_id(id) && !before.ends_with("conmon")).then_some((before, id))
}

/// By what stands before a container's id, or is the directory above it.
fn runtime(before: &str, above: Option<&str>) -> Option<Runtime> {
    match before.rsplit(':').next().unwrap_or_default() {
        "docker" => Some(Runtime::Docker),
        "cri-containerd" | "nerdctl" => Some(Runtime::Containerd),
        "crio" => Some(Runtime::CriO),
        "libpod" | "libpod-payload" => Some(Runtime::Podman),
        "" => match above {
            Some("docker") => Some(Runtime::Docker),
            Some("libpod_parent") => Some(Runtime::Podman),
            Some("k8s.io") => Some(Runtime::Containerd),
            _ => None,
        },
        _ => None,
    }
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
    if name.is_empty() {
        return None;
    }
    let manages = MANAGERS.iter().any(|manager| {
        if manager.ends_with(['@', '-']) {
            name.starts_with(manager)
        } else {
            name == *manager
        }
    });
    (!manages).then(|| Group::new(Kind::Unit, id))
}

#[cfg(test)]
mod tests;
