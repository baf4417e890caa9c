//! A serving stack with known true joules per request; tests only.
//!
//! Shaped as vLLM: a [`front`] speaks the OpenAI API over HTTP, an [`engine`] in another process
//! behind a Unix socket batches continuously. The engine has no model: it knows how long a step
//! takes and what it draws ([`engine::model`]), plays the steps in real time, tells nvml-sim
//! through shared memory what the GPU does, and writes what each request truly cost
//! ([`truth`]). [`load`] sends seeded requests like those of public conversation traces.

pub mod engine;
pub mod front;
pub mod load;

pub mod random;
pub mod serve;
pub mod text;
pub mod truth;
pub mod wire;
