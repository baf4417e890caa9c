//! A configuration that is read again while the agent runs: what can change at once does, the rest is
//! named.

use super::Agent;
use super::budget::Budget;
use super::config::{Config, Intervals};

/// What became of a configuration.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that have new values now.
    pub applied: Vec<&'static str>,
    /// Keys that will have them after a restart.
    pub waiting: Vec<&'static str>,
}

impl Agent {
    /// Takes over what can change while it runs. The log's level is the caller's to set, by
    /// [`Self::config`].
    pub fn reload(&mut self, new: Config) -> Reloaded {
        let before = self.config.cpu_budget;
        let reloaded = take_over(&mut self.config, new);
        if self.config.cpu_budget != before {
            self.budget = self.config.cpu_budget.and_then(Budget::new);
        }
        reloaded
    }

    /// The settings in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }
}

fn take_over(config: &mut Config, new: Config) -> Reloaded {
    let mut reloaded = Reloaded::default();
    let mut apply = |key, changes: bool| {
        if changes {
            reloaded.applied.push(key);
        }
    };
    apply("cpu_budget", config.cpu_budget != new.cpu_budget);
    config.cpu_budget = new.cpu_budget;
    apply("log_level", config.log_level != new.log_level);
    config.log_level = new.log_level;
    let Intervals {
        drain,
        discover,
        publish,
    } = new.intervals;
    apply("intervals.drain_ms", config.intervals.drain != drain);
    config.intervals.drain = drain;
    apply("intervals.publish_ms", config.intervals.publish != publish);
    config.intervals.publish = publish;
    let mut wait = |key, changes: bool| {
        if changes {
            reloaded.waiting.push(key);
        }
    };
    wait(
        "intervals.discover_ms",
        config.intervals.discover != discover,
    );
    // A setting that is added must be put here, or above.
    let Config {
        listen,
        web_config_file,
        hindsight,
        nvml_library,
        model,
        services,
        host_root,
        syscalls,
        waits,
        syscall_timing,
        faults,
        events,
        tls,
        cuda,
        pmc,
        stacks,
        off_cpu,
        request_tier,
        engine_metrics,
        usage,
        trace_ids,
        idle_watts,
        node_power,
        ipmi,
        calibration,
        aliases,
        series_budget,
        cpu_budget: _,
        log_level: _,
        log_format,
        intervals: _,
    } = new;
    wait("listen", config.listen != listen);
    // What the file says is followed without this.
    wait("web_config_file", config.web_config_file != web_config_file);
    wait("hindsight", config.hindsight != hindsight);
    wait("nvml_library", config.nvml_library != nvml_library);
    wait("model", config.model != model);
    wait("services.pids", config.services.pids != services.pids);
    wait("services.ports", config.services.ports != services.ports);
    wait("services.names", config.services.names != services.names);
    wait("host_root", config.host_root != host_root);
    let timing = config.syscall_timing != syscall_timing;
    wait("syscalls", config.syscalls != syscalls || timing);
    wait("waits", config.waits != waits);
    wait("faults", config.faults != faults);
    wait("events", config.events != events);
    wait("tls", config.tls != tls);
    wait("cuda", config.cuda != cuda);
    wait("pmc", config.pmc != pmc);
    wait("stacks", config.stacks != stacks);
    wait("off_cpu", config.off_cpu != off_cpu);
    wait("request_tier", config.request_tier != request_tier);
    wait("engine_metrics", config.engine_metrics != engine_metrics);
    wait("usage", config.usage != usage);
    wait("trace_ids", config.trace_ids != trace_ids);
    wait("idle_watts", config.idle_watts != idle_watts);
    wait("node_power", config.node_power != node_power);
    wait("ipmi", config.ipmi != ipmi);
    wait("aliases", config.aliases != aliases);
    wait("series_budget", config.series_budget != series_budget);
    wait("calibration", config.calibration != calibration);
    wait("log_format", config.log_format != log_format);
    reloaded
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::LevelFilter;

    use super::*;

    #[test]
    fn what_can_change_does_and_the_rest_is_named_and_stays() {
        let mut config = Config::default();
        let mut new = config.clone();
        new.log_level = LevelFilter::Debug;
        new.intervals.publish = Duration::from_secs(5);
        new.intervals.discover = Duration::from_secs(9);
        new.tls = true;
        new.services.ports = vec![8000];
        let reloaded = take_over(&mut config, new);
        assert_eq!(reloaded.applied, ["log_level", "intervals.publish_ms"]);
        let waiting = ["intervals.discover_ms", "services.ports", "tls"];
        assert_eq!(reloaded.waiting, waiting);
        assert_eq!(config.log_level, LevelFilter::Debug);
        assert_eq!(config.intervals.publish, Duration::from_secs(5));
        assert!(!config.tls && config.services.ports.is_empty());
        assert_eq!(
            take_over(&mut config.clone(), config),
            Reloaded::default(),
            "what is the same is not told"
        );
    }
}
