//! pprof's format: three values a stack, `cpu/nanoseconds`, `energy/microjoules` and
//! `off-cpu/nanoseconds`.
//!
//! Source: `profile.proto` of github.com/google/pprof; the messages are written by their field numbers.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::SEPARATOR;
use super::folded::Stacks;

/// `perftools.profiles.Profile`; what is not written here is left out.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    /// What the values of a sample are.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// One a stack.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// One a name.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// One a name.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// All texts; the first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// How long was recorded.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What happens once a period.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// Between two samples of a CPU.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Texts that a reader is shown.
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// The value that is shown first.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// A value's name and unit, as places of texts.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ValueType {
    /// Its name.
    #[prost(int64, tag = "1")]
    pub kind: i64,
    /// Its unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// A stack with its values.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Sample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// In the order of the types.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
}

/// Where code is: here no more than its function.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Location {
    /// Its number, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its function.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A line of a function.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Line {
    /// The function's number.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Function {
    /// Its number, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The place of its name.
    #[prost(int64, tag = "2")]
    pub name: i64,
}

/// What a profile is of.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Between two samples of a CPU; `None` where no stacks were sampled.
    pub period_nanos: Option<u64>,
    /// How long was recorded.
    pub duration_nanos: u64,
    /// What a reader is to know.
    pub comment: &'a str,
}

#[derive(Debug, Default)]
struct Texts {
    all: Vec<String>,
    places: HashMap<String, i64>,
}

impl Texts {
    fn place(&mut self, text: &str) -> i64 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = self.all.len() as i64;
        self.all.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        place
    }
}

/// Stacks as a profile.
pub fn profile(stacks: &Stacks, about: About<'_>) -> Profile {
    let mut texts = Texts::default();
    texts.place("");
    let mut value = |kind: &str, unit: &str| ValueType {
        kind: texts.place(kind),
        unit: texts.place(unit),
    };
    let (cpu, energy) = (value("cpu", "nanoseconds"), value("energy", "microjoules"));
    let off_cpu = value("off-cpu", "nanoseconds");
    let comment = vec![texts.place(about.comment)];
    let mut profile = Profile {
        sample_type: vec![cpu, energy, off_cpu],
        duration_nanos: signed(about.duration_nanos),
        period_type: about.period_nanos.map(|_| cpu),
        period: signed(about.period_nanos.unwrap_or(0)),
        comment,
        default_sample_type: energy.kind,
        ..Profile::default()
    };
    let mut functions: HashMap<i64, u64> = HashMap::new();
    for (stack, weight) in stacks.iter() {
        let mut location_id = Vec::new();
        for frame in stack.rsplit(SEPARATOR) {
            let name = texts.place(frame);
            let next = functions.len() as u64 + 1;
            let id = *functions.entry(name).or_insert(next);
            if id == next {
                profile.function.push(Function { id, name });
                profile.location.push(Location {
                    id,
                    line: vec![Line { function_id: id }],
                });
            }
            location_id.push(id);
        }
        let nanos = weight.samples * about.period_nanos.unwrap_or(0);
        profile.sample.push(Sample {
            location_id,
            value: [nanos, weight.microjoules, weight.waited_nanos]
                .map(signed)
                .to_vec(),
        });
    }
    profile.string_table = texts.all;
    profile
}

/// Writes a profile as its tools read it: gzipped.
///
/// # Errors
/// If `out` cannot be written.
pub fn write(profile: &Profile, out: impl Write) -> io::Result<()> {
    let mut gzip = GzEncoder::new(out, Compression::default());
    gzip.write_all(&profile.encode_to_vec())?;
    gzip.finish()?.flush()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::super::folded::Weight;
    use super::*;

    #[test]
    fn a_profile_that_is_written_reads_back_with_its_values_and_names() {
        let mut stacks = Stacks::default();
        for (stack, microjoules, samples) in
            [("s\np\nmain\nhot", 40, 2), ("s\n[GPU decode]", 60, 0)]
        {
            let weight = Weight {
                microjoules,
                samples,
                waited_nanos: 7 * samples,
            };
            stacks.add(stack, weight);
        }
        let about = About {
            period_nanos: Some(10_000_000),
            duration_nanos: 1_000_000_000,
            comment: "simulated",
        };
        let mut file = Vec::new();
        write(&profile(&stacks, about), &mut file).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(file.as_slice())
            .read_to_end(&mut bytes)
            .unwrap();
        let read = Profile::decode(bytes.as_slice()).unwrap();
        let text = |place: i64| read.string_table[place as usize].as_str();
        assert_eq!(text(0), "");
        let types: Vec<_> = read
            .sample_type
            .iter()
            .map(|of| (text(of.kind), text(of.unit)))
            .collect();
        assert_eq!(
            types,
            [
                ("cpu", "nanoseconds"),
                ("energy", "microjoules"),
                ("off-cpu", "nanoseconds")
            ]
        );
        let name = |id: &u64| text(read.function[*id as usize - 1].name);
        let samples: Vec<(Vec<&str>, &[i64])> = read
            .sample
            .iter()
            .map(|sample| {
                (
                    sample.location_id.iter().map(name).collect(),
                    &*sample.value,
                )
            })
            .collect();
        assert_eq!(
            samples,
            [
                (vec!["[GPU decode]", "s"], &[0, 60, 0][..]),
                (vec!["hot", "main", "p", "s"], &[20_000_000, 40, 14][..]),
            ]
        );
        assert_eq!(text(read.default_sample_type), "energy");
    }
}
