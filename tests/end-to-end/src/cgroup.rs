//! Cgroups of the kernel's own, made for one test.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::skipped;

/// A cgroup; it goes with this value, and so do those above it that nobody else needs.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Below the root of a writable hierarchy; `None`, said, where there is none.
    pub fn make(path: &str) -> Option<Self> {
        let roots = [
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/pids",
        ];
        let root = roots
            .iter()
            .find(|root| fs::exists(format!("{root}/cgroup.procs")).unwrap_or(false));
        let made = root.map(|root| PathBuf::from(format!("{root}/{path}")));
        let made = made.filter(|folder| fs::create_dir_all(folder).is_ok());
        if made.is_none() {
            skipped("no cgroup hierarchy is writable");
        }
        made.map(Self)
    }

    /// One as a container engine makes it; the container's short name.
    pub fn container(number: u32) -> Option<(Self, String)> {
        let id = container_id(number);
        let cgroup = Self::make(&format!("docker-{id}.scope"))?;
        Some((cgroup, id[..12].to_owned()))
    }

    /// Moves a process into it.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn take(&self, pid: u32) {
        fs::write(self.processes(), pid.to_string()).expect("moved");
    }

    /// The file that names its processes.
    pub fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

/// An id of 64 digits that no other test has.
pub fn container_id(number: u32) -> String {
    format!("{number:04x}{:08x}{:052x}", std::process::id(), 0xabc)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel takes processes out a moment after they have ended.
        let give_up = Instant::now() + Duration::from_secs(3);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < give_up {
            sleep(Duration::from_millis(10));
        }
        // The root is busy, and what others use is not empty.
        while self.0.pop() && fs::remove_dir(&self.0).is_ok() {}
    }
}
