//! Root tests on the real kernel with real servers: what they share.
//!
//! `PERJOULE_TEST_BINARIES` names the folder of the built binaries (`perjoule`, `inference-sim`,
//! `libnvml_sim.so`); `cargo xtask test` builds them and sets it.

pub mod agent;
pub mod cgroup;
pub mod engine;
pub mod history;
pub mod http;
pub mod kubelet;
pub mod load;
pub mod network;
pub mod python;
pub mod server;
pub mod stack;
pub mod terminal;

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A built binary.
///
/// # Panics
/// If it is not built.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("PERJOULE_TEST_BINARIES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/release"),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo xtask test`",
        path.display()
    );
    path.canonicalize().expect("it exists")
}

/// How many times as long as usual everything takes here: `PERJOULE_TEST_SLOWNESS`, which
/// `cargo xtask vm` sets because its CPUs are emulated, else 1.
pub fn slowness() -> u32 {
    let told = std::env::var("PERJOULE_TEST_SLOWNESS").ok();
    told.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// `limit`, as long as it is on this machine: for how long a test waits, and for how late a clock
/// may be read; never for what must be seen.
pub fn scaled(limit: Duration) -> Duration {
    limit * slowness()
}

/// Tells that a test does not run, and why. `cargo xtask test` names it at its end, by the file
/// that `PERJOULE_TEST_SKIPPED` names: the test harness hides what a passing test prints.
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(path) = std::env::var_os("PERJOULE_TEST_SKIPPED")
        && let Ok(mut file) = File::options().create(true).append(true).open(path)
    {
        // The note is for people; a test is not failed for it.
        let _ = writeln!(file, "{why}");
    }
}

/// True if BPF programs can be loaded; else says that the test is skipped.
pub fn is_root(test: &str) -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() == 0 };
    if !root {
        skipped(&format!("{test}: not root"));
    }
    root
}

/// What the host took from this machine, nanoseconds of all CPUs. The scheduler counts it for
/// nobody; the probe, like every clock, for whoever was on the CPU.
///
/// # Panics
/// If /proc does not say.
pub fn stolen() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let hundredths: u64 = (text.split_whitespace().nth(8))
        .and_then(|steal| steal.parse().ok())
        .expect("steal");
    hundredths * 10_000_000
}

/// True if the running kernel is this version or a later one.
///
/// # Panics
/// If the kernel does not say its version.
pub fn is_linux(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    let running: Option<(u32, u32)> = numbers.next().zip(numbers.next());
    running.expect("two numbers") >= (major, minor)
}

/// BPF programs that are loaded, by the kernel's ids.
#[derive(Debug)]
pub struct Programs(HashSet<u32>);

impl Programs {
    /// Those of now.
    pub fn now() -> Self {
        Self(
            aya::programs::loaded_programs()
                .filter_map(Result::ok)
                .map(|program| program.id())
                .collect(),
        )
    }

    /// True if the program was loaded then.
    pub fn holds(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// Programs that have been loaded since.
    pub fn new_ones(&self) -> usize {
        Self::now().0.difference(&self.0).count()
    }

    /// Checks that nothing loaded since is left. The kernel frees programs a little after they
    /// are detached.
    ///
    /// # Panics
    /// If programs are left.
    pub fn assert_nothing_left(&self) {
        let start = Instant::now();
        while self.new_ones() > 0 {
            assert!(
                start.elapsed() < scaled(Duration::from_secs(3)),
                "BPF programs are left"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
