//! `perjoule script --format parquet`: the requests by columns, as DuckDB, pandas, Polars and Spark read them.
//!
//! In: lines, one by one. Out: a file of row groups, each written once it is full: memory does not grow with
//! the recording. Without the crate's Arrow side: its writer of columns takes plain slices.

use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;

use super::{COLUMNS, Line, each_line};
use crate::recording::{Recorded, RecordingError};

/// Rows of a group: what is held in memory, and what a reader can pass over.
const GROUP: usize = 64 * 1024;

/// Columns in which hardly two rows are equal: a dictionary would be longer than they are. The others have one.
const DISTINCT: [&str; 8] = [
    "id",
    "start_s",
    "first_token_s",
    "end_s",
    "gpu_uj",
    "cpu_uj",
    "dram_uj",
    "error_ratio",
];

/// Writes the requests, and beside them what the recording tells of itself.
pub(super) fn write(
    recorded: &Recorded,
    out: impl io::Write + Send,
) -> Result<io::Result<()>, RecordingError> {
    let mut facts = Vec::new();
    recorded.facts(|key, value| {
        facts.push(KeyValue::new(format!("perjoule.{key}"), value.to_owned()));
    })?;
    let mut file = match Writer::begin(facts, out) {
        Ok(file) => file,
        Err(error) => return Ok(Err(of_output(error))),
    };
    let ended = each_line(recorded, |line| file.push(line).map_err(of_output))?;
    Ok(ended.and_then(|()| file.end().map_err(of_output)))
}

/// What went wrong with the output, as its own error: a reader that is gone is told apart by it.
fn of_output(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(source) => io::Error::other(source),
        },
        error => io::Error::other(error),
    }
}

/// The file, and the rows that are not in it yet.
struct Writer<W: io::Write + Send> {
    file: SerializedFileWriter<W>,
    columns: [Box<dyn Column>; COLUMNS.len()],
    rows: usize,
}

impl<W: io::Write + Send> Writer<W> {
    fn begin(facts: Vec<KeyValue>, out: W) -> Result<Self> {
        let columns = columns();
        let types = COLUMNS.iter().zip(&columns);
        let types = types.map(|(name, column)| column.schema(name).map(Arc::new));
        let schema = Type::group_type_builder("requests")
            .with_fields(types.collect::<Result<_>>()?)
            .build()?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_key_value_metadata(Some(facts));
        for name in DISTINCT {
            properties = properties.set_column_dictionary_enabled(name.into(), false);
        }
        Ok(Self {
            file: SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties.build()))?,
            columns,
            rows: 0,
        })
    }

    fn push(&mut self, line: &Line<'_>) -> Result<()> {
        for column in &mut self.columns {
            column.push(line);
        }
        self.rows += 1;
        if self.rows == GROUP {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<()> {
        let mut group = self.file.next_row_group()?;
        for column in &mut self.columns {
            if let Some(mut writer) = group.next_column()? {
                column.write(&mut writer)?;
                writer.close()?;
            }
        }
        group.close()?;
        self.rows = 0;
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        if self.rows > 0 {
            self.write_group()?;
        }
        self.file.close()?;
        Ok(())
    }
}

/// In the order of [`COLUMNS`].
fn columns() -> [Box<dyn Column>; COLUMNS.len()] {
    [
        column::<ByteArrayType>(Repetition::REQUIRED, |line| Some(line.id.into())),
        column::<ByteArrayType>(Repetition::REQUIRED, |line| Some(line.service.into())),
        column::<ByteArrayType>(Repetition::REQUIRED, |line| Some(line.route.into())),
        column::<ByteArrayType>(Repetition::OPTIONAL, |line| line.code.map(Into::into)),
        column::<ByteArrayType>(Repetition::OPTIONAL, |line| line.outcome.map(Into::into)),
        column::<DoubleType>(Repetition::REQUIRED, |line| Some(line.start_s)),
        column::<DoubleType>(Repetition::OPTIONAL, |line| line.first_token_s),
        column::<DoubleType>(Repetition::OPTIONAL, |line| line.end_s),
        column::<Int64Type>(Repetition::OPTIONAL, |line| integer(line.chunks)),
        column::<Int64Type>(Repetition::OPTIONAL, |line| integer(line.tokens_in)),
        column::<Int64Type>(Repetition::OPTIONAL, |line| integer(line.tokens_out)),
        column::<Int64Type>(Repetition::OPTIONAL, |line| integer(line.energy_uj.gpu)),
        column::<Int64Type>(Repetition::OPTIONAL, |line| integer(line.energy_uj.cpu)),
        column::<Int64Type>(Repetition::OPTIONAL, |line| integer(line.energy_uj.dram)),
        column::<ByteArrayType>(Repetition::REQUIRED, |line| Some(line.class.into())),
        column::<DoubleType>(Repetition::OPTIONAL, |line| line.error_ratio),
    ]
}

/// As it stood in the recording, whose integers are signed.
fn integer(value: Option<u64>) -> Option<i64> {
    value.map(u64::cast_signed)
}

trait Column {
    fn schema(&self, name: &str) -> Result<Type>;
    fn push(&mut self, line: &Line<'_>);
    /// Writes what was pushed, and forgets it.
    fn write(&mut self, to: &mut SerializedColumnWriter<'_>) -> Result<()>;
}

/// What a group has of a column.
struct Values<T: DataType> {
    repetition: Repetition,
    value: fn(&Line<'_>) -> Option<T::T>,
    known: Vec<T::T>,
    /// Of each row: 1, or 0 where its value is null.
    levels: Vec<i16>,
}

fn column<T: DataType>(
    repetition: Repetition,
    value: fn(&Line<'_>) -> Option<T::T>,
) -> Box<dyn Column> {
    Box::new(Values::<T> {
        repetition,
        value,
        known: Vec::new(),
        levels: Vec::new(),
    })
}

impl<T: DataType> Column for Values<T> {
    fn schema(&self, name: &str) -> Result<Type> {
        let physical = T::get_physical_type();
        let is_text = physical == Physical::BYTE_ARRAY;
        Type::primitive_type_builder(name, physical)
            .with_repetition(self.repetition)
            .with_logical_type(is_text.then_some(LogicalType::String))
            .build()
    }

    fn push(&mut self, line: &Line<'_>) {
        let value = (self.value)(line);
        self.levels.push(value.is_some().into());
        self.known.extend(value);
    }

    fn write(&mut self, to: &mut SerializedColumnWriter<'_>) -> Result<()> {
        let writer = to.typed::<T>();
        writer.write_batch(&self.known, Some(&self.levels), None)?;
        self.known.clear();
        self.levels.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use parquet::record::RowAccessor as _;

    use super::super::Energy;
    use super::*;

    fn line(id: &str, gpu: Option<u64>) -> Line<'_> {
        Line {
            id,
            service: "chat",
            route: "completions",
            code: None,
            outcome: None,
            start_s: 0.5,
            first_token_s: None,
            end_s: None,
            chunks: None,
            tokens_in: None,
            tokens_out: None,
            energy_uj: Energy {
                gpu,
                cpu: gpu.map(|gpu| gpu + 1),
                dram: gpu.map(|gpu| gpu + 2),
            },
            class: "A",
            error_ratio: None,
        }
    }

    /// Lets so many bytes through; then its reader is gone.
    struct Pipe(usize);

    impl io::Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn rows_are_written_a_group_at_a_time_and_read_back_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = Writer::begin(Vec::new(), &mut file).unwrap();
        let rows = GROUP as u64 + 3;
        for row in 0..rows {
            // Every seventh is not known, and the first is known to be nothing.
            let gpu = (row % 7 != 1).then_some(row);
            writer.push(&line(&row.to_string(), gpu)).unwrap();
            assert!(writer.rows < GROUP);
        }
        writer.end().unwrap();

        let reader = SerializedFileReader::new(file).unwrap();
        let groups = reader.metadata().row_groups();
        let sizes: Vec<i64> = groups.iter().map(|group| group.num_rows()).collect();
        assert_eq!(sizes, [GROUP as i64, 3]);
        let gpu = COLUMNS.iter().position(|name| *name == "gpu_uj").unwrap();
        let mut expected = 0..rows;
        for (row, number) in reader.get_row_iter(None).unwrap().zip(&mut expected) {
            let row = row.unwrap();
            assert_eq!(*row.get_string(0).unwrap(), number.to_string());
            let known = (number % 7 != 1).then_some(number as i64);
            // GPU, CPU and DRAM stand side by side.
            for part in 0..3 {
                let told = row.get_long(gpu + part).ok();
                assert_eq!(told, known.map(|gpu| gpu + part as i64), "{number}");
            }
        }
        assert_eq!(expected.next(), None);
    }

    #[test]
    fn a_recording_without_requests_is_a_file_without_rows() {
        let mut file = tempfile::tempfile().unwrap();
        Writer::begin(Vec::new(), &mut file).unwrap().end().unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let metadata = reader.metadata().file_metadata();
        assert_eq!(metadata.num_rows(), 0);
        assert_eq!(metadata.schema().get_fields().len(), COLUMNS.len());
    }

    #[test]
    fn a_reader_that_is_gone_is_told_apart_from_other_failures() {
        let whole = {
            let mut file = Vec::new();
            let mut writer = Writer::begin(Vec::new(), &mut file).unwrap();
            writer.push(&line("a", Some(1))).unwrap();
            writer.end().unwrap();
            file.len()
        };
        let write = |room| {
            let mut writer = Writer::begin(Vec::new(), Pipe(room))?;
            writer.push(&line("a", Some(1)))?;
            writer.end()
        };
        write(whole).unwrap();
        for room in [0, whole / 2, whole - 1] {
            let error = of_output(write(room).unwrap_err());
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{room}: {error}");
        }
    }
}
