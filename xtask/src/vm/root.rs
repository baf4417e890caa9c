//! What is in the machine: busybox, the tests, the programs they start, and all libraries of these,
//! each where it is looked for. Everything is in memory, so only what tests use is taken.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::{CHOSEN, KERNELS, Options, REQUESTS};
use crate::project::{find_on_path, output, root as checkout, run as run_command, target};

/// Programs that tests start.
const PROGRAMS: &[&str] = &["nginx", "wrk", "openssl", "node"];

/// Modules that tests of the kernel's own TLS need, in the order they are loaded.
const MODULES: &[&str] = &[
    "gf128mul",
    "ghash-generic",
    "ctr",
    "crypto_null",
    "gcm",
    "tls",
];

/// Of Python's own library, what no server or client needs and is large, by how its name begins.
const NOT_OF_PYTHON: &[&str] = &[
    "site-packages",
    "dist-packages",
    "test",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "tkinter",
    "turtledemo",
    "pydoc_data",
    "config-",
];

/// What an emulated CPU takes longer for, which is what tests wait longer for.
const SLOWNESS: u32 = 10;

/// Packs the archive, which serves every kernel.
pub(super) fn archive(
    folder: &Path,
    tests: &[(&str, PathBuf)],
    options: &Options,
) -> Result<PathBuf> {
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
    for (name, test) in tests {
        bundle_stripped(&root, test, &format!("vm/{name}"))?;
    }
    bundle_stripped(&root, &target("release/perjoule"), "vm/perjoule")?;
    built_from_c(&root)?;
    for name in PROGRAMS {
        match find_on_path(name) {
            Some(program) => bundle(&root, &program, &format!("bin/{name}"))?,
            None => println!("{name} is not installed: tests that need it skip themselves"),
        }
    }
    python(&root)?;
    let settings = Path::new("/usr/lib/ssl/openssl.cnf");
    if settings.is_file() {
        place(&root, settings, settings)?;
    }
    // Tests name these by their place in the checkout.
    let programs = "tests/end-to-end/tests/tls/programs";
    copy_tree(&root, &checkout().canonicalize()?.join(programs), &[])?;
    // Made by the tests themselves on this machine, from a registry that is out of reach there.
    if target("http2-venv").is_dir() {
        let environment = target("http2-venv");
        copy_tree(&root, &environment, &[])?;
        let place = environment.to_string_lossy();
        let modules = output("find", &[&place, "-name", "*.so"]).context("find")?;
        for module in modules.lines().map(Path::new) {
            libraries(&root, module)?;
        }
    }
    for (version, _) in KERNELS {
        modules(&root, &folder.join(version))?;
    }
    fs::write(root.join("init"), init(tests, options))?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    pack(folder, &root, &busybox)
}

/// What tests would build themselves: the CUDA library and the program that uses it, and the one whose
/// stacks are sampled.
fn built_from_c(root: &Path) -> Result<()> {
    let sources = checkout().join("tests/end-to-end/tests");
    for (from, to, flags) in [
        (
            "cuda/libcuda.c",
            "libcuda.so.1",
            &["-O1", "-shared", "-fPIC"][..],
        ),
        ("cuda/program.c", "cuda-program", &["-O1"]),
        ("stacks/busy.c", "busy-program", &["-O0"]),
        ("stacks/waits.c", "waits-program", &["-O0"]),
    ] {
        run_command(
            Command::new("gcc")
                .arg("-fno-omit-frame-pointer")
                .args(flags)
                .arg(sources.join(from))
                .arg("-o")
                .arg(root.join("vm").join(to)),
        )?;
    }
    Ok(())
}

fn pack(folder: &Path, root: &Path, busybox: &Path) -> Result<PathBuf> {
    let archive = folder.join("root.cpio");
    let mut list = Command::new(busybox)
        .args(["find", "."])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()?;
    let names = list.stdout.take().context("find's output")?;
    run_command(
        Command::new(busybox)
            .args(["cpio", "-o", "-H", "newc"])
            .current_dir(root)
            .stdin(names)
            .stdout(File::create(&archive)?)
            .stderr(Stdio::null()),
    )?;
    list.wait()?;
    Ok(archive)
}

/// The interpreter and its own library, at their own places, and `bin/python3`.
fn python(root: &Path) -> Result<()> {
    let ask = "import os, sys, sysconfig; \
               print(os.path.realpath(sys.executable)); print(sysconfig.get_path('stdlib'))";
    let Some(told) = output("python3", &["-c", ask]) else {
        println!("python3 is not installed: tests that need it fail");
        return Ok(());
    };
    let mut lines = told.lines().map(PathBuf::from);
    let (program, library) = lines.next().zip(lines.next()).context("python3's places")?;
    place(root, &program, &program)?;
    libraries(root, &program)?;
    symlink(&program, root.join("bin/python3"))?;
    // A virtual environment's interpreter is a link to this name.
    let usual = root
        .join(program.strip_prefix("/")?)
        .with_file_name("python3");
    if !usual.exists() {
        symlink(&program, usual)?;
    }
    copy_tree(root, &library, NOT_OF_PYTHON)?;
    for module in fs::read_dir(library.join("lib-dynload"))? {
        libraries(root, &module?.path())?;
    }
    Ok(())
}

/// Copies a folder to its own place, but for entries whose names begin so at its top.
fn copy_tree(root: &Path, from: &Path, without: &[&str]) -> Result<()> {
    let to = root.join(from.strip_prefix("/").unwrap_or(from));
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !without.iter().any(|start| name.starts_with(start)) {
            run_command(Command::new("cp").arg("-a").arg(entry.path()).arg(&to))?;
        }
    }
    Ok(())
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

/// Copies a program to `to`, and its libraries to where they are looked for.
fn bundle(root: &Path, program: &Path, to: &str) -> Result<()> {
    place(root, program, Path::new(to))?;
    libraries(root, program)
}

/// The same, without debug information, which would be most of the archive.
fn bundle_stripped(root: &Path, program: &Path, to: &str) -> Result<()> {
    bundle(root, program, to)?;
    run_command(
        Command::new("strip")
            .arg("--strip-debug")
            .arg(root.join(to)),
    )
}

fn libraries(root: &Path, program: &Path) -> Result<()> {
    let libraries = output("ldd", &[&program.to_string_lossy()]).unwrap_or_default();
    // `name => path (address)`, or the loader's path alone.
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'));
    for path in paths.map(Path::new) {
        place(root, path, path)?;
    }
    Ok(())
}

fn place(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, &to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// The first process: mounts what programs expect, runs the tests, and ends.
fn init(tests: &[(&str, PathBuf)], options: &Options) -> String {
    let modules = MODULES.join(" ");
    let places: Vec<(&str, String)> = tests
        .iter()
        .map(|(name, _)| (*name, format!("/vm/{name}")))
        .collect();
    let runs = script(&places, options);
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mkdir -p /dev/pts /var/tmp\n\
         mount -t devpts pts /dev/pts\n\
         mount -t tmpfs tmp /tmp\n\
         ip link set lo up\n\
         export PERJOULE_TEST_BINARIES=/vm\n\
         export PERJOULE_TEST_SLOWNESS={SLOWNESS}\n\
         for module in {modules}; do\n\
         [ -e /modules/$(uname -r)/$module ] && insmod /modules/$(uname -r)/$module\n\
         done\n\
         {runs}\
         poweroff -f\n"
    )
}

/// Runs the tests at these places one after the other, those of requests on each tier, in the words
/// that [`super::machine`] reads. A tier that the machine forbids is none it offers.
pub(super) fn script(tests: &[(&str, String)], options: &Options) -> String {
    let tiers = options.tiers().join(" ");
    let filter = options.filter.join(" ");
    // `--show-output`: a test that skips itself passes, and says so in what it prints.
    let run = "--test-threads=1 --show-output";
    let each = |name: &str, test: &str| {
        if name != REQUESTS {
            return format!("echo 'vm: run {name}'\n{test} {run} {filter}\n");
        }
        format!(
            "echo 'vm: run {name}, first tier'\n\
             {test} {run} --nocapture the_first_tier\n\
             for tier in {tiers}; do\n\
             echo \"vm: run {name}, $tier\"\n\
             export PERJOULE_REQUEST_TIER=$tier PERJOULE_TEST_SKIPPED=/tmp/perjoule-vm-skipped\n\
             [ $tier = {CHOSEN} ] && unset PERJOULE_REQUEST_TIER\n\
             rm -f $PERJOULE_TEST_SKIPPED\n\
             first=$({test} --test-threads=1 the_first_tier 2>&1)\n\
             if [ -e $PERJOULE_TEST_SKIPPED ]; then\n\
             echo \"vm: none: $(cat $PERJOULE_TEST_SKIPPED)\"; continue; fi\n\
             refused=$(echo \"$first\" | grep -m1 'Operation not permitted')\n\
             if [ \"$refused\" ]; then echo \"vm: none: $refused\"; continue; fi\n\
             {test} {run} {filter}\n\
             done\n\
             unset PERJOULE_REQUEST_TIER PERJOULE_TEST_SKIPPED\n"
        )
    };
    let runs: String = tests.iter().map(|(name, test)| each(name, test)).collect();
    format!("echo \"vm: Linux $(uname -r)\"\n{runs}echo 'vm: done'\n")
}
