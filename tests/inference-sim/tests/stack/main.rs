//! The program as a whole: real processes, real sockets, real time.

mod load;
mod protocol;
mod running;
