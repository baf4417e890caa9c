//! Wiring of the subcommands.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use gpu_state::GpuState;
use inference_sim::engine::{self, EngineConfig, model::EngineModel};
use inference_sim::front::FrontConfig;
use inference_sim::load::{self, LoadConfig};
use inference_sim::serve;
use nvml_sim::Scenario;

/// A serving stack with known true joules per request.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Front and engine: the front starts the engine as its child
    Serve {
        #[command(flatten)]
        front: FrontArguments,
        #[command(flatten)]
        engine: EngineArguments,
    },
    /// The HTTP front alone, for an engine that runs already
    Front {
        #[command(flatten)]
        front: FrontArguments,
        /// Unix socket of the engine
        #[arg(long)]
        engine_socket: PathBuf,
    },
    /// The engine alone
    Engine(EngineArguments),
    /// Send requests and print what came of them as one line of JSON
    Load {
        /// The server, as http://host:port
        #[arg(long)]
        url: String,
        #[command(flatten)]
        load: LoadConfig,
        /// Write one line of JSON a request to this file
        #[arg(long)]
        log: Option<PathBuf>,
    },
    /// Print the energy counter as nvml-sim shows it at a moment, in millijoules
    Counter {
        /// Scenario of nvml-sim; by default the one its environment variable names
        #[arg(long)]
        scenario: Option<PathBuf>,
        /// Moment, nanoseconds of CLOCK_BOOTTIME; now if not given
        #[arg(long)]
        at: Option<u64>,
        /// Index of the GPU
        #[arg(long, default_value_t = 0)]
        device: usize,
    },
}

#[derive(Args)]
struct FrontArguments {
    /// Address and port; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: String,
    /// The model's name
    #[arg(long, default_value = "simulated-8b")]
    model: String,
    /// Tokens in an event of a stream, after the first event
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    tokens_a_chunk: u64,
}

#[derive(Args)]
struct EngineArguments {
    /// File shared with nvml-sim
    #[arg(long)]
    gpu_state: PathBuf,
    /// File that each request's truth is appended to
    #[arg(long)]
    truth: PathBuf,
    /// Unix socket between front and engine; by default beside the state file
    #[arg(long)]
    engine_socket: Option<PathBuf>,
    /// GPUs that run every step together
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    devices: Vec<usize>,
    /// Other engines run steps on these GPUs too, in turns; they must say so as well
    #[arg(long)]
    share: bool,
    /// Read prompts in parts of so many tokens, each beside a decode step
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    prompt_parts: Option<u64>,
    /// Share of prompts of which four fifths are cached
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    cached: f64,
    /// Give one to four tokens a step
    #[arg(long)]
    speculates: bool,
    /// GPU memory the engine holds, GiB
    #[arg(long, default_value_t = 70)]
    memory_gib: u64,
    /// Sequences that decode together at most
    #[arg(long, default_value_t = 256)]
    max_num_seqs: usize,
    /// Idle watts of the GPU; must be those of nvml-sim's scenario
    #[arg(long, default_value_t = 83.0)]
    idle_watts: f64,
}

impl EngineArguments {
    fn config(self) -> EngineConfig {
        EngineConfig {
            socket: self
                .engine_socket
                .unwrap_or_else(|| serve::default_socket(&self.gpu_state)),
            gpu_state: self.gpu_state,
            truth: self.truth,
            devices: self.devices,
            shares: self.share,
            memory_bytes: self.memory_gib << 30,
            model: EngineModel {
                max_num_seqs: self.max_num_seqs.max(1),
                idle_watts: self.idle_watts,
                prompt_parts: self.prompt_parts,
                cached: self.cached,
                speculates: self.speculates,
                ..EngineModel::default()
            },
        }
    }
}

impl FrontArguments {
    fn config(self) -> (String, FrontConfig) {
        (
            self.listen,
            FrontConfig {
                model: self.model,
                tokens_a_chunk: self.tokens_a_chunk,
                ..FrontConfig::default()
            },
        )
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inference-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { front, engine } => {
            let engine = engine.config();
            let socket = engine.socket.clone();
            let command = engine_command(&engine)?;
            let (listen, config) = front.config();
            wait_for(serve::run(&listen, &socket, config, Some(command)))
        }
        Command::Front {
            front,
            engine_socket,
        } => {
            let (listen, config) = front.config();
            wait_for(serve::run(&listen, &engine_socket, config, None))
        }
        Command::Engine(engine) => engine::run(&engine.config()),
        Command::Load { url, load, log } => {
            let log = log
                .map(std::fs::File::create)
                .transpose()
                .context("cannot make the log")?;
            let log = log.map(|file| Box::new(file) as Box<dyn Write>);
            let address = url
                .strip_prefix("http://")
                .unwrap_or(&url)
                .trim_end_matches('/');
            let summary = wait_for(load::run(address, &load, log))?;
            println!("{}", serde_json::to_string(&summary)?);
            Ok(())
        }
        Command::Counter {
            scenario,
            at,
            device,
        } => counter(scenario, at, device),
    }
}

/// All waiting is done on one thread: nothing here computes much.
fn wait_for<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

fn engine_command(config: &EngineConfig) -> anyhow::Result<std::process::Command> {
    let devices: Vec<String> = config.devices.iter().map(usize::to_string).collect();
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("engine");
    command.arg("--engine-socket").arg(&config.socket);
    command.arg("--gpu-state").arg(&config.gpu_state);
    command.arg("--truth").arg(&config.truth);
    command.arg("--devices").arg(devices.join(","));
    command
        .arg("--memory-gib")
        .arg((config.memory_bytes >> 30).to_string());
    command
        .arg("--max-num-seqs")
        .arg(config.model.max_num_seqs.to_string());
    command
        .arg("--idle-watts")
        .arg(config.model.idle_watts.to_string());
    if config.shares {
        command.arg("--share");
    }
    if let Some(tokens) = config.model.prompt_parts {
        command.arg("--prompt-parts").arg(tokens.to_string());
    }
    command.arg("--cached").arg(config.model.cached.to_string());
    if config.model.speculates {
        command.arg("--speculates");
    }
    Ok(command)
}

fn counter(scenario: Option<PathBuf>, at: Option<u64>, device: usize) -> anyhow::Result<()> {
    let scenario = match scenario {
        Some(path) => Scenario::load(&path)?,
        None => Scenario::from_environment()?,
    };
    let path = scenario
        .gpu_state
        .as_ref()
        .context("the scenario names no gpu_state")?;
    let state = GpuState::open_or_create(path)?;
    let at = at.unwrap_or_else(gpu_state::boottime_ns);
    let millijoules = nvml_sim::counter_at(&scenario, &state, device, at)
        .with_context(|| format!("nothing is known of GPU {device} at {at} ns"))?;
    println!("{millijoules}");
    Ok(())
}
