//! On-CPU time by owner, on the real kernel. Root.

use std::time::Instant;

use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;

#[test]
fn loads() {
    let mut options = Options::default();
    Owners::configure(&mut options);
    options.map_entries("CPU_ACCOUNTS", 2);
    let t = Instant::now();
    let mut loader = Loader::new(&options).unwrap_or_else(|e| panic!("{e}: {}", e.fix()));
    eprintln!("load {:?}", t.elapsed());
    let owners = Owners::attach(&mut loader).unwrap();
    let t = Instant::now();
    let r = loader.attach_btf_tracepoint("sched_switch", "sched_switch");
    eprintln!("attach {:?} {r:?}", t.elapsed());
    std::thread::sleep(std::time::Duration::from_millis(500));
    eprintln!("{:#?} {:?}", loader.health(), loader.map_bytes());
    eprintln!(
        "{:?} {:?}",
        loader.verified_instructions("sched_switch"),
        loader.verified_instructions("sched_process_fork")
    );
    let _ = owners;
}
