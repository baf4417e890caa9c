//! `perjoule script --format folded|svg|pprof|firefox`: a recording's energy, or its waiting, by stack.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::clock::Timestamp;
use crate::ledger::{Booked, BookedInterval, Component, Meter, MeterId, ServiceId};
use crate::meters;
use crate::profiles::energy::{Placed, Placer, Sample, stack_of};
use crate::profiles::firefox::{Drawn, Tracks};
use crate::profiles::folded::{Figure, Stacks, Weight};
use crate::profiles::{flame_graph, pprof};
use crate::recording::{Recorded, RecordingError, StackId};

/// Which energy.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Only the energy of these meters
    #[arg(long, value_enum)]
    component: Option<Only>,
    /// Beside the energy of another recording (folded, svg): red costs more than there, blue less
    #[arg(long, value_name = "BASE")]
    against: Option<PathBuf>,
    /// Where threads waited, and how long (folded: microseconds; svg), in place of the energy; of a
    /// recording with --off-cpu
    #[arg(long, conflicts_with = "component")]
    off_cpu: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Gpu,
    Cpu,
    Dram,
}

impl Only {
    const fn component(self) -> Component {
        match self {
            Self::Gpu => Component::Gpu,
            Self::Cpu => Component::Cpu,
            Self::Dram => Component::Dram,
        }
    }
}

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Folded,
    Svg,
    Pprof,
    Firefox,
}

impl Which {
    /// True if an option was given that is for these formats alone.
    pub(super) fn is_given(&self) -> bool {
        self.component.is_some() || self.against.is_some() || self.off_cpu
    }
}

/// Prints a recording's energy by stack.
pub(super) fn print(
    form: Form,
    file: &Path,
    options: &Which,
    mut out: impl Write,
) -> Result<io::Result<()>> {
    if options.against.is_some() && matches!(form, Form::Pprof | Form::Firefox) {
        bail!(
            "--against is for --format folded and svg; pprof compares two files by itself (-diff_base)"
        );
    }
    if options.off_cpu && form == Form::Firefox {
        bail!("--off-cpu is for --format folded and svg; pprof has it beside the energy (off-cpu)");
    }
    let only = options.component.map(Only::component);
    let profile = Profile::open(file, only)?;
    let figure = if options.off_cpu {
        profile.check_waits()?;
        Figure::Waiting
    } else {
        Figure::Energy
    };
    let lines = match &options.against {
        Some(base) => {
            let base = Profile::open(base, only)?;
            if options.off_cpu {
                base.check_waits()?;
            }
            profile.stacks()?.lines_against(&base.stacks()?, figure)
        }
        None if matches!(form, Form::Folded | Form::Svg) => profile.stacks()?.lines(figure),
        None => Vec::new(),
    };
    Ok(match form {
        Form::Folded => lines.iter().try_for_each(|line| writeln!(out, "{line}")),
        Form::Svg => {
            if lines.is_empty() {
                bail!(
                    "{}: no energy is booked, so there is nothing to draw",
                    file.display()
                );
            }
            let (title, subtitle) = profile.titles(figure, options.against.as_deref());
            flame_graph::draw(&title, &subtitle, figure, &lines, &mut out)
        }
        Form::Pprof => {
            let about = pprof::About {
                period_nanos: profile.period_nanos,
                duration_nanos: profile.duration()?,
                comment: &profile.about(),
            };
            pprof::write(&pprof::profile(&profile.stacks()?, about), &mut out)
        }
        Form::Firefox => {
            // Where nothing was sampled there is no interval; a tenth of a second is a GPU's tick.
            let interval = profile.period_nanos.unwrap_or(100_000_000);
            let whole = profile.tracks()?.profile(&profile.about(), interval);
            serde_json::to_writer(&mut out, &whole).map_err(io::Error::from)
        }
    }
    .and_then(|()| out.flush()))
}

/// A recording's CPU energy by stack; `None` where it has no stacks.
pub(super) fn cpu_stacks(file: &Path) -> Result<Option<Stacks>> {
    let profile = Profile::open(file, Some(Component::Cpu))?;
    profile.is_sampled.then(|| profile.stacks()).transpose()
}

/// A recording with what its intervals are placed by.
struct Profile {
    file: PathBuf,
    recorded: Recorded,
    only: Option<Component>,
    meters: HashMap<MeterId, Meter>,
    services: HashMap<ServiceId, String>,
    texts: HashMap<StackId, Arc<str>>,
    is_sampled: bool,
    period_nanos: Option<u64>,
}

impl Profile {
    fn open(file: &Path, only: Option<Component>) -> Result<Self> {
        let recorded = Recorded::open(file)?;
        let mut meters = HashMap::new();
        recorded.meters(|id, meter| {
            meters.insert(id, meter);
        })?;
        let mut services = HashMap::new();
        recorded.services(|id, name, _| {
            services.insert(id, name.to_owned());
        })?;
        let mut texts = HashMap::new();
        recorded.stacks(|id, text| {
            texts.insert(id, Arc::from(text));
        })?;
        let hertz = recorded.fact("stacks_hertz")?;
        let hertz = hertz.and_then(|hertz| hertz.parse::<u64>().ok());
        Ok(Self {
            file: file.to_owned(),
            is_sampled: recorded.has_samples()?,
            recorded,
            only,
            meters,
            services,
            texts,
            period_nanos: hertz
                .filter(|hertz| *hertz > 0)
                .map(|hertz| 1_000_000_000 / hertz),
        })
    }

    /// Each interval of the meters that are asked for.
    fn intervals(
        &self,
        mut each: impl FnMut(&Meter, &BookedInterval) -> Result<(), RecordingError>,
    ) -> Result<()> {
        let mut failed = Ok(());
        let mut unknown = false;
        self.recorded.intervals(|booked| {
            let Booked::Interval(interval) = booked else {
                return;
            };
            let Some(meter) = self.meters.get(&interval.meter) else {
                unknown = true;
                return;
            };
            let wanted = self.only.is_none_or(|only| only == meter.component);
            if wanted && failed.is_ok() {
                failed = each(meter, &interval);
            }
        })?;
        failed?;
        if unknown {
            bail!(
                "{}: intervals of a meter that is not in it",
                self.file.display()
            );
        }
        Ok(())
    }

    /// All energy where it stands.
    fn place(&self, mut place: impl FnMut(Placed)) -> Result<()> {
        let mut placer = Placer::new(&self.services);
        self.intervals(|meter, interval| {
            let window = (interval.from, interval.to);
            let package = meters::package_of(meter);
            let samples = |service| self.samples(service, window, package);
            placer.interval(meter.component, interval, samples, &mut place)
        })?;
        placer.finish(place);
        Ok(())
    }

    fn samples(
        &self,
        service: ServiceId,
        window: (Timestamp, Timestamp),
        package: Option<u32>,
    ) -> Result<Option<Vec<Sample>>, RecordingError> {
        if !self.is_sampled {
            return Ok(None);
        }
        let mut samples = Vec::new();
        self.recorded
            .samples(service, window, package, |at, stack| {
                samples.push(Sample {
                    at,
                    stack: self.text(stack),
                });
            })?;
        Ok(Some(samples))
    }

    fn text(&self, stack: StackId) -> Arc<str> {
        self.texts
            .get(&stack)
            .map_or_else(|| Arc::from("[unknown]"), Arc::clone)
    }

    /// Energy and samples by stack.
    fn stacks(&self) -> Result<Stacks> {
        let mut stacks = Stacks::default();
        self.place(|placed| {
            let weight = Weight {
                microjoules: placed.energy.0,
                ..Weight::default()
            };
            stacks.add(&placed.stack, weight);
        })?;
        if self.only.is_none_or(|only| only == Component::Cpu) {
            self.recorded.sample_counts(|service, stack, samples| {
                let weight = Weight {
                    samples,
                    ..Weight::default()
                };
                stacks.add(&self.stack_of(service, stack), weight);
            })?;
        }
        if self.only.is_none() {
            self.recorded.waits(|service, stack, waited_nanos| {
                let weight = Weight {
                    waited_nanos,
                    ..Weight::default()
                };
                stacks.add(&self.stack_of(service, stack), weight);
            })?;
        }
        Ok(stacks)
    }

    fn stack_of(&self, service: ServiceId, stack: StackId) -> String {
        let name = self.services.get(&service);
        let name = name.map_or("[unknown service]", |name| name);
        stack_of(name, &self.text(stack))
    }

    fn check_waits(&self) -> Result<()> {
        if !self.recorded.has_waits()? {
            bail!(
                "{}: no stacks of waits; record with --off-cpu",
                self.file.display()
            );
        }
        Ok(())
    }

    fn tracks(&self) -> Result<Tracks> {
        let mut tracks = Tracks::default();
        for (id, meter) in &self.meters {
            let name = format!("{} {}", meter.component.name(), meter.device);
            tracks.meter(*id, name);
        }
        self.intervals(|_, interval| {
            tracks.draw(Drawn {
                meter: interval.meter,
                from: interval.from,
                to: interval.to,
                energy: interval.energy,
            });
            Ok(())
        })?;
        self.place(|placed| tracks.place(placed))?;
        Ok(tracks)
    }

    fn duration(&self) -> Result<u64> {
        let window = self.recorded.window().context("the recording's time")?;
        Ok(window.map_or(0, |(from, to)| to.since(from)))
    }

    /// Title and subtitle of a picture.
    fn titles(&self, figure: Figure, against: Option<&Path>) -> (String, String) {
        let mut title = match figure {
            Figure::Energy => "Energy".to_owned(),
            Figure::Waiting => "Waiting of threads".to_owned(),
        };
        if let Some(only) = self.only {
            title += &format!(", {}", only.name());
        }
        if self.recorded.simulated {
            title += ", SIMULATED GPU";
        }
        let mut subtitle = self.name();
        if let Some(base) = against {
            subtitle += &format!(" against {}: red costs more, blue less", name_of(base));
        }
        if figure == Figure::Energy && !self.is_sampled {
            subtitle += ", without stacks (record with --stacks)";
        }
        (title, subtitle)
    }

    fn name(&self) -> String {
        name_of(&self.file)
    }

    fn about(&self) -> String {
        let (title, subtitle) = self.titles(Figure::Energy, None);
        let devices: HashSet<&str> = self
            .meters
            .values()
            .map(|meter| meter.source.name())
            .collect();
        let mut devices: Vec<&str> = devices.into_iter().collect();
        devices.sort_unstable();
        format!("{title}: {subtitle}; meters: {}", devices.join(", "))
    }
}

fn name_of(file: &Path) -> String {
    file.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
