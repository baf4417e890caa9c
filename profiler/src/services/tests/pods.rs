//! Containers of pods, under the names that the kubelet's log directories give them.

use std::os::unix::fs::symlink;

use super::*;

/// A host whose kubelet has started these containers.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("var/log/containers")).expect("a folder");
        Self(root)
    }

    fn services(&self) -> Services {
        on_gpus_of(self.0.path())
    }

    fn listening_on(&self, port: u16) -> Services {
        let selection = Selection {
            targets: vec![Target::Port(port)],
            on_gpus: false,
        };
        Services::new(selection, Path::new("/proc"), self.0.path())
    }

    /// A container of a pod, with this process in it; 64 digits come from `number`.
    fn run(&self, pod: &str, number: u8, stack: &Stack) -> Option<ImitatedContainer> {
        let id = format!("{:063x}{:x}", std::process::id(), number % 16);
        let uid = format!(
            "{:032x}",
            u64::from(std::process::id()) << 8 | u64::from(number)
        );
        // A root of its own: tests beside this one take theirs away.
        let root = format!("kubepods-{uid}");
        let container = ImitatedContainer::at(&format!("{root}/burstable/pod{uid}/{id}"))?;
        container.take_in(stack);
        let link = format!("var/log/containers/{pod}_team-a_vllm-{id}.log");
        symlink("/nowhere", self.0.path().join(link)).expect("a link");
        Some(container)
    }
}

fn of<'s>(services: &'s Services, stack: &Stack) -> &'s Service {
    let id = services.service_of(stack.pid()).expect("a service");
    services.get(id).expect("a service")
}

fn pod(service: &Service) -> &str {
    service.pod.as_ref().map_or("", |names| &names.pod)
}

#[test]
fn containers_of_one_name_are_two_services_and_each_knows_its_pod() {
    let node = Node::new();
    let script = "s = listen()\nready(port(s))";
    let stacks = [Stack::start(script), Stack::start(script)];
    let pods = ["llama-7d9f8b6c5-x2vwz", "mistral-0"];
    let containers = [0, 1].map(|place| node.run(pods[place], place as u8, &stacks[place]));
    if containers.iter().any(Option::is_none) {
        return;
    }
    let mut services = node.services();
    refresh(&mut services, &[stacks[0].pid()]);
    refresh(&mut services, &[stacks[0].pid(), stacks[1].pid()]);
    let [first, second] = [0, 1].map(|place| of(&services, &stacks[place]).clone());
    stacks.into_iter().for_each(Stack::end);
    assert_eq!((first.name.as_str(), pod(&first)), ("vllm", pods[0]));
    assert_eq!((second.name.as_str(), pod(&second)), ("vllm-2", pods[1]));
    assert_ne!(first.id, second.id);
}

#[test]
fn the_service_of_a_port_is_in_the_pod_that_listens_there_at_present() {
    let node = Node::new();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a free port").port();
    let script = format!("s = listen(port={port})\nready(port(s))");
    let mut services = node.listening_on(port);
    for (number, name) in [(8, "llama-0"), (9, "mistral-0")] {
        let stack = Stack::start(&script);
        let Some(_container) = node.run(name, number, &stack) else {
            return;
        };
        refresh(&mut services, &[]);
        assert_eq!(pod(only(&services)), name);
        stack.end();
        refresh(&mut services, &[]);
    }
}

#[test]
fn a_new_pod_of_the_same_workload_continues_the_service_and_another_workloads_does_not() {
    let node = Node::new();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let script = format!(
        "s = listen(port={})\nready(port(s))",
        free.expect("a free port").port()
    );
    let mut services = node.services();
    let mut seen = Vec::new();
    for (number, pod) in [
        "llama-7d9f8b6c5-x2vwz",
        "llama-55555bcdf-kk2pw",
        "mistral-0",
    ]
    .into_iter()
    .enumerate()
    {
        let stack = Stack::start(&script);
        let Some(_container) = node.run(pod, 4 + number as u8, &stack) else {
            return;
        };
        refresh(&mut services, &[stack.pid()]);
        let service = of(&services, &stack);
        seen.push((
            service.name.clone(),
            service.pod.clone().expect("its names").pod,
        ));
        stack.end();
        refresh(&mut services, &[]);
    }
    let expected = [
        ("vllm", "llama-7d9f8b6c5-x2vwz"),
        ("vllm", "llama-55555bcdf-kk2pw"),
        ("vllm-2", "mistral-0"),
    ];
    let expected = expected.map(|(name, pod)| (name.to_owned(), pod.to_owned()));
    assert_eq!(seen, expected);
}
