//! Embeds the BPF object: takes a ready one from `PROFILER_EBPF_OBJECT`, or builds it with the
//! toolchain that `cargo xtask setup` recorded in `target/tools/bpf-toolchain`.
//!
//! With neither, code is generated that type-checks (so `cargo check` and clippy need no BPF
//! tools) and fails to build with one line that names the command. A stub is never embedded.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    println!("cargo::rerun-if-env-changed=PROFILER_EBPF_OBJECT");
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    let out = PathBuf::from(variable("OUT_DIR"));
    let toolchain = root.join("target/tools/bpf-toolchain");
    println!("cargo::rerun-if-changed={}", toolchain.display());

    let object = if let Some(ready) = env::var_os("PROFILER_EBPF_OBJECT") {
        let ready = PathBuf::from(ready);
        println!("cargo::rerun-if-changed={}", ready.display());
        if !ready.is_file() {
            fail(&format!(
                "PROFILER_EBPF_OBJECT names no file: {}",
                ready.display()
            ));
        }
        Some(ready)
    } else {
        fs::read_to_string(&toolchain)
            .ok()
            .map(|recorded| build(&root, &out, &recorded))
    };

    let code = match object {
        Some(object) => {
            let embedded = out.join("profiler-ebpf.o");
            let stripped = fs::read(&object)
                .map_err(|error| error.to_string())
                .and_then(|bytes| without_debug_info(&bytes).map_err(|error| error.to_string()))
                .and_then(|bytes| fs::write(&embedded, bytes).map_err(|error| error.to_string()));
            if let Err(error) = stripped {
                fail(&format!(
                    "cannot embed the BPF object {}: {error}",
                    object.display()
                ));
            }
            "/// The BPF object.\n\
             pub fn object() -> &'static [u8] {\n\
                 aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/profiler-ebpf.o\"))\n\
             }\n"
        }
        // Evaluated only when code is generated: `cargo check` passes, `cargo build` does not.
        None => {
            // A file that does not exist makes cargo ask again each time: setup is noticed.
            println!(
                "cargo::rerun-if-changed={}",
                out.join("no-toolchain").display()
            );
            "struct Missing<T>(core::marker::PhantomData<T>);\n\
             impl<T> Missing<T> {\n\
                 const OBJECT: &'static [u8] = \
                 panic!(\"no BPF toolchain: run `cargo xtask setup`, then build again\");\n\
             }\n\
             /// The BPF object.\n\
             pub fn object() -> &'static [u8] { Missing::<()>::OBJECT }\n"
        }
    };
    if let Err(error) = fs::write(out.join("object.rs"), code) {
        fail(&format!("cannot write object.rs: {error}"));
    }
}

/// The object without DWARF, three quarters of it: only the BTF made from that is loaded.
fn without_debug_info(object: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut elf = object::build::elf::Builder::read(object)?;
    for section in &mut elf.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    elf.delete_orphans();
    // LLVM keeps all names in one table, which cannot be written.
    let names = elf.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}

/// Builds the object with cargo in a target folder of its own; returns its path.
fn build(root: &Path, out: &Path, recorded: &str) -> PathBuf {
    println!(
        "cargo::rerun-if-changed={}",
        root.join("profiler-ebpf").display()
    );
    let toolchain: HashMap<&str, &str> = recorded
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let get = |key: &str| match toolchain.get(key) {
        Some(value) => *value,
        None => fail(&format!(
            "target/tools/bpf-toolchain lacks `{key}`: run `cargo xtask setup`"
        )),
    };
    let (linker, rustc) = (get("linker"), get("rustc"));
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    let target_dir = out.join("ebpf");

    let mut cargo = if get("build_std") == "true" {
        // rustup's proxy; rustc is the nightly's own.
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
        cargo.env_remove("RUSTC");
        cargo
    } else {
        // A distribution's stable rustc with a ready-made core for BPF: the two crates that need
        // unstable features (inline assembly, atomic add) are named, nothing else gets them.
        let mut cargo = Command::new(variable("CARGO"));
        cargo
            .arg("build")
            .env("RUSTC", rustc)
            .env("RUSTC_BOOTSTRAP", "aya_ebpf,profiler_ebpf");
        cargo
    };
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={linker}"),
        "-Clink-arg=--btf".to_owned(),
    ];
    // Where the program is to name no path of this machine, nor is the object inside it: its line records do.
    let outer = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let renamed = outer
        .split('\x1f')
        .filter(|flag| flag.starts_with("--remap-path-prefix="));
    flags.extend(renamed.map(str::to_owned));
    cargo
        .args([
            "--package",
            "profiler-ebpf",
            "--bin",
            "profiler-ebpf",
            "--release",
            "--quiet",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO_CFG_TARGET_ARCH");
    match cargo.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            fail(
                "the BPF object does not build (see above); toolchain: target/tools/bpf-toolchain",
            );
        }
        Err(error) => fail(&format!(
            "cannot run cargo for the BPF object: {error}; run `cargo xtask setup`"
        )),
    }
    target_dir.join(TARGET).join("release/profiler-ebpf")
}

fn variable(name: &str) -> String {
    match env::var(name) {
        Ok(value) => value,
        Err(_) => fail(&format!("cargo did not set {name}")),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
