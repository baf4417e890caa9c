//! Opening NVIDIA's management library, and saying plainly why it cannot be opened.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use thiserror::Error;

/// What the driver installs it as.
pub const DEFAULT_LIBRARY: &str = "libnvidia-ml.so.1";

/// Functions without which nothing can be measured. `nvmlShutdown` is among them because
/// nvml-wrapper panics on dropping a library that lacks it.
const REQUIRED: [&CStr; 4] = [
    c"nvmlInit_v2",
    c"nvmlShutdown",
    c"nvmlDeviceGetCount_v2",
    c"nvmlDeviceGetHandleByIndex_v2",
];

/// Why there is no GPU to measure.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// The loader does not know the driver's library.
    #[error("{DEFAULT_LIBRARY} not found: no NVIDIA driver is installed")]
    NoDriver,
    /// The library that was asked for is not there.
    #[error("{} not found", library.display())]
    NoLibrary {
        /// What was asked for.
        library: OsString,
    },
    /// The file is there and cannot be loaded.
    #[error("{} cannot be loaded: {reason}", library.display())]
    Broken {
        /// What was asked for.
        library: OsString,
        /// What the loader said.
        reason: String,
    },
    /// It is some other library, or far too old.
    #[error("{} is no usable NVML: {symbol} is missing", library.display())]
    Incomplete {
        /// What was asked for.
        library: OsString,
        /// The first function that is missing.
        symbol: &'static str,
    },
    /// The library is there, the kernel module is not.
    #[error("the NVIDIA driver is not loaded")]
    DriverNotLoaded,
    /// Library and kernel module are of different versions.
    #[error("NVIDIA library and kernel module are of different versions")]
    VersionMismatch,
    /// The device files cannot be opened.
    #[error("no permission to use the NVIDIA driver")]
    NoPermission,
    /// The driver is there and finds no GPU.
    #[error("the NVIDIA driver finds no GPU")]
    NoDevice,
    /// The driver did not answer.
    #[error("the NVIDIA driver did not answer within {0} s")]
    Hung(u64),
    /// Anything else.
    #[error("NVML does not start: {0}")]
    Failed(NvmlError),
}

impl Unavailable {
    /// Whether this is a machine without NVIDIA hardware rather than one with a fault.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoDriver | Self::NoDevice)
    }

    /// What to do about it; `None` where nothing is wrong.
    pub fn fix(&self) -> Option<String> {
        Some(match self {
            Self::NoDriver | Self::NoDevice => return None,
            Self::NoLibrary { .. } => {
                format!("leave --nvml-library out to use the driver's {DEFAULT_LIBRARY}")
            }
            Self::Broken { .. } => "check --nvml-library and the driver's installation".into(),
            Self::Incomplete { .. } => {
                "point --nvml-library at the driver's libnvidia-ml.so.1".into()
            }
            Self::DriverNotLoaded => "load the driver: modprobe nvidia".into(),
            Self::VersionMismatch => {
                "the driver was upgraded while loaded: reload the nvidia modules or reboot".into()
            }
            Self::NoPermission => {
                "run as root, or give read and write access to /dev/nvidia* (in a container: \
                 the NVIDIA runtime with the utility capability)"
                    .into()
            }
            Self::Hung(_) => "see dmesg for NVRM messages; a GPU may need a reset".into(),
            Self::Failed(_) => "run nvidia-smi and see dmesg for NVRM messages".into(),
        })
    }
}

impl From<NvmlError> for Unavailable {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::DriverNotLoaded => Self::DriverNotLoaded,
            NvmlError::LibRmVersionMismatch => Self::VersionMismatch,
            NvmlError::NoPermission | NvmlError::OperatingSystem => Self::NoPermission,
            NvmlError::NotFound => Self::NoDevice,
            other => Self::Failed(other),
        }
    }
}

/// Loads and initialises NVML from `library`, a path or a name that the loader knows.
pub(super) fn open(library: &OsStr) -> Result<Nvml, Unavailable> {
    check(library)?;
    Ok(Nvml::builder().lib_path(library).init()?)
}

/// Whether the library can be loaded and has what is needed.
fn check(library: &OsStr) -> Result<(), Unavailable> {
    let broken = |reason: String| Unavailable::Broken {
        library: library.into(),
        reason,
    };
    let name = CString::new(library.as_bytes()).map_err(|error| broken(error.to_string()))?;
    // SAFETY: `name` is a valid C string. Loading runs the library's initialisers, which is what
    // the user asked for by naming it; nvml-wrapper does the same right after.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    if handle.is_null() {
        let reason = loader_error();
        // The loader's message opens with the file it could not find: ours, or one that ours
        // needs.
        let missing = reason.starts_with(&*library.to_string_lossy())
            && reason.contains("No such file or directory");
        return Err(match missing {
            true if library == DEFAULT_LIBRARY => Unavailable::NoDriver,
            true => Unavailable::NoLibrary {
                library: library.into(),
            },
            false => broken(reason),
        });
    }
    let missing = REQUIRED.into_iter().find(|symbol| {
        // SAFETY: `handle` is a library that dlopen gave and that is still open.
        unsafe { libc::dlsym(handle, symbol.as_ptr()) }.is_null()
    });
    // SAFETY: `handle` was opened above and is not used again.
    unsafe { libc::dlclose(handle) };
    match missing {
        Some(symbol) => Err(Unavailable::Incomplete {
            library: library.into(),
            symbol: symbol.to_str().unwrap_or_default(),
        }),
        None => Ok(()),
    }
}

fn loader_error() -> String {
    // SAFETY: dlerror returns null or a C string that is valid until the next call of the loader
    // on this thread; it is copied at once.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "unknown error of the loader".into();
    }
    // SAFETY: not null, so a valid C string, see above.
    unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_was_asked_for_and_is_not_there_is_a_fault_and_a_missing_driver_is_none() {
        let library = OsStr::new("/nonexistent/libnvidia-ml.so.1");
        let error = open(library).expect_err("no such library exists");
        assert!(matches!(error, Unavailable::NoLibrary { .. }), "{error}");
        assert!(!error.is_absent() && error.fix().is_some());
        assert!(Unavailable::NoDriver.is_absent());
        assert_eq!(Unavailable::NoDriver.fix(), None);
    }

    #[test]
    fn some_other_library_is_named_as_such_instead_of_panicking_later() {
        let error = open(OsStr::new("libc.so.6")).expect_err("libc is not NVML");
        assert!(
            matches!(
                error,
                Unavailable::Incomplete {
                    symbol: "nvmlInit_v2",
                    ..
                }
            ),
            "{error}"
        );
        assert!(!error.is_absent());
    }

    #[test]
    fn a_file_that_is_no_library_is_broken_with_the_loaders_reason() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "not a library").expect("the file can be written");
        let error = open(file.path().as_os_str()).expect_err("text is no library");
        assert!(matches!(error, Unavailable::Broken { .. }), "{error}");
        assert!(error.fix().is_some());
    }
}
