//! Requests on the real kernel with real servers. Root.

use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;
use profiler::probes::requests::RequestProbe;

#[test]
fn loads() {
    let mut options = Options::default();
    Owners::configure(&mut options);
    RequestProbe::configure(&mut options);
    let mut loader = Loader::new(&options).unwrap_or_else(|e| panic!("{e}: {}", e.fix()));
    let _owners = Owners::attach(&mut loader).unwrap();
    let r = RequestProbe::attach(&mut loader);
    if let Err(e) = &r { eprintln!("{e}"); }
    eprintln!("{:#?} {:?}", loader.health(), loader.map_bytes());
    for p in ["sock_recv_length", "sock_send_length", "tcp_destroy_sock"] {
        eprintln!("{p} {:?}", loader.verified_instructions(p));
    }
    r.unwrap();
}
