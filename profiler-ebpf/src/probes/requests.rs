//! Requests: follows each socket of a service through what it receives and sends.
//!
//! Tiers in front see bytes move: [`tp_btf`], else [`fexit`], else [`kprobe`], else [`raw_tp`];
//! what a call's return means is the same for all ([`calls`]). [`tls`] stands at libraries'
//! functions, [`io_uring`] at rings' completions. Where the bytes lie says [`source`], [`payload`]
//! reads them. The exchange behind ([`exchange`], [`response`], [`http2`]) knows no hook. The state is the socket's, never a
//! thread's or a descriptor's.

mod calls;
mod clients;
pub(super) mod descriptors;
mod exchange;
mod fexit;
mod http2;
mod io_uring;
mod kprobe;
mod payload;
mod raw_tp;
mod response;
mod slots;
mod socket;
mod source;
mod state;
mod tail;
mod tls;
mod tp_btf;
mod trace;
