//! Which requests are whose: hops inside a service, services beside each other, restarts. Root.

#[path = "services/apart.rs"]
mod apart;
#[path = "services/hops.rs"]
mod hops;
#[path = "services/restart.rs"]
mod restart;
#[path = "services/script.rs"]
mod script;
