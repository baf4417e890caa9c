//! Root tests on the real kernel with real servers: what they share.
//!
//! `PERJOULE_TEST_BINARIES` names the folder of the built binaries (`perjoule`, `inference-sim`,
//! `libnvml_sim.so`); `cargo xtask test` builds them and sets it.

pub mod agent;
pub mod http;
pub mod server;
pub mod stack;

use std::path::PathBuf;

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

/// True if BPF programs can be loaded; else says that the test is skipped.
pub fn is_root(test: &str) -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() == 0 };
    if !root {
        println!("skipped: {test}: not root");
    }
    root
}

/// Names of BPF programs loaded in the kernel that could be perjoule's, with how many of each.
pub fn loaded_programs() -> Vec<String> {
    let ours = profiler_ebpf::cost::Program::ALL.map(profiler_ebpf::cost::Program::name);
    let mut names: Vec<String> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| Some(program.name_as_str()?.to_owned()))
        // The kernel keeps 15 bytes of a name.
        .filter(|name| {
            ours.iter()
                .any(|our| our.starts_with(name.as_str()) && !name.is_empty())
        })
        .collect();
    names.sort();
    names
}
