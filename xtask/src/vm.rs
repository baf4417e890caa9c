//! The probes' tests on kernels this machine does not run: Debian's own, booted in QEMU (software
//! emulation, no KVM, no disk, no network) with one archive of files as their root.
//!
//! The tests are those of the machine itself, [`SUITES`] of `tests/end-to-end/tests`. Those of the
//! request probe run once for each tier that the kernel offers. The running kernel is one more.

mod machine;
mod root;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use self::machine::{Told, Verdict, boot, follow};
use crate::project::{cargo, output, root as checkout, run as run_command, target};
use crate::setup;

/// Kernels, and the tier that the probe must choose there.
const KERNELS: &[(&str, &str)] = &[("6.1", "fexit"), ("6.12", "tp_btf")];

const TIERS: &[&str] = &["tp_btf", "fexit", "kprobe", "raw_tp"];

/// The suite that runs on each tier.
const REQUESTS: &str = "requests";

const SUITES: &[&str] = &[
    "loader", "sched", "syscalls", "host", "stacks", REQUESTS, "tls", "cuda", "pmc",
];

/// In the place of a tier: the one that the probe chooses.
const CHOSEN: &str = "chosen";

/// Suites in `cargo xtask test`, the requests' on the chosen tier: ten minutes on two CPUs, where all of them
/// on every tier take more than half an hour.
const TESTED: &[&str] = &[
    "loader", "sched", "syscalls", "host", "stacks", REQUESTS, "cuda", "pmc",
];

/// Where the running kernel's name would be a version's.
const HOST: &str = "host";

/// Behind a kernel's name: a run of single tests.
const SINGLE: &str = "single";

const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
];

/// What the user may ask of it.
#[derive(Default, clap::Args)]
pub(crate) struct Options {
    /// Only this kernel: 6.1, 6.12 or host, the running one
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// Then writes docs/kernels.md: what the latest run on each kernel saw, this one or an earlier
    #[arg(long)]
    write: bool,
    /// The request tests on these tiers alone, and no others unless they are named: tp_btf, fexit,
    /// kprobe, raw_tp, or chosen, the one that the probe takes by itself
    #[arg(long, value_name = "TIER")]
    tier: Vec<String>,
    /// Only these tests: loader, sched, syscalls, host, stacks, requests, tls, cuda or pmc
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Only tests with this in their names
    filter: Vec<String>,
}

impl Options {
    fn tiers(&self) -> Vec<&str> {
        if self.tier.is_empty() {
            TIERS.to_vec()
        } else {
            self.tier.iter().map(String::as_str).collect()
        }
    }

    fn suites(&self) -> Vec<&'static str> {
        let asked = |suite: &str| {
            let named = self.suite.iter().any(|name| name == suite);
            named || (self.suite.is_empty() && (self.tier.is_empty() || suite == REQUESTS))
        };
        let suites = SUITES.iter().copied();
        suites.filter(|suite| asked(suite)).collect()
    }
}

/// `cargo xtask vm`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    let kernels = kernels(options)?;
    let all = tell(&kernels, options)?;
    println!("{:.0} s", start.elapsed().as_secs_f64());
    if options.write {
        let versions = KERNELS.iter().map(|(version, _)| *version);
        let every: Result<Vec<Told>> = [HOST].into_iter().chain(versions).map(latest).collect();
        fs::write(checkout().join("docs/kernels.md"), table::page(&every?)?)?;
        println!("wrote docs/kernels.md");
    }
    passed(&all)
}

/// What the latest run of all tests of some suites saw on this kernel.
fn latest(kernel: &str) -> Result<Told> {
    let kept = |name: &str| machine::kept(name).with_context(|| format!("Linux {name}"));
    let mut whole = kept(kernel)?
        .with_context(|| format!("no run on {kernel} yet: cargo xtask vm --kernel {kernel}"))?;
    if let Some(later) = kept(&format!("{kernel}-{SINGLE}"))? {
        whole.tried_again(&later);
    }
    Ok(whole)
}

/// Part of `cargo xtask test`: [`TESTED`] on each kernel but the running one. An error is why there is
/// nothing to run on.
pub(crate) fn other_kernels() -> Result<OtherKernels> {
    let options = Options {
        tier: vec![CHOSEN.to_owned()],
        suite: TESTED.iter().map(|suite| (*suite).to_owned()).collect(),
        ..Options::default()
    };
    let mut kernels = kernels(&options)?;
    kernels.host = false;
    Ok(OtherKernels { kernels, options })
}

/// What `cargo xtask test` runs.
pub(crate) struct OtherKernels {
    kernels: Kernels,
    options: Options,
}

impl OtherKernels {
    /// Runs it, and once more what failed: a machine that others share may emulate too slowly. Returns
    /// what passed only then.
    pub(crate) fn check(&self) -> Result<Vec<String>> {
        let failed = match tell(&self.kernels, &self.options) {
            Ok(all) => failed(&all),
            Err(error) => {
                println!("\n== once more: {error:#}");
                passed(&tell(&self.kernels, &self.options)?)?;
                return Ok(vec!["the tests on other kernels".to_owned()]);
            }
        };
        if failed.is_empty() {
            return Ok(failed);
        }
        println!("\n== once more: {}", failed.join(", "));
        let again = Options {
            tier: self.options.tier.clone(),
            suite: self.options.suite.clone(),
            filter: failed.clone(),
            ..Options::default()
        };
        passed(&tell(&self.kernels, &again)?)?;
        Ok(failed)
    }
}

/// What to boot.
struct Kernels {
    /// Each with its version and the tier that is expected there.
    booted: Vec<(PathBuf, &'static str, &'static str)>,
    /// The running one too.
    host: bool,
}

/// Gets QEMU and the kernels that are asked for.
fn kernels(options: &Options) -> Result<Kernels> {
    let missing = setup::ensure_packages(PACKAGES);
    ensure!(missing.is_empty(), "install {}", missing.join(" and "));
    let folder = target("vm");
    fs::create_dir_all(&folder)?;
    let asked = |version: &str| options.kernel.as_deref().is_none_or(|only| only == version);
    let mut booted = Vec::new();
    for (version, expected) in KERNELS.iter().filter(|(version, _)| asked(version)) {
        booted.push((kernel(&folder, version)?, *version, *expected));
    }
    let host = asked(HOST);
    ensure!(
        !booted.is_empty() || host,
        "kernels are {}, 6.12 and {HOST}",
        KERNELS[0].0
    );
    Ok(Kernels { booted, host })
}

/// Runs the tests and prints what they said.
fn tell(kernels: &Kernels, options: &Options) -> Result<Vec<Told>> {
    setup::ensure()?;
    let suites = options.suites();
    ensure!(!suites.is_empty(), "suites are {}", SUITES.join(", "));
    let tests = test_binaries(&suites)?;
    run_command(cargo().args(["build", "--release", "--package", "profiler"]))?;
    let mut all = Vec::new();
    // Alone: its tests are of times.
    if kernels.host {
        println!("== the running kernel");
        all.push(on_host(&tests, options).context("the running kernel")?);
    }
    let archive = root::archive(&target("vm"), &tests, options)?;
    // Side by side: one test at a time keeps little more than one CPU busy.
    let outcomes: Vec<_> = thread::scope(|scope| {
        let machines: Vec<_> = kernels
            .booted
            .iter()
            .map(|(kernel, version, expected)| {
                println!("== Linux {version}: {}", kernel.display());
                let archive = &archive;
                let name = console(version, options);
                let boot = move || boot(kernel, archive, &name);
                (*version, *expected, scope.spawn(boot))
            })
            .collect();
        let ended = machines.into_iter();
        ended
            .map(|(version, expected, machine)| (version, expected, machine.join()))
            .collect()
    });
    for (version, expected, outcome) in outcomes {
        let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let told = outcome.with_context(|| format!("Linux {version}"))?;
        let expected = format!("chosen: tier {expected}");
        if let Some(chosen) = &told.chosen {
            ensure!(chosen.contains(&expected), "not {expected}: {chosen}");
        }
        all.push(told);
    }
    summary(&all);
    Ok(all)
}

fn passed(all: &[Told]) -> Result<()> {
    let failed = failed(all);
    ensure!(failed.is_empty(), "tests failed: {}", failed.join(", "));
    Ok(())
}

/// The tests that failed on any kernel.
fn failed(all: &[Told]) -> Vec<String> {
    let runs = all.iter().flat_map(|told| &told.runs);
    let tests = runs.flat_map(|(_, tests)| tests);
    let failed = tests.filter(|(_, verdict)| **verdict == Verdict::Failed);
    let names: BTreeSet<String> = failed.map(|(name, _)| name.clone()).collect();
    names.into_iter().collect()
}

/// Under which name a run's output is kept: single tests do not replace what a whole run said, and a
/// whole run makes those before it void.
fn console(kernel: &str, options: &Options) -> String {
    let single = format!("{kernel}-{SINGLE}");
    if !options.filter.is_empty() {
        return single;
    }
    // There may be none.
    let _ = fs::remove_file(target("vm").join(format!("console-{single}")));
    kernel.to_owned()
}

/// The same tests on the running kernel.
fn on_host(tests: &[(&'static str, PathBuf)], options: &Options) -> Result<Told> {
    run_command(cargo().args(["build", "--release"]).args([
        "--package",
        "nvml-sim",
        "--package",
        "inference-sim",
    ]))?;
    let places: Vec<(&str, String)> = tests
        .iter()
        .map(|(name, test)| (*name, test.to_string_lossy().into_owned()))
        .collect();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &root::script(&places, options)])
        .current_dir(checkout().join("tests/end-to-end"))
        .env("PERJOULE_TEST_BINARIES", target("release"));
    follow(&mut shell, &console(HOST, options))
}

/// The end-to-end tests of these names, each as an executable.
fn test_binaries(names: &[&'static str]) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut command = cargo();
    command.args(["test", "--package", "end-to-end", "--release", "--no-run"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    for name in names {
        command.args(["--test", name]);
    }
    let built = command.stderr(Stdio::inherit()).output()?;
    ensure!(built.status.success(), "the tests do not build");
    let text = String::from_utf8(built.stdout)?;
    let messages: Vec<serde_json::Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let executable = |name: &'static str| {
        let path = messages
            .iter()
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        Ok((name, path.context("cargo names no executable")?))
    };
    names.iter().map(|name| executable(name)).collect()
}

/// Debian's newest cloud kernel of this version, fetched once.
fn kernel(folder: &Path, version: &str) -> Result<PathBuf> {
    if let Some(kernel) = unpacked(folder, version) {
        return Ok(kernel);
    }
    let pattern = format!(
        "^linux-image-{}[.+][^ ]*cloud-amd64$",
        version.replace('.', "[.]")
    );
    let found = output("apt-cache", &["search", "--names-only", &pattern]).unwrap_or_default();
    let package = found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|name| numbers(name))
        .with_context(|| format!("apt knows no kernel {version}; run apt-get update"))?;
    run_command(
        Command::new("apt-get")
            .args(["download", package])
            .current_dir(folder),
    )?;
    let deb = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            name.is_some_and(|name| name.starts_with(&format!("{package}_")))
        })
        .context("apt-get downloaded nothing")?;
    run_command(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&deb)
            .arg(folder.join(version)),
    )?;
    unpacked(folder, version).context("the package holds no kernel")
}

/// The numbers of a package's name, to find the newest.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn unpacked(folder: &Path, version: &str) -> Option<PathBuf> {
    let boot = fs::read_dir(folder.join(version).join("boot")).ok()?;
    boot.filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        })
}

/// A line for each kernel and run, and below it what did not simply pass.
fn summary(all: &[Told]) {
    println!(
        "\n{:<24} {:<20} {:>6} {:>7} {:>11} {:>6}",
        "Linux", "tests", "passed", "skipped", "unsupported", "failed"
    );
    for told in all {
        for (run, tests) in &told.runs {
            let count = |is: fn(&Verdict) -> bool| tests.values().filter(|it| is(it)).count();
            println!(
                "{:<24} {run:<20} {:>6} {:>7} {:>11} {:>6}",
                told.release,
                count(|it| *it == Verdict::Passed),
                count(|it| matches!(it, Verdict::Skipped(_))),
                count(|it| matches!(it, Verdict::Unsupported(_))),
                count(|it| *it == Verdict::Failed)
            );
            for (name, verdict) in tests {
                match verdict {
                    Verdict::Passed => {}
                    Verdict::Skipped(why) => println!("       skipped {name}: {why}"),
                    Verdict::Unsupported(why) => println!("       unsupported: {why}"),
                    Verdict::Failed => println!("       FAILED {name}"),
                    Verdict::PassedLater => println!("       passed later: {name}"),
                }
            }
        }
    }
}
