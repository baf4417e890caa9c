//! Starts a server from its package, and ends it with all below it.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::server::free_port;

/// A running server in a folder of its own.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

/// Where a server is to listen and write.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    /// Nobody listens there yet.
    pub(crate) port: u16,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Workers that drop their rights reach it too.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), mode).expect("a mode");
        Self {
            folder,
            port: free_port(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `command` there, and waits until it listens.
    pub(crate) fn start(self, command: &mut Command) -> Server {
        let out = File::create(self.path().join("out")).expect("a file");
        let child = command
            .current_dir(self.path())
            .env("SERVER_LOG", log_of(&self))
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a file"))
            .stderr(out)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let Self { folder, port } = self;
        let mut server = Server {
            child,
            port,
            folder,
        };
        server.wait_for(port);
        server
    }

    /// A file of `servers/`, with the words in braces replaced.
    pub(crate) fn template(&self, name: &str, words: &[(&str, &str)]) -> PathBuf {
        let mut text = fs::read_to_string(source(name)).expect("a template");
        for (word, value) in words {
            text = text.replace(&format!("{{{word}}}"), value);
        }
        let path = self.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }
}

fn log_of(place: &Place) -> PathBuf {
    place.path().join("log.jsonl")
}

impl Server {
    /// The process that was started.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the server wrote to its file of this name.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Waits until somebody listens on `port`.
    pub(crate) fn wait_for(&mut self, port: u16) {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = self.child.try_wait().ok().flatten();
            assert!(
                ended.is_none() && start.elapsed() < Duration::from_secs(20),
                "not up ({ended:?}): {}",
                self.read("out")
            );
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = -(self.child.id() as libc::pid_t);
        // The group is the child's own: it was started in it, and is not yet waited for.
        // SAFETY: kill has no memory effects.
        unsafe { libc::kill(group, libc::SIGTERM) };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        // SAFETY: as above; a group without processes is an error that does not matter.
        unsafe { libc::kill(group, libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// A file of `servers/`.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("servers")
        .join(name)
}

/// A program of a Debian package; `None`, said, where it is not installed.
pub(crate) fn installed(program: &str, package: &str) -> Option<Command> {
    let found = ["/usr/sbin", "/usr/bin"]
        .map(|folder| Path::new(folder).join(program))
        .into_iter()
        .find(|path| path.is_file());
    if found.is_none() {
        end_to_end::skipped(&format!("{program} is not installed (package {package})"));
    }
    found.map(Command::new)
}
