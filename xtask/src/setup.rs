//! Makes the toolchain for the BPF object, by the first of two routes that can be had:
//!
//! * a: rustup's nightly with `rust-src`, from which `core` is built for BPF;
//! * b: Debian's `rustc-web` with `libstd-rust-web-dev-bpf`, a ready-made `core` for BPF.
//!
//! Both link with bpf-linker. What was found is recorded in `target/tools/bpf-toolchain`, which
//! `profiler/build.rs` obeys.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::project::{cargo, find_on_path, is_root, output, run as run_command, target};

/// The LLVM that bpf-linker is built with: at least as new as the one inside either rustc.
const LLVM: u32 = 22;
const BPF_LINKER: &str = "0.13.0";

/// What the user may ask of it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Take this route only: a (rustup's nightly) or b (Debian's rustc)
    #[arg(long)]
    route: Option<Route>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Route {
    A,
    B,
}

/// `cargo xtask setup`.
pub(crate) fn run(options: &Options) -> Result<()> {
    match recorded().filter(|toolchain| options.route.is_none_or(|r| r == toolchain.route())) {
        Some(toolchain) => println!("setup: already there: {toolchain}"),
        None => println!("setup: {}", make(options.route)?),
    }
    Ok(())
}

/// Makes the toolchain if it is missing.
pub(crate) fn ensure() -> Result<()> {
    if recorded().is_none() {
        println!("setup: {}", make(None)?);
    }
    Ok(())
}

/// Installs those Debian packages whose program is missing; returns the names still missing.
pub(crate) fn ensure_packages<'a>(wanted: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let missing = || {
        wanted
            .iter()
            .filter(|(program, _)| find_on_path(program).is_none())
            .map(|(_, package)| *package)
            .collect::<Vec<_>>()
    };
    let absent = missing();
    if absent.is_empty() {
        return absent;
    }
    if let Err(error) = apt_install(&absent) {
        println!("setup: {error:#}");
    }
    missing()
}

/// What `profiler/build.rs` needs to know.
struct Toolchain {
    linker: PathBuf,
    rustc: Rustc,
}

enum Rustc {
    Nightly,
    Distribution(PathBuf),
}

impl Toolchain {
    const fn route(&self) -> Route {
        match self.rustc {
            Rustc::Nightly => Route::A,
            Rustc::Distribution(_) => Route::B,
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rustc {
            Rustc::Nightly => f.write_str("route a, rustup's nightly with rust-src")?,
            Rustc::Distribution(rustc) => {
                write!(
                    f,
                    "route b, Debian's rustc with its core for BPF ({})",
                    rustc.display()
                )?;
            }
        }
        write!(f, "; linker {}", self.linker.display())
    }
}

fn record() -> PathBuf {
    target("tools/bpf-toolchain")
}

/// The toolchain on record, if it still works.
fn recorded() -> Option<Toolchain> {
    let text = fs::read_to_string(record()).ok()?;
    let get = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v)
    };
    let linker = PathBuf::from(get("linker")?);
    let rustc = match get("build_std")? {
        "true" => Rustc::Nightly,
        _ => Rustc::Distribution(get("rustc")?.into()),
    };
    let works = linker_works(&linker)
        && match &rustc {
            Rustc::Nightly => nightly_has_source(),
            Rustc::Distribution(rustc) => has_bpf_core(rustc),
        };
    works.then_some(Toolchain { linker, rustc })
}

fn make(route: Option<Route>) -> Result<Toolchain> {
    let routes = route.map_or(vec![Route::A, Route::B], |route| vec![route]);
    // What is there already comes before what would have to be fetched.
    let there = routes.iter().find_map(|route| find_rustc(*route));
    let rustc = there.or_else(|| routes.iter().find_map(|route| get_rustc(*route)));
    let rustc = rustc.with_context(|| {
        format!(
            "no Rust compiler for BPF: neither rustup's nightly with rust-src (LLVM ≤ {LLVM}) nor \
             Debian's packages rustc-web and libstd-rust-web-dev-bpf could be had.\n\
             Try: rustup toolchain install nightly --profile minimal --component rust-src\n\
             or, on Debian: sudo apt-get install rustc-web libstd-rust-web-dev-bpf"
        )
    })?;
    let linker = get_linker()?;
    let toolchain = Toolchain { linker, rustc };
    let (path, build_std) = match &toolchain.rustc {
        Rustc::Nightly => (Path::new("nightly"), true),
        Rustc::Distribution(rustc) => (rustc.as_path(), false),
    };
    let text = format!(
        "linker={}\nrustc={}\nbuild_std={build_std}\n",
        toolchain.linker.display(),
        path.display()
    );
    fs::create_dir_all(target("tools"))?;
    fs::write(record(), text).context("cannot write target/tools/bpf-toolchain")?;
    Ok(toolchain)
}

/// A compiler that is there already.
fn find_rustc(route: Route) -> Option<Rustc> {
    match route {
        Route::A => nightly_has_source().then_some(Rustc::Nightly),
        Route::B => {
            let rustc = PathBuf::from("/usr/bin/rustc");
            has_bpf_core(&rustc).then_some(Rustc::Distribution(rustc))
        }
    }
}

/// Fetches what the route needs.
fn get_rustc(route: Route) -> Option<Rustc> {
    match route {
        Route::A => {
            println!("setup: getting rust-src for rustup's nightly");
            let installed = output("rustup", &["toolchain", "list"])
                .is_some_and(|list| list.lines().any(|line| line.starts_with("nightly-")));
            // A nightly that is there is not updated behind its owner's back.
            let arguments: &[&str] = if installed {
                &["component", "add", "rust-src", "--toolchain", "nightly"]
            } else {
                &[
                    "toolchain",
                    "install",
                    "nightly",
                    "--profile",
                    "minimal",
                    "--component",
                    "rust-src",
                ]
            };
            output("rustup", arguments);
        }
        Route::B => {
            println!("setup: getting Debian's rustc-web");
            if let Err(error) = apt_install(&["rustc-web", "libstd-rust-web-dev-bpf"]) {
                println!("setup: {error:#}");
            }
        }
    }
    let rustc = find_rustc(route);
    if rustc.is_none() {
        println!("setup: not to be had");
    }
    rustc
}

/// True if the nightly can build `core`, and its LLVM is not newer than the linker's.
fn nightly_has_source() -> bool {
    let Some(version) = output("rustup", &["run", "nightly", "rustc", "-vV"]) else {
        return false;
    };
    let llvm = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let source =
        output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"]).is_some_and(|root| {
            Path::new(root.trim())
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
        });
    source && llvm.is_some_and(|llvm| llvm <= LLVM)
}

fn has_bpf_core(rustc: &Path) -> bool {
    output(&rustc.to_string_lossy(), &["--print", "sysroot"]).is_some_and(|root| {
        Path::new(root.trim())
            .join("lib/rustlib/bpfel-unknown-none/lib")
            .is_dir()
    })
}

fn linker_works(linker: &Path) -> bool {
    output(&linker.to_string_lossy(), &["--version"])
        .is_some_and(|version| version.contains("0.13."))
}

/// bpf-linker from PATH, from `target/tools`, or built there.
fn get_linker() -> Result<PathBuf> {
    let ours = target("tools/bin/bpf-linker");
    for linker in find_on_path("bpf-linker").into_iter().chain([ours.clone()]) {
        if linker_works(&linker) {
            return Ok(linker);
        }
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if !prefix.join("bin/llvm-config").exists() {
        println!("setup: getting LLVM {LLVM}");
        apt_install(&[&format!("llvm-{LLVM}-dev")]).with_context(|| {
            format!(
                "bpf-linker needs LLVM {LLVM} with its headers in {}",
                prefix.display()
            )
        })?;
    }
    println!("setup: building bpf-linker {BPF_LINKER} (about 30 s)");
    run_command(
        cargo_install("bpf-linker", BPF_LINKER)
            // LLVM, which is built already, does the work: optimized it takes twice as long to build, and
            // saves one of nine seconds that an object takes.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{LLVM}"),
            ])
            .env("LLVM_PREFIX", prefix),
    )?;
    if !linker_works(&ours) {
        bail!("bpf-linker was built but does not run: {}", ours.display());
    }
    // Its intermediate files are large and never needed again.
    if let Err(error) = fs::remove_dir_all(target("tools/build")) {
        println!("setup: cannot remove target/tools/build: {error}");
    }
    Ok(ours)
}

/// `cargo install` of a tool into `target/tools`.
pub(crate) fn cargo_install(name: &str, version: &str) -> Command {
    let mut install = cargo();
    install
        .args(["install", name, "--version", version, "--locked", "--quiet"])
        .arg("--root")
        .arg(target("tools"))
        .env("CARGO_TARGET_DIR", target("tools/build"));
    install
}

pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let wanted = packages.join(" ");
    if find_on_path("apt-get").is_none() {
        bail!("this machine has no apt-get; install the equivalent of: {wanted}");
    }
    if !is_root() {
        bail!("not root; run: sudo apt-get install {wanted}");
    }
    let apt = |arguments: &[&str]| {
        run_command(
            Command::new("apt-get")
                .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )
    };
    println!("setup: apt-get install {wanted}");
    // A fresh machine has no list, or an old one.
    apt(&["update"])?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    apt(&install)
}
