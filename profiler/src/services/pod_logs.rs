//! What Kubernetes calls a container, without asking anybody: the kubelet writes it into the names of
//! its log directories and links.
//!
//! In: a container's id or its pod's UID. Out: [`PodNames`]. `/var/log/containers` has a link
//! `<pod>_<namespace>_<container>-<id>.log` for each container, `/var/log/pods` a directory
//! `<namespace>_<pod>_<uid>` for each pod with one below it for each container. A static pod's UID is
//! the hash of its file, in its cgroup as in its directory. Only names are read, and nothing is
//! followed.

use std::fs;
use std::path::{Path, PathBuf};

use super::cgroups::Group;
use crate::pods::PodNames;

const CONTAINERS: &str = "var/log/containers";
/// Where a node's pods have their directories, below the host's root.
pub const PODS: &str = "var/log/pods";
/// So many entries of a directory are looked at; a node has a few hundred.
const MOST_ENTRIES: usize = 16_384;
/// The longest name that Kubernetes allows.
const LONGEST: usize = 253;

/// The kubelet's log directories below a root.
#[derive(Debug)]
pub(super) struct PodLogs {
    containers: PathBuf,
    pods: PathBuf,
}

impl PodLogs {
    /// Those of the machine whose root this is.
    pub(super) fn new(host_root: &Path) -> Self {
        Self {
            containers: host_root.join(CONTAINERS),
            pods: host_root.join(PODS),
        }
    }

    /// A container's names; `None` if it is of no pod, or nothing can be read. Reads two directories
    /// at most.
    pub(super) fn names(&self, group: &Group) -> Option<PodNames> {
        let id = group.container_id()?;
        entries(&self.containers)
            .find_map(|link| of_link(&link, id))
            .or_else(|| self.of_pod(group.pod.as_deref()?))
    }

    /// By its pod: the container's own name is known if it is the only one.
    fn of_pod(&self, uid: &str) -> Option<PodNames> {
        let (directory, mut names) = entries(&self.pods).find_map(|directory| {
            let names = of_directory(&directory, uid)?;
            Some((directory, names))
        })?;
        let mut containers = entries(&self.pods.join(directory)).filter(|name| is_name(name));
        if let (Some(only), None) = (containers.next(), containers.next()) {
            names.container = only;
        }
        Some(names)
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .take(MOST_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// `<pod>_<namespace>_<container>-<id>.log`.
fn of_link(name: &str, id: &str) -> Option<PodNames> {
    let name = name.strip_suffix(".log")?.strip_suffix(id)?;
    let mut parts = name.strip_suffix('-')?.split('_');
    let mut next = || parts.next().filter(|part| is_name(part)).map(str::to_owned);
    let (pod, namespace, container) = (next()?, next()?, next()?);
    parts.next().is_none().then_some(PodNames {
        namespace,
        pod,
        container,
    })
}

/// `<namespace>_<pod>_<uid>`.
fn of_directory(name: &str, uid: &str) -> Option<PodNames> {
    let (namespace, pod) = name.strip_suffix(uid)?.strip_suffix('_')?.split_once('_')?;
    (is_name(namespace) && is_name(pod)).then(|| PodNames {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: String::new(),
    })
}

/// Kubernetes's names are those of DNS.
fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::super::cgroups;
    use super::*;

    const ID: &str = "4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c4f1e8a0c6d9b2e7f3a5c1d8e9b0f7a6c";
    const OTHER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const UID: &str = "0b2f6f8e-4d0c-4a53-9a0f-0b7d2a5c1e11";
    const HASH: &str = "7c1f0b2f6f8e4d0c4a539a0f0b7d2a5c";

    /// A host with these log directories and links.
    fn host(directories: &[&str], links: &[&str]) -> (tempfile::TempDir, PodLogs) {
        let root = tempfile::tempdir().expect("a folder");
        for directory in directories {
            let path = root.path().join(PODS).join(directory);
            fs::create_dir_all(path).expect("a directory");
        }
        let containers = root.path().join(CONTAINERS);
        fs::create_dir_all(&containers).expect("a directory");
        for link in links {
            let target = "/var/log/pods/nowhere/0.log";
            std::os::unix::fs::symlink(target, containers.join(link)).expect("a link");
        }
        let logs = PodLogs::new(root.path());
        (root, logs)
    }

    fn names(logs: &PodLogs, pod: &str) -> Option<(String, String, String)> {
        let group = cgroups::group(&format!("0::/kubepods/pod{pod}/{ID}\n"))?;
        let names = logs.names(&group)?;
        Some((names.namespace, names.pod, names.container))
    }

    fn told(namespace: &str, pod: &str, container: &str) -> Option<(String, String, String)> {
        Some((namespace.to_owned(), pod.to_owned(), container.to_owned()))
    }

    #[test]
    fn a_containers_link_tells_all_its_names() {
        let own = format!("llama-7d9f8b6c5-x2vwz_team-a_vllm-{ID}.log");
        let other = format!("llama-7d9f8b6c5-x2vwz_team-a_proxy-{OTHER}.log");
        let (_root, logs) = host(&[], &[&other, "unrelated", &own]);
        let all = told("team-a", "llama-7d9f8b6c5-x2vwz", "vllm");
        assert_eq!(names(&logs, UID), all);
    }

    #[test]
    fn without_a_link_the_pods_directory_tells_the_container_if_it_is_the_only_one() {
        let [vllm, proxy] = ["vllm", "proxy"].map(|of| format!("team-a_llama-0_{UID}/{of}"));
        let elsewhere = "kube-system_dns_11111111-2222-3333-4444-555555555555/dns";
        let (_root, logs) = host(&[elsewhere, &vllm], &[]);
        assert_eq!(names(&logs, UID), told("team-a", "llama-0", "vllm"));
        let (_root, logs) = host(&[elsewhere, &vllm, &proxy], &[]);
        assert_eq!(names(&logs, UID), told("team-a", "llama-0", ""));
    }

    #[test]
    fn a_static_pods_directory_ends_with_the_hash_of_its_file() {
        let directory = format!("kube-system_etcd-node-1_{HASH}/etcd");
        let (_root, logs) = host(&[&directory], &[]);
        let all = told("kube-system", "etcd-node-1", "etcd");
        assert_eq!(names(&logs, HASH), all);
    }

    #[test]
    fn what_is_not_there_or_has_no_proper_names_tells_nothing() {
        let nowhere = PodLogs::new(Path::new("/nonexistent"));
        assert_eq!(names(&nowhere, UID), None);
        let links = [
            format!("-{ID}.log"),
            format!("a_b-{ID}.log"),
            format!("a_b_c_d-{ID}.log"),
            format!("a_b_c{ID}.log"),
            format!("a_b _c-{ID}.log"),
            format!("a_b_c-{ID}"),
        ];
        let links: Vec<&str> = links.iter().map(String::as_str).collect();
        let directories = [
            format!("{UID}/x"),
            format!("_{UID}/x"),
            format!("__{UID}/x"),
        ];
        let directories: Vec<&str> = directories.iter().map(String::as_str).collect();
        let (_root, logs) = host(&directories, &links);
        assert_eq!(names(&logs, UID), None);
        // A machine without Kubernetes.
        let docker = cgroups::group(&format!("0::/docker/{ID}\n")).expect("a container");
        assert_eq!(logs.names(&docker), None);
    }
}
