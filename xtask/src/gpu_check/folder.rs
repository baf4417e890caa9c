//! Where logs, recordings and the simulated GPU's files are, and where the built programs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::demo::stack::SCENARIO;
use crate::project::target;

/// By which nvml-sim finds its scenario.
const SCENARIO_VARIABLE: &str = "PERJOULE_NVML_SIM_SCENARIO";

/// A folder that goes with this value, unless the user named it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    remove: bool,
}

impl Folder {
    pub(super) fn make(named: Option<&Path>) -> Result<Self> {
        let path = named.map_or_else(
            || env::temp_dir().join(format!("perjoule-gpu-check-{}", std::process::id())),
            Path::to_owned,
        );
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        let path = path.canonicalize()?;
        let remove = named.is_none();
        Ok(Self { path, remove })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a simulated GPU, for this process and those it starts; its library.
    pub(super) fn simulated_gpu(&self, binaries: &Path) -> Result<PathBuf> {
        let scenario = self.path.join("scenario.toml");
        fs::write(&scenario, SCENARIO)?;
        let built = binaries.join("libnvml_sim.so");
        // The loader wants the library's real name.
        let library = self.path.join("libnvidia-ml.so.1");
        fs::copy(&built, &library).with_context(|| {
            format!(
                "no simulated GPU at {}; `cargo build --release -p nvml-sim -p inference-sim -p profiler` makes it",
                built.display()
            )
        })?;
        // SAFETY: nothing else runs in this process yet that could read the environment.
        unsafe { env::set_var(SCENARIO_VARIABLE, &scenario) };
        Ok(library)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.remove {
            // It is in the folder for temporary files.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The folder of the built programs: as told, else beside this one, else the checkout's.
pub(super) fn binaries(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return named
            .canonicalize()
            .with_context(|| named.display().to_string());
    }
    let own = env::current_exe()?;
    let beside = own
        .parent()
        .filter(|folder| folder.join("perjoule").is_file());
    Ok(beside.map_or_else(|| target("release"), Path::to_owned))
}
