//! The program as a whole: real processes, real sockets, real time.

mod knobs;
mod load;
mod protocol;
mod running;
