//! What services did beside serving, summed up.

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;
use crate::activity::{CudaCalls, HardwareCounts};

/// What a service asked of its GPUs through CUDA.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CudaTotals {
    pub(super) kernels: u64,
    pub(super) graphs: u64,
    pub(super) syncs: u64,
    pub(super) sync_nanos: u64,
}

/// What the CPUs' counters say; `None` while nothing was counted.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HardwareTotals {
    pub(super) cycles: Option<u64>,
    pub(super) instructions: Option<u64>,
    pub(super) cache_misses: Option<u64>,
}

impl Metrics {
    /// More launches and waits of a service.
    pub fn record_cuda(&mut self, calls: &CudaCalls) {
        if let Some(service) = self.service(calls.service) {
            let totals = service.cuda.get_or_insert_default();
            totals.kernels += calls.kernels;
            totals.graphs += calls.graphs;
            totals.syncs += calls.syncs;
            totals.sync_nanos += calls.sync_nanos;
        }
    }

    /// More of what hardware counted for a service.
    pub fn record_hardware(&mut self, counts: &HardwareCounts) {
        if let Some(service) = self.service(counts.service) {
            let totals = &mut service.hardware;
            for (sum, more) in [
                (&mut totals.cycles, counts.cycles),
                (&mut totals.instructions, counts.instructions),
                (&mut totals.cache_misses, counts.cache_misses),
            ] {
                if let Some(more) = more {
                    *sum.get_or_insert_default() += more;
                }
            }
        }
    }
}
