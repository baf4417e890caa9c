//! What Kubernetes calls a container, and which GPU it has given to it: plain values that sources
//! fill in and a sink shows.

use serde::{Deserialize, Serialize};

/// A container's names; one that is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PodNames {
    /// Its pod's namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// The container itself.
    pub container: String,
}

impl PodNames {
    /// The container's name, else the pod's.
    pub fn name(&self) -> &str {
        if self.container.is_empty() {
            &self.pod
        } else {
            &self.container
        }
    }

    /// What the pod is one of, by what controllers append to its name: five letters for a pod, ten
    /// or fewer before them for a Deployment's revision, a number for a StatefulSet's. Their letters
    /// are no vowels and no digits that look like one (`k8s.io/apimachinery/pkg/util/rand`).
    pub fn workload(&self) -> &str {
        let random = |part: &str| {
            let letter = |letter| b"bcdfghjklmnpqrstvwxz2456789".contains(&letter);
            !part.is_empty() && part.bytes().all(letter)
        };
        let Some((before, last)) = self.pod.rsplit_once('-') else {
            return &self.pod;
        };
        if last.len() == 5 && random(last) {
            match before.rsplit_once('-') {
                Some((deployment, revision))
                    if (6..=10).contains(&revision.len()) && random(revision) =>
                {
                    deployment
                }
                _ => before,
            }
        } else if last.bytes().all(|digit| digit.is_ascii_digit()) {
            before
        } else {
            &self.pod
        }
    }
}

/// A GPU, or a part of one, that a container has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GpuPod {
    /// The UUID of the GPU or of its instance (MIG); what the plugin calls it where it tells none.
    pub device: String,
    /// By what name it was asked for: `nvidia.com/gpu`, or the driver of a claim.
    pub resource: String,
    /// The claim through which it was given; empty where there is none.
    pub claim: String,
    /// Whose.
    pub names: PodNames,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_one_workload_are_known_by_their_names() {
        for (pod, workload) in [
            ("llama-7d9f8b6c5-x2vwz", "llama"),
            ("llama-server-7d9f8b6c5d-x2vwz", "llama-server"),
            ("llama-x2vwz", "llama"),
            ("llama-0", "llama"),
            ("llama-12", "llama"),
            ("llama", "llama"),
            ("llama-front", "llama-front"),
            ("etcd-control-plane", "etcd-control-plane"),
            ("", ""),
        ] {
            let names = PodNames {
                pod: pod.to_owned(),
                ..PodNames::default()
            };
            assert_eq!(names.workload(), workload, "{pod}");
        }
    }
}
