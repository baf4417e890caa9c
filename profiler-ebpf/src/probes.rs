//! One module a subject; the agent's `probes` has the same names.
