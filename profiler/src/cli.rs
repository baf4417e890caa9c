//! The command line: one module a verb. Results go to stdout, chatter to stderr.

mod doctor;
mod report;
mod run;
mod stat;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A configuration or command line that makes no sense (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;

/// The measured joules of every request on a GPU inference node
#[derive(Debug, Parser)]
#[command(name = "perjoule", version, propagate_version = true, arg_required_else_help = true)]
struct CommandLine {
    /// Configuration file; flags and PERJOULE_* variables go before it
    #[arg(long, global = true, value_name = "FILE", env = "PERJOULE_CONFIG")]
    config: Option<PathBuf>,
    /// More on stderr; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent: probe, join, serve /metrics
    Run(run::Options),
    /// Count joules and requests while a command runs, like perf stat
    Stat(stat::Options),
    /// Print a summary of a journal
    Report(report::Options),
    /// Say what works on this machine, what does not, and the exact fix
    Doctor(doctor::Options),
}

/// What to watch, and how; the same for every verb that measures.
#[derive(Debug, Clone, Default, Args)]
struct Target {
    /// The service of this process and its process tree
    #[arg(short, long, value_name = "PID")]
    pid: Vec<u32>,
    /// The service that listens on this TCP port
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// The service of this name: container, unit or program
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// The NVML library [default: libnvidia-ml.so.1]
    #[arg(long, value_name = "FILE")]
    nvml_library: Option<PathBuf>,
    /// The GPUs' idle power in watts: one for all, or DEVICE=W; switches learning off
    #[arg(long, value_name = "W|DEVICE=W")]
    idle_watts: Vec<String>,
    /// Count system calls by class; slows every system call of the machine a little
    #[arg(long)]
    syscalls: bool,
    /// The model served, for service_info
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Write everything booked to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

/// Runs the verb that the command line names.
pub fn main() -> ExitCode {
    let CommandLine { config, verbose, verb } = CommandLine::parse();
    let result = match verb {
        Verb::Run(options) => run::run(config.as_deref(), verbose, options),
        Verb::Stat(options) => stat::run(config.as_deref(), verbose, options),
        Verb::Report(options) => report::run(options),
        Verb::Doctor(options) => doctor::run(config.as_deref(), verbose, options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("perjoule: {error:#}");
            ExitCode::FAILURE
        }
    }
}
