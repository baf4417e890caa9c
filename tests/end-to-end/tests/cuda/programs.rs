//! Programs that use a CUDA library which is none: built from C beside these tests, once.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

/// The library's file name, as the driver has it.
pub(crate) const LIBRARY: &str = "libcuda.so.1";

const PROGRAM: &str = "cuda-program";

/// What was built, and where.
#[derive(Debug)]
pub(crate) struct Built {
    folder: PathBuf,
    _own: Option<TempDir>,
}

impl Built {
    /// Builds both, or takes them from where the built binaries are (`cargo xtask vm` has no
    /// compiler in its machines); `None`, with the reason told, where that cannot be.
    pub(crate) fn get() -> Option<&'static Self> {
        static BUILT: OnceLock<Option<Built>> = OnceLock::new();
        BUILT.get_or_init(Self::build).as_ref()
    }

    fn build() -> Option<Self> {
        let ready = std::env::var_os("PERJOULE_TEST_BINARIES").map(PathBuf::from);
        if let Some(folder) = ready.filter(|folder| folder.join(LIBRARY).is_file()) {
            return Some(Self { folder, _own: None });
        }
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
        let folder = tempfile::tempdir().expect("a folder");
        let compile = |flags: &[&str], from: &str, to: &str| {
            Command::new("gcc")
                .args(["-O1", "-fno-omit-frame-pointer"])
                .args(flags)
                .arg(sources.join(from))
                .arg("-o")
                .arg(folder.path().join(to))
                .status()
        };
        match compile(&["-shared", "-fPIC"], "libcuda.c", LIBRARY) {
            Ok(status) => assert!(status.success(), "the library does not compile"),
            Err(error) => {
                end_to_end::skipped(&format!("CUDA: gcc: {error}"));
                return None;
            }
        }
        let program = compile(&[], "program.c", PROGRAM).expect("gcc, once more");
        assert!(program.success(), "the program does not compile");
        Some(Self {
            folder: folder.path().to_owned(),
            _own: Some(folder),
        })
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.folder.join(PROGRAM)
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.folder.join(LIBRARY)
    }
}

/// A running program. It does nothing that it is not told to.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it, without its library.
    pub(crate) fn start(built: &Built) -> Self {
        Self::of(Command::new(built.program()).arg(built.library()))
    }

    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be started");
        Self {
            stdin: child.stdin.take().expect("piped"),
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            child,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something that it may never answer.
    pub(crate) fn tell(&mut self, function: &str, argument: u64, times: i64) {
        writeln!(self.stdin, "{function} {argument} {times}").expect("it reads");
    }

    /// Calls a function of the library so many times, and returns how long it was inside.
    pub(crate) fn call(&mut self, function: &str, argument: u64, times: i64) -> Duration {
        self.tell(function, argument, times);
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it answers");
        let nanos = line.trim().parse().expect("nanoseconds");
        Duration::from_nanos(nanos)
    }

    pub(crate) fn load(&mut self) {
        self.call("load", 0, 1);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
