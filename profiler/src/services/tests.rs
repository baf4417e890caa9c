//! Services made of real processes and real sockets.

mod pods;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::*;

/// Functions that the scripts of these tests are written with. `ready` is followed by whatever a
/// test wants to know.
const PRELUDE: &str = r#"
import os, socket, sys, time
kept = []
def listen(address="127.0.0.1", port=0, reuse=False):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((address, port)); s.listen(); kept.append(s); return s
def port(s): return s.getsockname()[1]
def child(body):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        body(lambda value=0: os.write(w, (str(value) + "\n").encode()))
        time.sleep(120); os._exit(0)
    return pid, int(os.fdopen(r).readline())
def ready(*values):
    print("ready", *values, flush=True)
    time.sleep(120)
"#;

/// A process tree that ends with the test.
struct Stack {
    child: Child,
    /// What the script told.
    told: Vec<u32>,
}

impl Stack {
    fn start(script: &str) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", &format!("{PRELUDE}\n{script}")])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("its output is ours");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("the script says a line");
        assert!(line.starts_with("ready"), "{line}");
        let told = line
            .split_whitespace()
            .skip(1)
            .filter_map(|word| word.parse().ok())
            .collect();
        Self { child, told }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn port(&self) -> u16 {
        self.told[0] as u16
    }

    fn end(mut self) {
        self.kill();
    }

    fn kill(&mut self) {
        // SAFETY: kill takes no pointers; the group is the one this child was made leader of.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.kill();
    }
}

/// On a machine whose root this is.
fn on_gpus_of(host_root: &Path) -> Services {
    let selection = Selection {
        targets: Vec::new(),
        on_gpus: true,
    };
    Services::new(selection, Path::new("/proc"), host_root)
}

fn on_gpus() -> Services {
    on_gpus_of(Path::new("/nonexistent"))
}

fn picked(target: Target) -> Services {
    let selection = Selection {
        targets: vec![target],
        on_gpus: false,
    };
    Services::new(selection, Path::new("/proc"), Path::new("/nonexistent"))
}

fn refresh(services: &mut Services, gpu_pids: &[u32]) -> Changes {
    services
        .refresh(&[(MeterId(7), gpu_pids.to_vec())], Timestamp::now())
        .expect("/proc can be listed")
}

fn only(services: &Services) -> &Service {
    let alive: Vec<&Service> = services
        .iter()
        .filter(|service| !service.pids.is_empty())
        .collect();
    assert_eq!(alive.len(), 1, "{alive:#?}");
    alive[0]
}

fn outer_and_inner(service: &Service) -> (Vec<u16>, Vec<u16>) {
    let ports = |inner: bool| {
        let of = service
            .listeners
            .iter()
            .filter(|listener| listener.inner == inner);
        of.map(|listener| listener.port).collect()
    };
    (ports(false), ports(true))
}

/// A server in front, and an engine below it that holds the GPU and listens on a port of its own.
const FRONT_AND_ENGINE: &str = r#"
front = listen()
def engine(tell):
    front.close()
    tell(port(listen()))
pid, inner = child(engine)
ready(port(front), pid, inner)
"#;

#[test]
fn a_gpu_process_leads_to_the_front_the_engine_and_the_outermost_listener() {
    let stack = Stack::start(FRONT_AND_ENGINE);
    let (port, engine, inner) = (stack.port(), stack.told[1], stack.told[2] as u16);
    let mut services = on_gpus();
    let changes = refresh(&mut services, &[engine]);
    let service = only(&services);
    assert_eq!(service.pids, BTreeSet::from([stack.pid(), engine]));
    assert_eq!(service.name, "python3");
    assert_eq!(service.gpus, [MeterId(7)]);
    assert_eq!(outer_and_inner(service), (vec![port], vec![inner]));
    assert_eq!(service.ports(), BTreeSet::from([port]));
    assert_eq!(changes.joined.len(), 2);
    assert_eq!(changes.listeners, [service.id]);
    let id = service.id;
    assert_eq!(services.owner(engine), Owner::Service(id));
    assert_eq!(services.owner(std::process::id()), Owner::Agent);
    assert_eq!(services.owner(1), Owner::Other);
    assert!(refresh(&mut services, &[engine]).is_empty());
}

#[test]
fn a_gpu_process_without_a_listener_is_no_service_until_it_listens() {
    let stack = Stack::start(
        "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: globals().update(s=listen()))\n\
         ready()",
    );
    let mut services = on_gpus();
    refresh(&mut services, &[stack.pid()]);
    assert_eq!(services.iter().count(), 0);
    let holders = services.holders(MeterId(7), Timestamp(5), &[(stack.pid(), None)]);
    assert_eq!((holders.services.len(), holders.others), (0, 1));
    // SAFETY: kill takes no pointers; the process is this test's child.
    unsafe { libc::kill(stack.pid() as i32, libc::SIGUSR1) };
    let deadline = Instant::now() + Duration::from_secs(5);
    while services.iter().count() == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        refresh(&mut services, &[stack.pid()]);
    }
    let on = [(stack.pid(), Some(3)), (1, Some(4))];
    let holders = services.holders(MeterId(7), Timestamp(5), &on);
    let id = only(&services).id;
    assert_eq!((holders.services, holders.others), (vec![id], 1));
    let instance = |instance, services, others| InstanceHolders {
        instance,
        services,
        others,
    };
    let instances = [instance(3, vec![id], 0), instance(4, Vec::new(), 1)];
    assert_eq!(holders.instances, instances);
}

#[test]
fn workers_on_one_port_are_one_service_found_by_that_port() {
    let stack = Stack::start(
        r#"
def worker(tell):
    probe.close(); listen(port=number, reuse=True); tell()
probe = listen(reuse=True); number = port(probe)
workers = [child(worker)[0] for _ in range(3)]
probe.close()
ready(number, *workers)
"#,
    );
    let mut services = picked(Target::Port(stack.port()));
    refresh(&mut services, &[]);
    let service = only(&services);
    let pids: BTreeSet<u32> = stack.told[1..]
        .iter()
        .copied()
        .chain([stack.pid()])
        .collect();
    assert_eq!(service.pids, pids);
    assert_eq!(outer_and_inner(service), (vec![stack.port(); 3], vec![]));
    assert!(services.missing().is_empty());
}

#[test]
fn workers_that_share_their_masters_socket_own_it_together() {
    let stack = Stack::start(
        "front = listen()\nworkers = [child(lambda tell: tell())[0] for _ in range(2)]\n\
         ready(port(front), *workers)",
    );
    let mut services = picked(Target::Port(stack.port()));
    refresh(&mut services, &[]);
    let service = only(&services);
    assert_eq!(outer_and_inner(service), (vec![stack.port()], vec![]));
    assert_eq!(service.listeners[0].owners.len(), 3);
}

#[test]
fn an_open_port_below_another_is_inner_only_if_the_service_connects_to_it_itself() {
    let script = |connects: &str| {
        format!(
            r#"
front = listen()
def worker(tell):
    front.close()
    tell(port(listen("0.0.0.0")))
pid, inner = child(worker)
{connects}
ready(port(front), inner)
"#
        )
    };
    let stack = Stack::start(&script(""));
    let mut services = picked(Target::Port(stack.port()));
    refresh(&mut services, &[]);
    let both = BTreeSet::from([stack.port(), stack.told[1] as u16]);
    assert_eq!(only(&services).ports(), both);

    let stack = Stack::start(&script(
        "peer = socket.create_connection(('127.0.0.1', inner))",
    ));
    let mut services = picked(Target::Port(stack.port()));
    refresh(&mut services, &[]);
    assert_eq!(only(&services).ports(), BTreeSet::from([stack.port()]));
}

#[test]
fn a_unix_socket_is_inner_behind_a_tcp_port_and_outer_without_one() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let script = |name: &str, tcp: &str| {
        let path = folder.path().join(name);
        format!(
            "u = socket.socket(socket.AF_UNIX); u.bind('{}'); u.listen()\n{tcp}\nready()",
            path.display()
        )
    };
    for (name, tcp, inner) in [("a", "", false), ("b", "front = listen()", true)] {
        let stack = Stack::start(&script(name, tcp));
        let mut services = picked(Target::Pid(stack.pid()));
        refresh(&mut services, &[]);
        let service = only(&services);
        let unix = service
            .listeners
            .iter()
            .find(|listener| listener.family == Family::Unix);
        assert_eq!(unix.map(|listener| listener.inner), Some(inner), "{tcp:?}");
    }
}

#[test]
fn a_service_that_is_started_again_on_its_port_is_the_same_service() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let script = format!(
        "s = listen(port={})\nready(port(s))",
        free.expect("a free port").port()
    );
    let mut services = on_gpus();
    let first = Stack::start(&script);
    refresh(&mut services, &[first.pid()]);
    let (id, pid) = (only(&services).id, first.pid());
    first.end();
    let changes = refresh(&mut services, &[]);
    assert_eq!(changes.left, [(pid, id)]);
    assert_eq!(
        services.service_of(pid),
        Some(id),
        "its last CPU time may still come in"
    );

    let second = Stack::start(&script);
    refresh(&mut services, &[second.pid()]);
    assert_eq!(only(&services).id, id);

    let other = Stack::start("s = listen()\nready(port(s))");
    refresh(&mut services, &[second.pid(), other.pid()]);
    let another = services
        .service_of(other.pid())
        .and_then(|id| services.get(id));
    assert_eq!(
        another.map(|service| service.name.as_str()),
        Some("python3-2")
    );
    assert_ne!(another.map(|service| service.id), Some(id));
}

#[test]
fn a_service_is_forgotten_a_minute_after_its_end_and_its_name_is_free() {
    let stack = Stack::start("s = listen()\nready(port(s))");
    let mut services = on_gpus();
    refresh(&mut services, &[stack.pid()]);
    let first = only(&services).clone();
    stack.end();
    let ended = Timestamp::now();
    let mut after = |seconds: u64| {
        let now = ended.plus(Duration::from_secs(seconds));
        services.refresh(&[], now).expect("/proc can be listed")
    };
    assert_eq!(after(0).forgotten, []);
    assert_eq!(after(59).forgotten, []);
    assert_eq!(after(60).forgotten, [first.id]);
    assert!(services.get(first.id).is_none());
    assert!(services.candidates.is_empty());

    let again = Stack::start("s = listen()\nready(port(s))");
    refresh(&mut services, &[again.pid()]);
    let second = only(&services);
    assert_eq!(second.name, first.name);
    assert!(second.id > first.id);
}

#[test]
fn a_service_named_by_hand_is_looked_for_after_it_was_forgotten() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a free port").port();
    let script = format!("s = listen(port={port})\nready(port(s))");
    let mut services = picked(Target::Port(port));
    let mut ids = Vec::new();
    for minutes in 0..2 {
        let stack = Stack::start(&script);
        refresh(&mut services, &[]);
        ids.push(only(&services).id);
        stack.end();
        let ended = Timestamp::now();
        for minute in [0, minutes] {
            let later = ended.plus(Duration::from_secs(60 * minute));
            services.refresh(&[], later).expect("/proc can be listed");
        }
    }
    assert_eq!(ids[0], ids[1], "it was back at once");
    assert_eq!(services.iter().count(), 0, "a minute has passed");
    let _stack = Stack::start(&script);
    refresh(&mut services, &[]);
    assert!(only(&services).id > ids[1]);
}

#[test]
fn a_server_is_found_by_the_module_it_runs() {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port");
    let mut server = Command::new("python3")
        .args([
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            &port.port().to_string(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 is installed");
    let mut services = picked(Target::Port(port.port()));
    assert_eq!(services.missing(), [&Target::Port(port.port())]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while services
        .iter()
        .next()
        .is_none_or(|service| service.ports().is_empty())
        && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(20));
        refresh(&mut services, &[]);
    }
    let (name, pids) = (only(&services).name.clone(), only(&services).pids.clone());
    let mut by_name = picked(Target::Name("http.server".into()));
    refresh(&mut by_name, &[]);
    let found = only(&by_name).clone();
    server.kill().expect("the server can be killed");
    server.wait().expect("the server has ended");
    assert_eq!(name, "http.server");
    assert_eq!(pids, BTreeSet::from([server.id()]));
    assert_eq!(found.name, "http.server");
    assert!(found.pids.contains(&server.id()));
    refresh(&mut services, &[]);
    assert!(services.iter().all(|service| service.pids.is_empty()));
}

#[test]
fn an_orphan_stays_with_its_service_and_so_do_its_later_children() {
    let stack = Stack::start(
        r#"
import signal
def orphan(tell):
    signal.signal(signal.SIGUSR1, lambda *_: child(lambda t: t()))
    tell(os.getpid())
def middle(tell):
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    tell(child(orphan)[1])
middle_pid, orphan_pid = child(middle)
ready(middle_pid, orphan_pid)
"#,
    );
    let [middle, orphan] = [stack.told[0], stack.told[1]];
    let mut services = picked(Target::Pid(stack.pid()));
    refresh(&mut services, &[]);
    assert_eq!(
        only(&services).pids,
        BTreeSet::from([stack.pid(), middle, orphan])
    );
    let signal = |pid: u32| {
        // SAFETY: kill takes no pointers; the process is below this test's child.
        unsafe { libc::kill(pid as i32, libc::SIGUSR1) };
    };
    let until = |services: &mut Services, wanted: &dyn Fn(&BTreeSet<u32>) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !wanted(&only(services).pids) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
            refresh(services, &[]);
        }
        only(services).pids.clone()
    };
    signal(middle);
    let pids = until(&mut services, &|pids| !pids.contains(&middle));
    assert_eq!(pids, BTreeSet::from([stack.pid(), orphan]));
    signal(orphan);
    let pids = until(&mut services, &|pids| pids.len() == 3);
    assert_eq!(pids.len(), 3, "the orphan's child belongs too");
}

/// A cgroup in which a container is imitated; it goes with this value, and so do those above it.
struct ImitatedContainer(PathBuf);

impl ImitatedContainer {
    /// In the first hierarchy that is writable, version 2 or 1.
    fn at(path: &str) -> Option<Self> {
        let made = [
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup/pids",
        ]
        .into_iter()
        .filter(|root| fs::exists(format!("{root}/cgroup.procs")).unwrap_or(false))
        .map(|root| Path::new(root).join(path))
        .find(|directory| fs::create_dir_all(directory).is_ok());
        if made.is_none() {
            println!("skipped: no cgroup hierarchy is writable here");
        }
        made.map(Self)
    }

    fn take_in(&self, stack: &Stack) {
        let moved = fs::write(self.0.join("cgroup.procs"), stack.pid().to_string());
        moved.expect("a process can be moved to the cgroup");
    }
}

impl Drop for ImitatedContainer {
    fn drop(&mut self) {
        // The kernel takes the processes out a moment after they have ended.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        // The root of a hierarchy is busy.
        while self.0.pop() && fs::remove_dir(&self.0).is_ok() {}
    }
}

#[test]
fn all_processes_of_a_container_are_one_service_named_by_its_id() {
    let id = format!("{:064x}", u64::from(std::process::id()) + (0xabc << 52));
    let Some(container) = ImitatedContainer::at(&format!("docker-{id}.scope")) else {
        return;
    };
    let script = "s = listen()\nready(port(s))";
    let stacks = [Stack::start(script), Stack::start(script)];
    for stack in &stacks {
        container.take_in(stack);
    }
    let mut services = on_gpus();
    refresh(&mut services, &[stacks[0].pid()]);
    let service = only(&services).clone();
    let pids = stacks.iter().map(Stack::pid).collect();
    let ports = stacks.iter().map(Stack::port).collect();
    stacks.into_iter().for_each(Stack::end);
    assert_eq!(service.pids, pids);
    assert_eq!(service.ports(), ports);
    assert_eq!(service.name, id[..12]);
}
