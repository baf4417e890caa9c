//! A Python with grpcio in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The interpreter, made once with grpcio from PyPI; `None`, said, where it cannot be had.
pub(crate) fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/http2-venv");
    let python = folder.join("bin/python");
    let ready = |python: &Path| {
        let status = Command::new(python)
            .args(["-c", "import grpc"])
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    if !ready(&python) {
        let _ = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&folder)
            .status();
        let _ = Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "grpcio"])
            .status();
    }
    if ready(&python) {
        return Some(python);
    }
    end_to_end::skipped("grpcio cannot be installed");
    None
}
