//! The project's own tasks; `cargo xtask` alone lists them.

mod accuracy;
mod bench;
mod dashboards;
mod demo;
mod dist;
mod gpu_check;
mod project;
mod python;
mod setup;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make the BPF toolchain; does nothing when it is there
    Setup(setup::Options),
    /// Watch the measured joules of each request of a serving stack (root)
    Demo(demo::Options),
    /// Run everything: formatting, lints, host tests, root tests (root)
    Test,
    /// Hold the ledger's figures against known truth, offline, and write docs/accuracy.md
    Accuracy(accuracy::Options),
    /// What this machine's NVIDIA GPU does, idle, loaded and under square waves, and whether the
    /// ledger closes over it
    GpuCheck(gpu_check::Options),
    /// Run the probes' tests on other kernels, in QEMU, and on this one
    Vm(vm::Options),
    /// Write Grafana's dashboards from their descriptions, and draw them
    Dashboards(dashboards::Options),
    /// Make what is shipped in target/dist: archive, .deb, .rpm, chart, SBOM, sums
    Dist(dist::Options),
    /// Measure what the agent itself costs (root)
    Bench(bench::Options),
    /// A server that streams, or its clients, for the bench
    #[command(hide = true, subcommand)]
    BenchStreams(bench::streams::Role),
    /// A process of many threads, for the bench
    #[command(hide = true)]
    BenchCrowd {
        /// How many
        threads: u32,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Setup(options) => setup::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Test => test::run(),
        Task::Accuracy(options) => accuracy::run(&options),
        Task::GpuCheck(options) => gpu_check::run(&options),
        Task::Vm(options) => vm::run(&options),
        Task::Dashboards(options) => dashboards::run(&options),
        Task::Dist(options) => dist::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::BenchStreams(role) => bench::streams::run(&role),
        Task::BenchCrowd { threads } => bench::crowd::run(threads),
    }
}
