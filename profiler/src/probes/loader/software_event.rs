//! Programs at the kernel's own software events.

use std::any::Any;

use aya::programs::PerfEvent;
use aya::programs::ProgramError;
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};

use super::{Loader, ProbeError};
use crate::probes::health::Tier;

impl Loader {
    /// Loads `program`, if it is not yet loaded, and runs it at every `event` on every CPU that is
    /// online. What goes wrong concerns this program only, and is kept for [`Self::health`].
    pub(crate) fn attach_software_event(
        &mut self,
        program: &'static str,
        event: SoftwareEvent,
    ) -> Result<(), ProbeError> {
        let outcome = self.try_software_event(program, event);
        if let Err(error) = &outcome {
            log::warn!("{error}");
        }
        self.note(program, Tier::SoftwareEvent, &outcome);
        outcome
    }

    fn try_software_event(
        &mut self,
        program: &'static str,
        event: SoftwareEvent,
    ) -> Result<(), ProbeError> {
        let cpus = aya::util::online_cpus().map_err(|(_, source)| ProbeError::Machine {
            what: "the list of CPUs",
            source,
        })?;
        let hook: &mut PerfEvent = self
            .object
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or(ProbeError::NoProgram { program })?;
        if self.loaded.insert(program) {
            hook.load()
                .map_err(|error| ProbeError::from_load(program, "", error))?;
        }
        let refused =
            |error: ProgramError| ProbeError::from_attach(program, "software event", error);
        for cpu in cpus {
            let link: PerfEventLinkId = hook
                .attach(
                    PerfEventConfig::Software(event),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Period(1),
                    false,
                )
                .map_err(refused)?;
            let link = hook.take_link(link).map_err(refused)?;
            self.links.push((program, Box::new(link) as Box<dyn Any>));
        }
        Ok(())
    }
}
