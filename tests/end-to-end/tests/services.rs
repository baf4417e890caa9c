//! Which requests are whose: hops inside a service, services beside each other, restarts, ends. Root.

#[path = "services/apart.rs"]
mod apart;
#[path = "services/ended.rs"]
mod ended;
#[path = "services/hops.rs"]
mod hops;
#[path = "services/idle.rs"]
mod idle;
#[path = "services/restart.rs"]
mod restart;
#[path = "services/script.rs"]
mod script;
