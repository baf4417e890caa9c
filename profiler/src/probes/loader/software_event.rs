//! Programs at the kernel's own software events: a timer, its account of page faults.

use aya::programs::PerfEvent;
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};

use super::{Loader, ProbeError};
use crate::probes::health::Tier;

impl Loader {
    /// Loads `program`, if it is not yet loaded, and runs it at `event` on every CPU that is online,
    /// as often as `policy` says. What goes wrong concerns this program only, and is kept for
    /// [`Self::health`].
    pub(crate) fn attach_software_event(
        &mut self,
        program: &'static str,
        event: SoftwareEvent,
        policy: SamplePolicy,
    ) -> Result<(), ProbeError> {
        let outcome = self.try_software_event(program, event, policy);
        self.note(program, Tier::PerfEvent, &outcome);
        if let Err(error) = &outcome {
            log::warn!("{error}");
            self.links.retain(|(of, _)| *of != program);
        }
        outcome
    }

    fn try_software_event(
        &mut self,
        program: &'static str,
        event: SoftwareEvent,
        policy: SamplePolicy,
    ) -> Result<(), ProbeError> {
        let cpus = aya::util::online_cpus().map_err(|(_, source)| ProbeError::Machine {
            what: "the CPUs that are online",
            source,
        })?;
        let hook: &mut PerfEvent = self
            .object
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or(ProbeError::NoProgram { program })?;
        if self.loaded.insert(program) {
            hook.load().map_err(|error| {
                self.loaded.remove(program);
                ProbeError::from_load(program, "", error)
            })?;
        }
        for cpu in cpus {
            let scope = PerfEventScope::AllProcessesOneCpu { cpu };
            let link = hook
                .attach(PerfEventConfig::Software(event), scope, policy, false)
                .and_then(|id| hook.take_link(id))
                .map_err(|error| ProbeError::from_attach(program, "software event", error))?;
            self.links.push((program, Box::new(link)));
        }
        Ok(())
    }
}
