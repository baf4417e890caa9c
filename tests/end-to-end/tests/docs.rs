//! The commands of README.md and docs/ that need root, or a package that `cargo xtask test` installs: block by
//! block, as they stand, on a machine as the pages have it: services that hold a GPU, the one named `vllm` on port
//! 8000; an agent on port 27182; a `load-test` in the folder. `profiler`'s `docs_commands` has the others.

#[path = "../../../profiler/tests/docs_commands/pages.rs"]
mod pages;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::network::in_another_network;
use end_to_end::stack::Stack;
use end_to_end::{binary, is_root, scaled};

use pages::{Block, Line, blocks, pages};

const SECOND: Duration = Duration::from_secs(1);
/// What goes on until Ctrl-C gets one after this.
const LONG: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(120);

/// What the pages take to be there.
struct Machine {
    stack: Stack,
    folder: tempfile::TempDir,
    running: Vec<Child>,
}

#[test]
fn every_command_that_needs_root_does_what_its_page_says() {
    if !is_root("commands of the documentation") {
        return;
    }
    let (ran, wrong) = in_another_network(|| {
        let machine = Machine::start();
        let mut ran = 0;
        let mut wrong = Vec::new();
        for block in pages().iter().flat_map(blocks) {
            if ["root", "package"]
                .iter()
                .any(|need| block.needs == [*need])
            {
                ran += block.lines.len();
                wrong.extend(machine.run(&block).err());
            }
        }
        (ran, wrong)
    });
    println!("{ran} commands run");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(ran >= 20, "{ran}: the pages are not read");
}

impl Machine {
    fn start() -> Self {
        let stack = Stack::start_serving("", &["--share"]);
        let mut machine = Self {
            stack,
            folder: tempfile::tempdir().expect("a folder"),
            running: Vec::new(),
        };
        // For whom rights are given up: see docs/security.md.
        readable(machine.folder.path());
        readable(machine.stack.library().parent().expect("a folder"));
        let programs = machine.folder.path().join("bin");
        fs::create_dir(&programs).expect("a folder");
        for (name, program) in [("perjoule", "perjoule"), ("vllm", "inference-sim")] {
            fs::copy(binary(program), programs.join(name)).expect("a program");
        }
        script(&programs.join("sudo"), "exec \"$@\"");
        // Of a unit named perjoule.
        script(
            &programs.join("systemctl"),
            "[ \"$*\" = 'kill --signal=SIGUSR2 perjoule' ] && kill -s USR2 \"$(cat \"$AGENT_PID\")\"",
        );
        let serve = ["serve", "--listen", "127.0.0.1:8000", "--gpu-state"];
        let server = machine
            .command(&programs.join("vllm"))
            .args(serve)
            .arg(machine.stack.gpu_state())
            .args(["--share", "--truth"])
            .arg(machine.folder.path().join("truth.jsonl"))
            .spawn();
        machine.running.push(server.expect("it can be started"));
        wait("a server on port 8000", || {
            std::net::TcpStream::connect("127.0.0.1:8000").is_ok()
        });
        let load = ["load", "--url", "http://127.0.0.1:8000", "--rate", "1"];
        let load = machine
            .command(&binary("inference-sim"))
            .args(load)
            .args(["--seconds", "900"])
            .spawn();
        machine.running.push(load.expect("it can be started"));
        machine
    }

    fn command(&self, program: &Path) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = self.stack.perjoule();
        let variables: Vec<_> = command
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.unwrap_or_default().to_owned()))
            .collect();
        command = Command::new(program);
        command
            .envs(variables)
            .env(
                "PATH",
                format!("{}:{path}", self.folder.path().join("bin").display()),
            )
            .env("AGENT_PID", self.folder.path().join("agent.pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Its lines, one after the other, in a folder of their own.
    fn run(&self, block: &Block) -> Result<(), String> {
        let folder = tempfile::tempdir_in(self.folder.path()).expect("a folder");
        let folder = folder.path();
        readable(folder);
        script(
            &folder.join("load-test"),
            &format!(
                "exec '{}' load --url http://127.0.0.1:8000 --rate 3 --seconds 2 > load.json",
                binary("inference-sim").display()
            ),
        );
        let built = folder.join("target/release");
        fs::create_dir_all(&built).expect("a folder");
        std::os::unix::fs::symlink(binary("perjoule"), built.join("perjoule")).expect("a link");
        let hindsight = block
            .lines
            .iter()
            .any(|line| line.text.contains("hindsight-"));
        let mut agent = hindsight.then(|| self.keep_the_last_minutes(folder));
        let done = block
            .lines
            .iter()
            .try_for_each(|line| self.line(line, folder));
        if let Some(agent) = &mut agent {
            interrupt(agent);
            let ended = agent.wait().expect("it ends");
            assert!(ended.success(), "the agent: {ended}");
        }
        done
    }

    /// As the service does where `hindsight` is set.
    fn keep_the_last_minutes(&self, folder: &Path) -> Child {
        let agent = self
            .command(Path::new("perjoule"))
            .args(["run", "--hindsight", "10m", "--hindsight-file"])
            .arg(folder.join("hindsight.pj"))
            .process_group(0)
            .spawn()
            .expect("it can be started");
        fs::write(self.folder.path().join("agent.pid"), agent.id().to_string()).expect("a file");
        wait("an agent on port 27182", || {
            std::net::TcpStream::connect("127.0.0.1:27182").is_ok()
        });
        sleep(LONG);
        agent
    }

    fn line(&self, line: &Line, folder: &Path) -> Result<(), String> {
        let mut text = line.text.clone();
        for (before, word) in line.words.iter().zip(line.words.iter().skip(1)) {
            if word.starts_with("/var/lib/perjoule/hindsight-") {
                text = text.replace(word, &saved(folder).display().to_string());
            } else if word.ends_with(".pj") && before != "-o" && !folder.join(word).exists() {
                let kept = "../../profiler/tests/upgrade/0.1.0.pj";
                let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(kept);
                fs::copy(kept, folder.join(word)).expect("a recording");
            }
        }
        let has = |word: &str| line.words.iter().any(|one| one == word);
        let goes_on = ["record", "run", "stat"].iter().any(|verb| has(verb)) && !has("--");
        if goes_on {
            // Else the shell tells of the Ctrl-C that it had, too.
            text.insert_str(0, "exec ");
        }
        let log = folder.join("stderr");
        let mut child = self
            .command(Path::new("sh"))
            .args(["-c", &text])
            .current_dir(folder)
            .stdout(File::create(folder.join("stdout")).expect("a file"))
            .stderr(File::create(&log).expect("a file"))
            .process_group(0)
            .spawn()
            .expect("it can be started");
        let ended = ended(&mut child, goes_on);
        let error = fs::read_to_string(log).unwrap_or_default();
        // `doctor` says with 1 that something is missing here, a CPU's meter for one.
        let fine = ended.success() || has("doctor") && ended.code() == Some(1);
        if !fine {
            return Err(format!("{}: `{text}`: {ended}: {error}", line.place));
        }
        let into = line.words.iter().skip_while(|word| *word != ">").nth(1);
        let into = folder.join(into.map_or("stdout", String::as_str));
        // Signals, and what measures until it is told to stop, say nothing there.
        let silent = has("record") || has("run") || has("systemctl");
        if !silent && fs::metadata(&into).map_or(0, |file| file.len()) == 0 {
            return Err(format!("{}: `{text}` prints nothing: {error}", line.place));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in &mut self.running {
            // One that has ended is ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a command ends, with a Ctrl-C after a while if it goes on.
fn ended(child: &mut Child, goes_on: bool) -> ExitStatus {
    let start = Instant::now();
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if goes_on && !told && start.elapsed() > LONG {
            interrupt(child);
            told = true;
        }
        if start.elapsed() > scaled(PATIENCE) {
            child.kill().expect("a child");
        }
        sleep(Duration::from_millis(50));
    }
}

/// Ctrl-C: to the whole group.
fn interrupt(child: &Child) {
    // SAFETY: a plain system call; the group is the child's own.
    unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGINT) };
}

/// The window that was saved last, when it is there.
fn saved(folder: &Path) -> PathBuf {
    let newest = || {
        let files = fs::read_dir(folder).expect("a folder").flatten();
        let paths = files.map(|file| file.path());
        let stem = |path: &PathBuf| {
            path.file_stem()
                .is_some_and(|stem| stem.to_string_lossy().ends_with('Z'))
        };
        paths.filter(stem).max()
    };
    wait("a saved window", || newest().is_some());
    newest().expect("it is there")
}

fn wait(what: &str, there: impl Fn() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < scaled(20 * SECOND), "{what}");
        sleep(Duration::from_millis(50));
    }
}

fn readable(folder: &Path) {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("its owner");
}

fn script(file: &Path, command: &str) {
    fs::write(file, format!("#!/bin/sh\n{command}\n")).expect("a file");
    readable(file);
}
