//! A scenario that is played, and the library that shows it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpu_state::GpuState;
use nvml_sim::Scenario;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// The library reads one scenario a process, so its users take turns.
pub(crate) static TURN: Mutex<()> = Mutex::new(());

pub(crate) struct Machine {
    pub(crate) nvml: Nvml,
    pub(crate) scenario: Scenario,
    pub(crate) state: Arc<GpuState>,
    _folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

pub(crate) fn machine(scenario: &str) -> Machine {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scenario.toml");
    std::fs::write(&path, format!("gpu_state = \"gpu\"\n{scenario}")).unwrap();
    let nvml = load(&path).unwrap();
    let scenario = Scenario::load(&path).unwrap();
    let state = Arc::new(scenario.open_state().unwrap());
    Machine {
        nvml,
        scenario,
        state,
        _folder: folder,
        _turn: turn,
    }
}

pub(crate) fn load(scenario: &Path) -> Result<Nvml, NvmlError> {
    // SAFETY: tests of this process take turns, and no other thread of theirs reads the
    // environment.
    unsafe { std::env::set_var(nvml_sim::SCENARIO_VARIABLE, scenario) };
    Nvml::builder().lib_path(library().as_os_str()).init()
}

/// Cargo builds the library's shared object beside the tests' own folder.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let found = test
        .ancestors()
        .skip(1)
        .map(|folder| folder.join("libnvml_sim.so"));
    found
        .into_iter()
        .find(|file| file.exists())
        .expect("cargo builds the cdylib with its tests")
}
