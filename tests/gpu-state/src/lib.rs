//! Shared memory between inference-sim's engine and nvml-sim: what the simulated GPU does.
