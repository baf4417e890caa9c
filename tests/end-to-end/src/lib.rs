//! Root tests on the real kernel with real servers.
