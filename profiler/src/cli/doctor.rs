//! `perjoule doctor`: what works on this machine, what does not, and the exact fix.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::settings::{level, load};
use super::{EXIT_USAGE, print, usage};
use crate::agent::config::PartialConfig;
use crate::agent::examine;
use crate::export::Web;
use crate::finding::{Finding, Status};
use crate::probes::health::Tier;

const EXAMPLES: &str = "\
Examples:
  perjoule doctor          each check: pass, warn or fail, and the fix
  perjoule doctor --json   the same for programs

Exit status: 0, all is fine (hardware that is not there is fine); 1, warnings; 2, failures.";

/// How to tell it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// One line of JSON, schema 1
    #[arg(long)]
    json: bool,
    /// The NVML library [default: libnvidia-ml.so.1]
    #[arg(long, value_name = "FILE")]
    nvml_library: Option<std::path::PathBuf>,
    /// The kind of hook that sees requests: tp_btf, fexit, kprobe, raw_tp [default: the first
    /// that works]
    #[arg(long, value_name = "TIER")]
    request_tier: Option<Tier>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    checks: Vec<Finding>,
}

/// Whether `run` could serve with this web configuration.
fn web_config(file: &Path) -> Finding {
    let id = "web_config";
    match Web::open(file) {
        Ok(web) => Finding::pass(id, format!("{}: {web}", file.display())),
        Err(error) => {
            let fix = "correct it; `run` does not start with it (docs/web-config.md)";
            Finding::of(id, Status::Fail, error.to_string(), fix)
        }
    }
}

/// Exit code: 0 all fine (absent hardware is fine), 1 warnings, 2 failures.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let Options {
        json,
        nvml_library,
        request_tier,
    } = options;
    let flags = PartialConfig {
        nvml_library,
        request_tier,
        log_level: level(verbose),
        ..PartialConfig::default()
    };
    let config = match load(file, flags) {
        Ok(config) => config,
        Err(error) => return Ok(usage(&error, EXIT_USAGE)),
    };
    let mut checks = examine(&config);
    checks.extend(config.web_config_file.as_deref().map(web_config));
    let worst = checks
        .iter()
        .map(|check| check.status)
        .max()
        .unwrap_or(Status::Pass);
    let mut text = String::new();
    if json {
        text = serde_json::to_string(&Report { schema: 1, checks })?;
        text.push('\n');
    } else {
        for Finding {
            id,
            status,
            found,
            fix,
        } in &checks
        {
            writeln!(text, "{:<4}  {id:<28}  {found}", status.label())?;
            if let Some(fix) = fix {
                writeln!(text, "{:<34}  fix: {fix}", "")?;
            }
        }
    }
    print(&text)?;
    Ok(ExitCode::from(worst.exit_code()))
}
