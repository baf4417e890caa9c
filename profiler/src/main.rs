//! The `perjoule` binary: reads the command line and runs one verb.

use std::process::ExitCode;

fn main() -> ExitCode {
    profiler::cli::main()
}
