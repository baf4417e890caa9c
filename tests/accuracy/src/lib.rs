//! The ledger's figures beside known truth: simulated engines drive the real ledger, offline, with
//! what an agent would see of them.
//!
//! `engine` serves a load and knows each request's energy; `observer` shows the ledger what an
//! agent sees; `methods` says what other tools would; `cases` names what is tried and what must
//! hold; `page` writes it down. `hour` is a recording of known size instead.

pub mod cases;
pub mod engine;
pub mod hour;
pub mod methods;
pub mod observer;
pub mod page;
pub mod random;
