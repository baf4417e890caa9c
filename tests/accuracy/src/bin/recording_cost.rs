//! What a recording costs to write, and its size: one line of JSON. The file stays.

use std::path::PathBuf;

use accuracy::hour;
use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
struct Options {
    /// The file
    output: PathBuf,
    /// Requests, 1,000 a second
    #[arg(long, default_value_t = 3_600_000)]
    requests: u64,
}

fn main() -> Result<()> {
    let Options { output, requests } = Options::parse();
    let written = hour::write(&output, requests)?;
    let nanoseconds = written.append.as_nanos() as f64 / requests as f64;
    let bytes = output.metadata()?.len() as f64 / requests as f64;
    println!("{{\"append_ns_per_request\":{nanoseconds},\"bytes_per_request\":{bytes}}}");
    Ok(())
}
