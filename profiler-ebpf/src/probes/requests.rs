//! Requests: follows each socket of a service through what it receives and sends.
//!
//! Tiers in front ([`tp_btf`]) see bytes move and find the socket and the bytes; the exchange
//! behind them ([`exchange`]) knows no hook. The state is the socket's, never a thread's or a
//! descriptor's.

mod clients;
mod exchange;
mod payload;
mod slots;
mod socket;
mod tp_btf;
