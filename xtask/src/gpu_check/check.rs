//! What all sections work with: the GPU, the load, the built `perjoule`, how long things last.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use nvml_wrapper::Device;

use super::client::{Clients, Kind, Served};
use super::load::{Load, Running};
use super::perjoule::Perjoule;
use super::trace::{Trace, boottime_s};

/// One GPU's check.
#[derive(Debug)]
pub(super) struct Check<'d> {
    pub(super) device: &'d Device<'d>,
    pub(super) uuid: String,
    /// Why there is none, else.
    pub(super) load: Result<Load, String>,
    pub(super) perjoule: Result<Perjoule, String>,
    /// Logs and recordings.
    pub(super) folder: PathBuf,
    /// What every length of time is multiplied by.
    pub(super) scale: f64,
}

impl Check<'_> {
    pub(super) fn load(&self) -> Result<&Load> {
        self.load.as_ref().map_err(|why| anyhow!("{why}"))
    }

    pub(super) fn perjoule(&self) -> Result<&Perjoule> {
        self.perjoule.as_ref().map_err(|why| anyhow!("{why}"))
    }

    pub(super) fn seconds(&self, seconds: f64) -> f64 {
        seconds * self.scale
    }

    pub(super) fn time(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(self.seconds(seconds))
    }

    /// Polls while nothing is asked of the load, for so long as told, whatever the scale.
    pub(super) fn quiet(&self, trace: &mut Trace, seconds: f64) -> Result<()> {
        let end = boottime_s() + seconds;
        trace.look_until(self.device, |at_s| Ok(at_s >= end))
    }

    /// Polls while clients ask for so long, and until the last answer has been read.
    pub(super) fn serve(
        &self,
        trace: &mut Trace,
        server: &mut Running,
        phase: &'static str,
        kinds: &[(Kind, usize)],
        seconds: f64,
    ) -> Result<Vec<Served>> {
        let clients = Clients::start(&server.address, phase, kinds);
        let end = boottime_s() + self.seconds(seconds);
        trace.look_until(self.device, |at_s| {
            if at_s >= end {
                clients.stop();
            }
            Ok(clients.have_ended())
        })?;
        let served = clients.finish();
        // What it said at its end is worth more than what its clients missed.
        server.still_up()?;
        served
    }
}
