//! What this machine's NVIDIA GPU and its driver do: how long calls take, how often counter and
//! readings change, what they say of idle, full and changing load, and whether the ledger closes
//! over it.
//!
//! Reads only: no clock, limit or mode is touched. Without a GPU it says so and succeeds. A section
//! that cannot run here says why, and the others go on.

mod bursts;
mod calls;
mod check;
mod client;
mod closure;
mod folder;
mod levels;
mod load;
mod perjoule;
mod solo;
mod ticks;
mod trace;
mod turns;
mod waves;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::project::today;
use check::Check;
use folder::Folder;
use load::Load;
use perjoule::Perjoule;

/// In the name of every simulated GPU.
const SIMULATED: &str = "(simulated)";

/// `cargo xtask gpu-check`'s options.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The NVML library
    #[arg(long, value_name = "FILE", default_value = "libnvidia-ml.so.1")]
    library: PathBuf,
    /// The GPU, by NVML's index
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    gpu: u32,
    /// These parts alone, separated by commas
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// What keeps the GPU busy: a program for PyTorch, or simulators on a simulated GPU
    #[arg(long, value_enum, default_value_t = Choice::Torch)]
    load: Choice,
    /// The Python that has PyTorch
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// What PyTorch calls the device
    #[arg(long, value_name = "NAME", default_value = "cuda", hide = true)]
    torch_device: String,
    /// The folder of `perjoule`, and of the simulators [default: that of this program, else
    /// target/release]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Leave logs and recordings in this folder
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Multiply all lengths of time: below 1 is quicker and noisier
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor)]
    scale: f64,
    /// Pairs of turns without the agent and with it
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pairs: usize,
    /// Add what was measured to this file, with driver and date
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// A load for the part `ticks`, to poll under; it is ended afterwards
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (0.01..=100.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0.01 to 100".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    Torch,
    Sim,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Times of NVML's calls
    Calls,
    /// How often values change
    Ticks,
    /// Idle, context, full load
    Levels,
    /// Square waves: counter against integrals
    Waves,
    /// The ledger over a mixed load
    Closure,
    /// Two kinds of request, alone and mixed
    Solo,
    /// The load without the agent and with it
    Agent,
}

impl Part {
    fn title(self) -> &'static str {
        match self {
            Self::Calls => "Calls",
            Self::Ticks => "Ticks",
            Self::Levels => "Idle, context, load",
            Self::Waves => "Square waves",
            Self::Closure => "Closure",
            Self::Solo => "Alone and mixed",
            Self::Agent => "Agent off and on",
        }
    }

    fn measure(self, check: &Check<'_>, options: &Options) -> Result<String> {
        match self {
            Self::Calls => calls::measure(check.device),
            Self::Ticks => under(&options.command, |name| ticks::measure(check, name)),
            Self::Levels => levels::measure(check),
            Self::Waves => waves::measure(check),
            Self::Closure => closure::measure(check),
            Self::Solo => solo::measure(check),
            Self::Agent => turns::measure(check, options.pairs),
        }
    }
}

/// `cargo xtask gpu-check`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = Folder::make(options.folder.as_deref())?;
    let binaries = folder::binaries(options.binaries.as_deref())?;
    let library = match options.load {
        Choice::Sim => folder.simulated_gpu(&binaries)?,
        Choice::Torch | Choice::None => options.library.clone(),
    };
    let nvml = match Nvml::builder().lib_path(library.as_os_str()).init() {
        Ok(nvml) => nvml,
        Err(
            error @ (NvmlError::LibloadingError(_)
            | NvmlError::DriverNotLoaded
            | NvmlError::NotFound),
        ) => {
            println!("no NVIDIA GPU here: {error}; nothing to check");
            return Ok(());
        }
        Err(error) => return Err(error).context("the NVIDIA driver does not start"),
    };
    if nvml.device_count()? == 0 {
        println!("the NVIDIA driver finds no GPU; nothing to check");
        return Ok(());
    }
    let device = nvml
        .device_by_index(options.gpu)
        .with_context(|| format!("GPU {}", options.gpu))?;
    let name = device.name().unwrap_or_else(|_| "GPU".into());
    let simulated = name.contains(SIMULATED);
    if simulated && options.append.is_some() {
        bail!("what a simulated GPU shows is not written down as measured");
    }
    let check = Check {
        uuid: device.uuid()?,
        load: load(options, &folder, &binaries, &device, simulated),
        perjoule: Perjoule::find(&binaries, &library, folder.path())
            .map_err(|error| error.to_string()),
        device: &device,
        folder: folder.path().to_owned(),
        scale: options.scale,
    };
    let driver = nvml
        .sys_driver_version()
        .unwrap_or_else(|_| "unknown".into());
    let with = match &check.load {
        Ok(load) => load.name.as_str(),
        Err(why) => why.as_str(),
    };
    tell(
        options,
        &format!(
            "\n## {name}, driver {driver}, {}\n\nLoad: {with}.\n",
            today()?
        ),
    )?;
    for part in Part::value_variants() {
        if options.only.is_empty() || options.only.contains(part) {
            let text = part
                .measure(&check, options)
                .unwrap_or_else(|why| format!("skipped: {}\n", brief(&why)));
            tell(options, &format!("\n### {}\n\n{text}", part.title()))?;
        }
    }
    Ok(())
}

/// Each section when it is there: what comes later may take minutes, or fail.
fn tell(options: &Options, text: &str) -> Result<()> {
    print!("{text}");
    std::io::stdout().flush()?;
    if let Some(path) = &options.append {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn load(
    options: &Options,
    folder: &Folder,
    binaries: &std::path::Path,
    device: &Device<'_>,
    simulated: bool,
) -> Result<Load, String> {
    let by_torch = || {
        let cuda = options.torch_device == "cuda";
        if simulated && cuda {
            bail!("the GPU is simulated, and PyTorch would not be seen on it");
        }
        // Parts of a GPU have names of their own.
        let whole = device.mig_mode().map_or(true, |mode| mode.current == 0);
        let gpu = (cuda && whole).then(|| device.uuid()).transpose()?;
        let load = Load::torch(folder.path(), &options.python, &options.torch_device, gpu);
        load.context("PyTorch does not run here")
    };
    match options.load {
        Choice::None => Err("no load was asked for".to_owned()),
        Choice::Sim => Ok(Load::simulated(folder.path(), binaries)),
        Choice::Torch => by_torch().map_err(|why| brief(&why)),
    }
}

/// An error in one line: of what a program said at its end, the last line is the error.
fn brief(why: &anyhow::Error) -> String {
    let text = format!("{why:#}");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(last) => format!("{first} {last}"),
        None => first.to_owned(),
    }
}

/// Does something while a command of the user's runs, whose name it is told.
fn under(command: &[String], work: impl FnOnce(&str) -> Result<String>) -> Result<String> {
    let Some((program, arguments)) = command.split_first() else {
        return work("whatever ran");
    };
    let mut child: Child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| program.clone())?;
    let done = work(&format!("`{}`", command.join(" ")));
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceback_becomes_what_failed_and_why() {
        let why =
            anyhow::anyhow!("the load ended:\nTraceback\n  File x\nNo module named 'torch'\n");
        assert_eq!(brief(&why), "the load ended: No module named 'torch'");
        assert_eq!(brief(&anyhow::anyhow!("one line")), "one line");
    }
}
