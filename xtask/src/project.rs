//! Where things are in the checkout, and how commands are run from it.

use std::env;
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

/// The checkout's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .components()
        .collect::<PathBuf>()
}

/// A file or folder below `target/`.
pub(crate) fn target(path: &str) -> PathBuf {
    root()
        .canonicalize()
        .unwrap_or_else(|_| root())
        .join("target")
        .join(path)
}

/// cargo, as it runs this task, from the checkout's root and into its `target/`.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target(""))
        .env_remove("RUSTC");
    // What cargo told this program of its own package: build scripts that ask for it (ring's) would be run
    // again, and all that stands on them built again, whenever cargo is called by hand.
    for (name, _) in env::vars_os() {
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if own
            .iter()
            .any(|own| name.as_encoded_bytes().starts_with(own.as_bytes()))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs to the end; an error names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start: {shown}"))?;
    check(status, &shown)
}

/// An error that names the command, unless it succeeded.
pub(crate) fn check(status: ExitStatus, shown: &str) -> Result<()> {
    if !status.success() {
        bail!("failed ({status}): {shown}");
    }
    Ok(())
}

/// Runs to the end and returns what it printed on stdout, or `None` if it failed or is missing.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|o| o.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// What a server answers at this address.
pub(crate) fn get(url: &str) -> Result<String> {
    let (address, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("not an address: {url}"))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("{url} does not answer"))?;
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    match response.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => bail!("{url} answers with no body"),
    }
}

/// The date, as a page states it.
pub(crate) fn today() -> Result<String> {
    let date = output("date", &["-u", "+%Y-%m-%d"]).context("date")?;
    Ok(date.trim().to_owned())
}

/// Where the program is on PATH.
pub(crate) fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Daemons from packages live in sbin, which an ordinary user's PATH may lack.
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// True for the superuser.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    std::iter::once(command.get_program().to_string_lossy())
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}
