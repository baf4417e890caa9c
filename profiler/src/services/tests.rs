//! Services made of real processes and real sockets.
