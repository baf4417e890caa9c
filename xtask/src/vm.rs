//! The request probe's tiers on kernels this machine does not run: Debian's own, booted in QEMU
//! (software emulation, no KVM, no disk, no network) with one archive of files as their root.
//!
//! The tests are those of the machine itself, `tests/end-to-end/tests/requests*`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::project::{cargo, find_on_path, output, run as run_command, target};
use crate::setup;

/// Kernels, and the tier that the probe must choose there.
const KERNELS: &[(&str, &str)] = &[("6.1", "fexit"), ("6.12", "tp_btf")];

const TIERS: &[&str] = &["tp_btf", "fexit", "kprobe", "raw_tp"];

const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
];

/// Programs that tests start, where they are installed.
const SERVERS: &[&str] = &["nginx", "wrk"];

/// Modules that tests of the kernel's own TLS need, in the order they are loaded.
const MODULES: &[&str] = &[
    "gf128mul",
    "ghash-generic",
    "ctr",
    "crypto_null",
    "gcm",
    "tls",
];

/// Emulated machines are slow; one that has stopped is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(900);

/// What the user may ask of it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this kernel: 6.1 or 6.12
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// Only these tiers
    #[arg(long, value_name = "TIER")]
    tier: Vec<String>,
    /// A test executable built before [default: built now, optimized]
    #[arg(long, value_name = "FILE")]
    tests: Option<PathBuf>,
    /// Only tests with this in their names
    filter: Vec<String>,
}

/// What a test said, by kernel, tier and name.
type Verdicts = BTreeMap<(String, String), Vec<(String, bool)>>;

/// `cargo xtask vm`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    setup::ensure()?;
    let missing = setup::ensure_packages(PACKAGES);
    ensure!(missing.is_empty(), "install {}", missing.join(" and "));
    let folder = target("vm");
    fs::create_dir_all(&folder)?;
    let test = match &options.tests {
        Some(built) => built.clone(),
        None => test_binary("requests")?,
    };
    let asked = |version: &str| options.kernel.as_deref().is_none_or(|only| only == version);
    let mut kernels = Vec::new();
    for (version, expected) in KERNELS.iter().filter(|(version, _)| asked(version)) {
        kernels.push((kernel(&folder, version)?, *version, *expected));
    }
    let archive = archive(&folder, &test, options)?;
    let mut verdicts = Verdicts::new();
    for (kernel, version, expected) in kernels {
        println!("\n== Linux {version}: {}", kernel.display());
        boot(&kernel, &archive, version, expected, &mut verdicts)
            .with_context(|| format!("Linux {version}"))?;
    }
    summary(&verdicts);
    println!("{:.0} s", start.elapsed().as_secs_f64());
    let failed = verdicts.values().flatten().any(|(_, passed)| !passed);
    ensure!(!failed, "tests failed");
    Ok(())
}

/// The end-to-end tests of this name, as an executable.
fn test_binary(name: &str) -> Result<PathBuf> {
    let built = cargo()
        .args(["test", "--package", "end-to-end", "--test", name])
        .args([
            "--release",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(built.status.success(), "the tests do not build");
    let text = String::from_utf8(built.stdout)?;
    let executable = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.context("cargo names no executable")
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

/// The machine's root: busybox, the tests, the servers they start, and all libraries these need.
fn archive(folder: &Path, test: &Path, options: &Options) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in [
        "bin",
        "proc",
        "sys",
        "dev",
        "tmp",
        "etc",
        "vm",
        "var/log/nginx",
    ] {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = find_on_path("busybox").context("no busybox")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    bundle(&root, test, "vm/requests")?;
    for server in SERVERS {
        match find_on_path(server) {
            Some(program) => bundle(&root, &program, &format!("bin/{server}"))?,
            None => println!("{server} is not installed: tests that need it skip themselves"),
        }
    }
    for (version, _) in KERNELS {
        modules(&root, &folder.join(version))?;
    }
    fs::write(root.join("init"), init(options))?;
    run_command(Command::new("chmod").arg("+x").arg(root.join("init")))?;
    let archive = folder.join("root.cpio");
    let mut list = Command::new(&busybox)
        .args(["find", "."])
        .current_dir(&root)
        .stdout(Stdio::piped())
        .spawn()?;
    let names = list.stdout.take().context("find's output")?;
    run_command(
        Command::new(&busybox)
            .args(["cpio", "-o", "-H", "newc"])
            .current_dir(&root)
            .stdin(names)
            .stdout(File::create(&archive)?)
            .stderr(Stdio::null()),
    )?;
    list.wait()?;
    Ok(archive)
}

/// Copies the modules of the kernel unpacked at `kernel`, if it is one, to `modules/RELEASE`.
fn modules(root: &Path, kernel: &Path) -> Result<()> {
    let Ok(releases) = fs::read_dir(kernel.join("lib/modules")) else {
        return Ok(());
    };
    for release in releases {
        let release = release?;
        let to = root.join("modules").join(release.file_name());
        fs::create_dir_all(&to)?;
        let found = output(
            "find",
            &[&release.path().to_string_lossy(), "-name", "*.ko*"],
        )
        .context("find")?;
        for path in found.lines().map(Path::new) {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let Some((name, packed)) = file.split_once(".ko") else {
                continue;
            };
            if !MODULES.contains(&name) {
                continue;
            }
            let module = File::create(to.join(name))?;
            let program = if packed.is_empty() { "cat" } else { "xzcat" };
            run_command(Command::new(program).arg(path).stdout(module))?;
        }
    }
    Ok(())
}

/// Copies a program and its libraries to where they are looked for.
fn bundle(root: &Path, program: &Path, to: &str) -> Result<()> {
    fs::copy(program, root.join(to))?;
    let libraries = output("ldd", &[&program.to_string_lossy()]).unwrap_or_default();
    // `name => path (address)`, or the loader's path alone.
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in paths {
        let to = root.join(path.trim_start_matches('/'));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(path, &to).with_context(|| path.to_owned())?;
    }
    Ok(())
}

/// The first process: mounts what programs expect, runs the tests on each tier, and ends.
fn init(options: &Options) -> String {
    let tiers = if options.tier.is_empty() {
        TIERS.join(" ")
    } else {
        options.tier.join(" ")
    };
    let filter = options.filter.join(" ");
    let modules = MODULES.join(" ");
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs tmp /tmp\n\
         ip link set lo up\n\
         for module in {modules}; do\n\
         [ -e /modules/$(uname -r)/$module ] && insmod /modules/$(uname -r)/$module\n\
         done\n\
         echo 'vm: tier chosen'\n\
         /vm/requests --test-threads=1 --nocapture the_first_tier\n\
         export PERJOULE_TEST_SKIPPED=/tmp/skipped\n\
         for tier in {tiers}; do\n\
         echo \"vm: tier $tier\"\n\
         export PERJOULE_REQUEST_TIER=$tier\n\
         rm -f /tmp/skipped\n\
         /vm/requests --test-threads=1 the_first_tier > /tmp/first 2>&1\n\
         if [ -e /tmp/skipped ]; then cat /tmp/skipped; continue; fi\n\
         /vm/requests --test-threads=1 {filter}\n\
         [ -e /tmp/skipped ] && sort -u /tmp/skipped\n\
         done\n\
         echo 'vm: done'\n\
         poweroff -f\n"
    )
}

/// Boots the kernel and reads what the tests say on its console.
fn boot(
    kernel: &Path,
    archive: &Path,
    version: &str,
    expected: &str,
    verdicts: &mut Verdicts,
) -> Result<()> {
    let start = Instant::now();
    let mut machine = Command::new("timeout")
        .arg(PATIENCE.as_secs().to_string())
        .arg("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-m", "1536M", "-smp", "2", "-nic", "none"])
        .args(["-no-reboot", "-nographic"])
        .args(["-append", "console=ttyS0 panic=-1 loglevel=3 rdinit=/init"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(archive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64")?;
    let console = machine.stdout.take().context("the console")?;
    let mut log = File::create(target("vm").join(format!("console-{version}")))?;
    let mut tier = String::new();
    let (mut done, mut chosen) = (false, false);
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        writeln!(log, "{line}")?;
        // Behind what the firmware leaves on the line.
        if let Some((_, next)) = line.split_once("vm: tier ") {
            next.clone_into(&mut tier);
            println!("-- {tier}, {:.0} s", start.elapsed().as_secs_f64());
        } else if line == "vm: done" {
            done = true;
        } else if tier.is_empty() {
            // The kernel's and its firmware's own.
        } else if let Some((name, outcome)) = tested(&line) {
            let of_tier = verdicts
                .entry((version.to_owned(), tier.clone()))
                .or_default();
            of_tier.push((name.to_owned(), outcome));
        } else {
            println!("   {line}");
            chosen |= line.contains(&format!("chosen: tier {expected}"));
        }
    }
    machine.wait()?;
    if !done {
        bail!("it did not come to its end; see target/vm/console-{version}");
    }
    ensure!(chosen, "the tier chosen is not {expected}");
    Ok(())
}

/// `test NAME ... ok`; what a test itself prints may stand between.
fn tested(line: &str) -> Option<(&str, bool)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    match rest.trim() {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

fn summary(verdicts: &Verdicts) {
    println!(
        "\n{:<8} {:<8} {:>7} {:>7}",
        "Linux", "tier", "passed", "failed"
    );
    for ((version, tier), tests) in verdicts {
        let passed = tests.iter().filter(|(_, passed)| *passed).count();
        println!(
            "{version:<8} {tier:<8} {passed:>7} {:>7}",
            tests.len() - passed
        );
        for (name, _) in tests.iter().filter(|(_, passed)| !passed) {
            println!("         FAILED {name}");
        }
    }
}
