//! GPM, the GPU's performance monitors (Hopper and later): what its parts did between two samples.
//!
//! Raw calls instead of nvml-wrapper's: its sample panics on drop where the driver lacks
//! `nvmlGpmSampleFree`, and it allocates one for each look.
//!
//! Source: NVIDIA's `nvml.h`, `nvmlGpmMetricsGet_t`. Two samples must lie 100 ms apart.

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    NVML_GPM_METRICS_GET_VERSION, nvmlGpmMetricId_t_NVML_GPM_METRIC_ANY_TENSOR_UTIL as TENSOR,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_DRAM_BW_UTIL as MEMORY,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_GRAPHICS_UTIL as GRAPHICS,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_OCCUPANCY as OCCUPANCY,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL as SM, nvmlGpmMetricsGet_t, nvmlGpmSample_t,
};

use crate::telemetry::Activity;
use crate::units::Ratio;

const METRICS: [u32; 5] = [GRAPHICS, SM, OCCUPANCY, TENSOR, MEMORY];

/// A place for a sample, taken at some moment.
#[derive(Debug)]
pub(super) struct Sample<'n> {
    handle: nvmlGpmSample_t,
    nvml: &'n Nvml,
}

/// Whether the board has such monitors.
///
/// # Errors
/// That it has none, or what the driver says.
pub(super) fn is_supported(device: &Device<'_>) -> Result<(), NvmlError> {
    match device.gpm_support()? {
        true => Ok(()),
        false => Err(NvmlError::NotSupported),
    }
}

impl<'n> Sample<'n> {
    fn new(nvml: &'n Nvml) -> Result<Self, NvmlError> {
        // What cannot be freed is not made.
        nvml_sym(nvml.lib().nvmlGpmSampleFree.as_ref())?;
        let symbol = nvml_sym(nvml.lib().nvmlGpmSampleAlloc.as_ref())?;
        let mut handle: nvmlGpmSample_t = std::ptr::null_mut();
        // SAFETY: the library is open as long as `nvml` lives, and `handle` is ours.
        nvml_try(unsafe { symbol(&raw mut handle) })?;
        Ok(Self { handle, nvml })
    }

    /// Samples a board as a whole, or one instance of it.
    ///
    /// # Errors
    /// What the driver says: `NotFound` for an instance that is no more.
    pub(super) fn take(device: &Device<'n>, instance: Option<u32>) -> Result<Self, NvmlError> {
        let sample = Self::new(device.nvml())?;
        let lib = device.nvml().lib();
        // SAFETY: the handles of board and sample are of this open session, and nobody else uses
        // the sample.
        nvml_try(unsafe {
            match instance {
                Some(id) => {
                    nvml_sym(lib.nvmlGpmMigSampleGet.as_ref())?(device.handle(), id, sample.handle)
                }
                None => nvml_sym(lib.nvmlGpmSampleGet.as_ref())?(device.handle(), sample.handle),
            }
        })?;
        Ok(sample)
    }

    /// What was done from an earlier sample of the same to this one.
    ///
    /// # Errors
    /// What the driver says of the call as a whole; a part that it does not tell is `None`.
    pub(super) fn since(&self, earlier: &Self) -> Result<Activity, NvmlError> {
        let symbol = nvml_sym(self.nvml.lib().nvmlGpmMetricsGet.as_ref())?;
        // SAFETY: a plain C struct of numbers and pointers, for which all zeros are valid.
        let mut request: nvmlGpmMetricsGet_t = unsafe { std::mem::zeroed() };
        request.version = NVML_GPM_METRICS_GET_VERSION;
        request.numMetrics = METRICS.len() as u32;
        request.sample1 = earlier.handle;
        request.sample2 = self.handle;
        for (metric, id) in request.metrics.iter_mut().zip(METRICS) {
            metric.metricId = id;
        }
        // SAFETY: both samples are alive and of this session; the request is ours, and the driver
        // fills as many metrics as it says.
        nvml_try(unsafe { symbol(&raw mut request) })?;
        let of = |wanted: u32| {
            let mut told = request.metrics.iter().take(METRICS.len());
            let metric = told.find(|metric| metric.metricId == wanted)?;
            let told = nvml_try(metric.nvmlReturn).is_ok() && metric.value.is_finite();
            told.then(|| Ratio(metric.value.clamp(0.0, 100.0) / 100.0))
        };
        Ok(Activity {
            graphics: of(GRAPHICS),
            sm: of(SM),
            occupancy: of(OCCUPANCY),
            tensor: of(TENSOR),
            memory: of(MEMORY),
        })
    }
}

impl Drop for Sample<'_> {
    fn drop(&mut self) {
        if let Ok(symbol) = self.nvml.lib().nvmlGpmSampleFree.as_ref() {
            // SAFETY: the handle was allocated by this library, which is still open, and is used no
            // more. A sample that the driver does not free costs its memory.
            let _ = unsafe { symbol(self.handle) };
        }
    }
}
