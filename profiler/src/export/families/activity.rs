//! What services did beside serving.

use super::super::catalog::*;
use super::super::totals::ServiceTotals;
use super::{Families, NANOS};

pub(super) fn families(out: &mut Families, name: &str, service: &ServiceTotals) {
    if let Some(cuda) = service.cuda {
        for (kind, count) in [("kernel", cuda.kernels), ("graph", cuda.graphs)] {
            out.number(&CUDA_LAUNCHES, &[name, kind], count as f64);
        }
        out.number(&CUDA_SYNCS, &[name], cuda.syncs as f64);
        let seconds = cuda.sync_nanos as f64 / NANOS;
        out.number(&CUDA_SYNC_SECONDS, &[name], seconds);
    }
    let hardware = service.hardware;
    for (family, count) in [
        (&CPU_CYCLES, hardware.cycles),
        (&CPU_INSTRUCTIONS, hardware.instructions),
        (&CACHE_MISSES, hardware.cache_misses),
    ] {
        out.known(family, &[name], count.map(|count| count as f64));
    }
}
