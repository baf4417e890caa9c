//! Which processes are one service, which are two, and what each is called.

use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::cgroup::Cgroup;
use end_to_end::server::free_port;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root};

use crate::hops::follow;
use crate::script::{Script, booked, tell};

const SERVER: &str = "front = listen(); background(front)\nready(port(front))";

fn ask(port: u16, times: usize) {
    for _ in 0..times {
        assert!(http::get(port, "/v1/completions").ends_with("ok"));
    }
}

#[test]
fn a_proxy_is_part_of_its_container_and_not_of_another() {
    if !is_root("containers") {
        return;
    }
    let (Some((one, one_name)), Some((two, two_name))) =
        (Cgroup::container(1), Cgroup::container(2))
    else {
        return;
    };
    // Processes that know nothing of each other but the cgroup.
    let server = Script::start(SERVER);
    let proxy = |upstream: u16| {
        Script::start(&format!(
            "front = listen(); background(front, lambda: ask(to({upstream})))\nready(port(front))"
        ))
    };
    let (inside, outside) = (proxy(server.port()), proxy(server.port()));
    one.take(server.pid());
    one.take(inside.pid());
    two.take(outside.pid());
    let agent = Agent::start(&["--name", &one_name, "--name", &two_name]);
    ask(inside.port(), 20);
    ask(outside.port(), 30);
    ask(server.port(), 5);
    let counts = booked(agent);
    drop((server, inside, outside));
    assert_eq!(counts[&one_name], 20 + 30 + 5, "{counts:?}");
    assert_eq!(counts[&two_name], 30, "{counts:?}");
}

#[test]
fn a_unit_is_named_by_itself_and_a_program_by_its_file_but_never_followed_by_its_title() {
    if !is_root("units") {
        return;
    }
    let unit = format!("served-{}", std::process::id());
    let Some(cgroup) = Cgroup::make(&format!("system.slice/{unit}.service")) else {
        return;
    };
    let script = Script::start(SERVER);
    cgroup.take(script.pid());
    // Calls itself what the unit is called, and is none of it.
    let impostor = Script::start(&format!(
        "open('/proc/self/comm', 'w').write('{unit}')\n\
         front = listen(); background(front)\nready(port(front))"
    ));
    let agent = Agent::start(&["--port", &script.port().to_string()]);
    ask(script.port(), 3);
    ask(impostor.port(), 4);
    let counts = booked(agent);
    drop((script, impostor));
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(unit, 3)]);
}

#[test]
fn one_port_in_two_network_namespaces_is_two_services() {
    if !is_root("network namespaces") {
        return;
    }
    let port = free_port();
    // Each counts what it was asked inside its own namespace.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    let script = |times: u32| {
        Script::start_behind(
            &["unshare", "--net"],
            &format!(
                r#"
import subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
inner = listen()
child(lambda: serve(inner))
front = listen({port}); background(front, lambda: ask(to(port_of_inner)))
port_of_inner = port(inner)
inner.close()
asker = os.fork()
if asker == 0:
    # Of the tree, but it serves nothing: its requests are the service's own.
    when_told("{path}", "{times}", lambda: [ask(to({port})) for _ in range({times})])
    os._exit(0)
ready({port})
"#
            ),
        )
    };
    let (one, two) = (script(11), script(23));
    let agent = follow(&[&one, &two]);
    tell(folder.path(), &["11", "23"]);
    let counts = booked(agent);
    assert_eq!((counts["python3"], counts["python3-2"]), (11, 23));
}

#[test]
fn a_port_is_found_in_whatever_family_it_listens() {
    if !is_root("families") {
        return;
    }
    for (host, clients) in [
        ("0.0.0.0", &["127.0.0.1"][..]),
        ("::1", &["::1"]),
        ("::", &["127.0.0.1", "::1"]),
    ] {
        let script = Script::start(&format!(
            "front = listen(host='{host}'); background(front)\nready(port(front))"
        ));
        let agent = Agent::start(&["--port", &script.port().to_string()]);
        for client in clients {
            let asking = Script::start(&format!(
                "for _ in range(10):\n    s = socket.create_connection(('{client}', {}))\n    \
                 ask(lambda: s)\nready()",
                script.port()
            ));
            drop(asking);
        }
        let counts = booked(agent);
        assert_eq!(counts.values().sum::<usize>(), 10 * clients.len(), "{host}");
    }
}

#[test]
fn a_tensor_parallel_engine_on_two_gpus_is_one_service_with_both_their_energy() {
    if !is_root("two GPUs") {
        return;
    }
    let stack = Stack::start_on(&[0, 1], "[[device]]\n[[device]]");
    let mut agent = Agent::start_with(stack.perjoule(), &[]);
    sleep(Duration::from_secs(2));
    assert!(stack.load(4.0, 4).wait().expect("a load").success());
    sleep(Duration::from_secs(2));
    agent.end_with(libc::SIGTERM);
    let services = agent.rows("SELECT * FROM services");
    assert_eq!(services.len(), 1, "{}", agent.log());
    let mut requests = agent.requests();
    requests.retain(|request| request["route"] != "health");
    assert_eq!(requests.len(), stack.served());
    // What the service's requests got of each GPU is what the requests have.
    let by_meter = agent.rows(
        "SELECT sum(interval_services.requests_uj) AS uj
        FROM interval_services JOIN intervals USING (interval) GROUP BY meter",
    );
    let gpus: Vec<u64> = by_meter
        .iter()
        .filter_map(|meter| meter["uj"].as_u64())
        .filter(|energy| *energy > 10_000_000)
        .collect();
    assert_eq!(gpus.len(), 2, "{gpus:?}");
    let given: u64 = requests
        .iter()
        .filter_map(|request| request["gpu_uj"].as_u64())
        .sum();
    println!(
        "{} requests, {gpus:?} µJ of the GPUs, {given} µJ given",
        requests.len()
    );
    let sum = gpus.iter().sum::<u64>() as f64;
    assert!((given as f64 / sum - 1.0).abs() < 0.05, "{given} of {sum}");
    let ratio = gpus[0] as f64 / gpus[1] as f64;
    assert!((0.8..1.25).contains(&ratio), "{gpus:?}");
}
