//! The command line: one module a verb. Results go to stdout, chatter to stderr.

mod command;
mod config;
mod diff;
mod doctor;
mod explain;
mod logging;
mod measure;
mod profile;
mod progress;
mod record;
mod replay;
mod report;
mod run;
mod script;
mod serving;
mod settings;
mod stat;
mod top;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Command, CommandFactory as _, Parser, Subcommand};

/// A configuration or command line that makes no sense (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  perjoule doctor                              what works on this machine, and what does not
  perjoule stat --port 8000 -- ./load-test     the joules of what a server does meanwhile
  perjoule run                                 the agent, with /metrics on port 27182

Each verb has examples of its own: perjoule stat --help.";

/// The measured joules of every request on a GPU inference node
#[derive(Debug, Parser)]
#[command(
    name = "perjoule",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = EXAMPLES
)]
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
    /// Write everything that is booked into a file, like perf record
    Record(record::Options),
    /// Look on: services, GPUs and requests as they are measured, like top
    Top(top::Options),
    /// Print a summary of a recording
    Report(report::Options),
    /// Compare two recordings: what a request costs, whether that changed, and what moved
    Diff(diff::Options),
    /// Take one request's joules apart
    Explain(explain::Options),
    /// Print a recording's requests, or its energy by stack, for other tools
    Script(script::Options),
    /// Book any tool's power and request logs into a recording
    Replay(replay::Options),
    /// Say what works on this machine, what does not, and the exact fix
    Doctor(doctor::Options),
    /// Look at the configuration
    Config(config::Options),
}

/// What the command line takes, for manual pages and completions.
pub fn command() -> Command {
    CommandLine::command()
}

/// Runs the verb that the command line names.
pub fn main() -> ExitCode {
    let CommandLine {
        config,
        verbose,
        verb,
    } = CommandLine::parse();
    let result = match verb {
        Verb::Run(options) => run::run(config.as_deref(), verbose, options),
        Verb::Stat(options) => stat::run(config.as_deref(), verbose, options),
        Verb::Record(options) => record::run(config.as_deref(), verbose, options),
        Verb::Top(options) => top::run(config.as_deref(), verbose, options),
        Verb::Report(options) => report::run(options),
        Verb::Diff(options) => Ok(diff::run(options)),
        Verb::Explain(options) => explain::run(options),
        Verb::Script(options) => script::run(options),
        Verb::Replay(options) => replay::run(options),
        Verb::Doctor(options) => doctor::run(config.as_deref(), verbose, options),
        Verb::Config(options) => config::run(config, options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            logging::fail(&error);
            ExitCode::FAILURE
        }
    }
}

/// Writes results to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Tells what is wrong with the settings.
fn usage(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("perjoule: {error}");
    ExitCode::from(code)
}
