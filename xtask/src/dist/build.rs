//! The program as it is shipped: without a path of the machine that built it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::VERSION;
use crate::project::{cargo, output, root, run, target};

/// Builds it; returns where it is.
pub(super) fn binary() -> Result<PathBuf> {
    let machine = machine()?;
    let flags: Vec<String> = machine
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect();
    // SQLite's sources name themselves in what the C compiler writes.
    let c_flags: Vec<String> = machine
        .iter()
        .map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()))
        .collect();
    // A folder of its own: other flags would make the next ordinary build start from nothing.
    let folder = target("dist-build");
    println!("dist: building the program");
    run(cargo()
        .args(["build", "--release", "--locked", "--package", "profiler"])
        .args(["--bin", "perjoule"])
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CFLAGS", c_flags.join(" ")))?;
    let binary = folder.join("release/perjoule");
    let program = fs::read(&binary)?;
    if let Some(minor) = glibc(&program) {
        println!("dist: it needs glibc 2.{minor} or later");
    }
    let leaked = leaks(&program, machine.iter().map(|(from, _)| &**from));
    if !leaked.is_empty() {
        bail!(
            "{} names paths of this machine: {leaked:?}",
            binary.display()
        );
    }
    Ok(binary)
}

/// Folders of this machine that compilers see, and what they are called instead. The last that fits a path counts.
fn machine() -> Result<Vec<(PathBuf, String)>> {
    let home = env::var_os("HOME").map(PathBuf::from).context("no HOME")?;
    let folder = |variable: &str, default: &str| {
        env::var_os(variable).map_or_else(|| home.join(default), PathBuf::from)
    };
    let toolchain = output("rustc", &["--print", "sysroot"]).context("rustc")?;
    Ok(vec![
        (folder("RUSTUP_HOME", ".rustup"), "/usr/src/rust".to_owned()),
        (PathBuf::from(toolchain.trim()), "/usr/src/rust".to_owned()),
        (folder("CARGO_HOME", ".cargo"), "/usr/src/cargo".to_owned()),
        (
            root().canonicalize()?,
            format!("/usr/src/perjoule-{VERSION}"),
        ),
    ])
}

/// Those of `folders` that `program` names.
fn leaks<'a>(program: &[u8], folders: impl Iterator<Item = &'a Path>) -> Vec<&'a Path> {
    folders
        .filter(|folder| {
            let name = folder.as_os_str().as_encoded_bytes();
            program.windows(name.len()).any(|window| window == name)
        })
        .collect()
}

/// The newest glibc whose functions `program` uses: the number behind `GLIBC_2.`.
fn glibc(program: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"GLIBC_2.";
    let minor = |window: &[u8]| {
        let digits = window.strip_prefix(NAME)?;
        let digits = digits.split(|byte| !byte.is_ascii_digit()).next()?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    program.windows(NAME.len() + 3).filter_map(minor).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_counts() {
        assert_eq!(glibc(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0"), Some(34));
        assert_eq!(glibc(b"static"), None);
    }

    #[test]
    fn a_path_of_the_machine_in_the_program_is_found() {
        let folders = [Path::new("/home/me/.cargo"), Path::new("/home/me/perjoule")];
        let found = |program: &[u8]| leaks(program, folders.into_iter()).len();
        assert_eq!(found(b"\0at /usr/src/cargo/registry/x.rs\0"), 0);
        assert_eq!(found(b"\0at /home/me/.cargo/registry/x.rs\0"), 1);
    }
}
