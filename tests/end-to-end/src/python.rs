//! The virtual environment that `cargo xtask test` makes from `servers/requirements.txt`.

use std::path::Path;
use std::process::Command;

use crate::skipped;

/// A program of it; `None`, said, where there is none.
pub fn program(name: &str) -> Option<Command> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = here.join("../../target/python/bin").join(name);
    if !path.is_file() {
        skipped(&format!(
            "{name}: no virtual environment in target/python (`cargo xtask test` makes it)"
        ));
        return None;
    }
    let mut command = Command::new(path);
    command.env("PYTHONPATH", here.join("servers"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}
