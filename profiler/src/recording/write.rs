//! Writes a recording.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ToSql, params};

use super::rows::Kind;
use super::schema::{APPLICATION_ID, SCHEMA, TABLES, between, integer, millionths};
use super::{
    RecordedEngine, RecordedRequest, RecordedSample, RecordedWait, RecordingError, StackId,
};
use crate::clock::Timestamp;
use crate::ledger::{
    Booked, BookedInterval, Floor, FloorSource, GpuPhases, Input, Meter, MeterId, Outcome,
    RequestId, ServiceId, TokenDelta,
};
use crate::units::Microjoules;

/// Rows that one transaction holds at most: its pages wait in memory.
const BATCH: u32 = 20_000;

/// Kinds of requests that are remembered: where services come and go for months, those that were
/// forgotten get another number.
const KINDS: usize = 4_096;

/// Stacks that are remembered to be in the file; beyond, it is looked up whether they are.
const KNOWN_STACKS: usize = 100_000;

const METER: &str = "INSERT OR REPLACE INTO meters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const FLOOR: &str = "INSERT OR REPLACE INTO floors VALUES (?1, ?2, ?3)";
const SERVICE: &str = "INSERT INTO services VALUES (?1, ?2, ?3)
    ON CONFLICT DO UPDATE SET name = ?2, model = coalesce(?3, model)";
const REQUEST_KIND: &str = "INSERT INTO request_kinds VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const REQUEST: &str = "INSERT INTO request_rows VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,
    ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)";
const INTERVAL: &str = "INSERT INTO intervals VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10,
    ?11, ?12, ?13, ?14)";
const SHARE: &str = "INSERT INTO interval_services VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const ENGINE: &str = "INSERT INTO engines SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (
    SELECT 1 FROM (SELECT * FROM engines WHERE service = ?1 ORDER BY rowid DESC LIMIT 1)
    WHERE engine = ?3 AND version IS ?4 AND model IS ?5)";
const TOKENS: &str = "INSERT INTO tokens VALUES (?1, ?2, ?3, ?4, ?5)";
const HOLE: &str = "INSERT INTO holes VALUES (?1, ?2, ?3, ?4)";
const TRACE: &str = "INSERT OR REPLACE INTO traces VALUES (?1, ?2)";

const META: &str = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
const STACK: &str = "INSERT OR IGNORE INTO stacks VALUES (?1, ?2)";
const WAIT: &str = "INSERT INTO off_cpu VALUES (?1, ?2, ?3, ?4, ?5)";
const SAMPLE: &str = "INSERT INTO samples VALUES (?1, ?2, ?3, ?4)";

/// Writes a recording. What was written is in the file with the next [`Self::commit`].
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    connection: Connection,
    /// Rows in the transaction that is open; 0: none is.
    uncommitted: u32,
    intervals: i64,
    kinds: HashMap<Kind, u32>,
    latest_kind: u32,
    /// Some that are in the file.
    stacks: HashSet<StackId>,
}

impl Recording {
    /// Begins a new file; an existing one is replaced. `source` is the verb that writes it.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(path: &Path, source: &str, simulated: bool) -> Result<Self, RecordingError> {
        remove(path)?;
        let connection = Connection::open(path).map_err(RecordingError::sqlite(path))?;
        let mut recording = Self {
            path: path.to_owned(),
            connection,
            uncommitted: 0,
            intervals: 0,
            kinds: HashMap::new(),
            latest_kind: 0,
            stacks: HashSet::new(),
        };
        recording.begin(source, simulated)?;
        Ok(recording)
    }

    fn begin(&mut self, source: &str, simulated: bool) -> Result<(), RecordingError> {
        let set_up = || -> rusqlite::Result<()> {
            let connection = &self.connection;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // A killed process loses nothing it has committed; a machine that loses power may
            // lose the last commits, and not the file.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            // What a service was called may come after its first joule, or never: no joule is lost.
            connection.pragma_update(None, "foreign_keys", false)?;
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            connection.pragma_update(None, "user_version", SCHEMA)?;
            connection.execute_batch(&format!("BEGIN; {TABLES}"))?;
            let schema = SCHEMA.to_string();
            for (key, value) in [
                ("schema", schema.as_str()),
                ("version", env!("CARGO_PKG_VERSION")),
                ("source", source),
                ("simulated", if simulated { "1" } else { "0" }),
            ] {
                connection.execute("INSERT INTO meta VALUES (?1, ?2)", [key, value])?;
            }
            connection.execute_batch("COMMIT")
        };
        set_up().map_err(RecordingError::sqlite(&self.path))
    }

    /// Names a meter; before its first interval.
    ///
    /// # Errors
    /// If the file cannot be written, as with every method here.
    pub fn meter(&mut self, id: MeterId, meter: &Meter) -> Result<(), RecordingError> {
        self.insert(
            METER,
            params![
                id.0,
                meter.component.name(),
                meter.device,
                meter.source.name(),
                meter.limit.map(|limit| limit.0),
                integer(meter.tick),
                integer(meter.stale_after),
                meter.gain_error_ratio,
                meter.idle.map(|idle| idle.0),
            ],
        )
    }

    /// Tells a meter's idle floor as it is known now.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn floor(&mut self, id: MeterId, floor: Option<Floor>) -> Result<(), RecordingError> {
        let watts = floor.map(|floor| floor.watts.0);
        let source = FloorSource::name(floor.map(|floor| floor.source));
        self.insert(FLOOR, params![id.0, watts, source])
    }

    /// Names a service; before its first request.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn service(
        &mut self,
        id: ServiceId,
        name: &str,
        model: Option<&str>,
    ) -> Result<(), RecordingError> {
        self.insert(SERVICE, params![id.0, name, model])
    }

    /// Tells what serves; the same told again is no news, and no row.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn engine(&mut self, told: &RecordedEngine) -> Result<(), RecordingError> {
        self.insert(
            ENGINE,
            params![
                told.service.0,
                integer(told.at.0),
                told.engine,
                told.version,
                told.model,
            ],
        )
    }

    /// Writes what an engine counted.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn tokens(&mut self, delta: &TokenDelta) -> Result<(), RecordingError> {
        self.insert(
            TOKENS,
            params![
                delta.service.0,
                integer(delta.from.0),
                integer(delta.to.0),
                delta.input.map(integer),
                delta.output.map(integer),
            ],
        )
    }

    /// Tells which trace a request belongs to.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn trace(
        &mut self,
        request: RequestId,
        trace: impl fmt::Display,
    ) -> Result<(), RecordingError> {
        self.insert(TRACE, params![request.0.cast_signed(), trace.to_string()])
    }

    /// Tells a fact about the file as it is known now.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn fact(&mut self, key: &str, value: &str) -> Result<(), RecordingError> {
        self.insert(META, params![key, value])
    }

    /// Writes a stack, unless it is there: names of its frames, the outermost first, one a line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn stack(&mut self, stack: StackId, frames: &str) -> Result<(), RecordingError> {
        if self.stacks.len() >= KNOWN_STACKS {
            self.stacks.clear();
        }
        if !self.stacks.insert(stack) {
            return Ok(());
        }
        self.insert(STACK, params![stack.0, frames])
    }

    /// Writes that a thread of a service was seen in a stack.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn sample(&mut self, sample: &RecordedSample) -> Result<(), RecordingError> {
        let RecordedSample {
            service,
            at,
            package,
            stack,
        } = *sample;
        self.insert(SAMPLE, params![service.0, integer(at.0), package, stack.0])
    }

    /// Writes that a thread of a service waited in a stack.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn wait(&mut self, wait: &RecordedWait) -> Result<(), RecordingError> {
        let RecordedWait {
            service,
            at,
            nanos,
            reason,
            stack,
        } = *wait;
        let (at, nanos) = (integer(at.0), integer(nanos));
        self.insert(WAIT, params![service.0, at, nanos, reason.name(), stack.0])
    }

    /// Writes what was booked.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn book(&mut self, booked: &Booked) -> Result<(), RecordingError> {
        match booked {
            Booked::Interval(interval) => self.interval(interval),
            Booked::Request(booked) => self.request(&RecordedRequest::from(*booked)),
            Booked::Hole {
                meter,
                from,
                to,
                reason,
            } => self.insert(
                HOLE,
                params![meter.0, integer(from.0), integer(to.0), reason],
            ),
        }
    }

    /// Writes a closed interval.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn interval(&mut self, booked: &BookedInterval) -> Result<(), RecordingError> {
        self.intervals += 1;
        let id = self.intervals;
        let [
            idle,
            context,
            requests,
            overhead,
            other,
            agent,
            unattributed,
            gap,
        ] = booked.accounts.values().map(|account| integer(account.0));
        self.insert(
            INTERVAL,
            params![
                id,
                booked.meter.0,
                integer(booked.from.0),
                integer(booked.to.0),
                integer(booked.energy.0),
                idle,
                context,
                requests,
                overhead,
                other,
                agent,
                unattributed,
                gap,
                booked.holders,
            ],
        )?;
        for share in &booked.services {
            let (requests, overhead) = (integer(share.requests.0), integer(share.overhead.0));
            let [prefill, decode, wait] = columns(share.phases);
            self.insert(
                SHARE,
                params![
                    id,
                    share.service.0,
                    requests,
                    overhead,
                    prefill,
                    decode,
                    wait,
                ],
            )?;
        }
        Ok(())
    }

    /// Writes a booked request.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn request(&mut self, recorded: &RecordedRequest) -> Result<(), RecordingError> {
        let booked = &recorded.booked;
        let request = &booked.request;
        let kind = self.kind(Kind::of(booked))?;
        let since_start = |at: Timestamp| between(request.start, at);
        let end = request.end.map(|end| end.at);
        let (bytes, prompt_tokens) = match request.input {
            Input::Bytes(0) => (None, None),
            Input::Bytes(bytes) => (Some(integer(bytes)), None),
            Input::Tokens(tokens) => (None, Some(integer(tokens))),
        };
        let tokens = booked.tokens;
        let energy = |energy: Option<Microjoules>| energy.map(|energy| integer(energy.0));
        let errors = booked.errors;
        let [prefill, decode, wait] = columns(booked.phases);
        let rest = prefill.zip(decode).zip(wait);
        let rest = rest.map(|((prefill, decode), wait)| {
            energy(booked.gpu).unwrap_or(0) - prefill - decode - wait
        });
        self.insert(
            REQUEST,
            params![
                request.id.0.cast_signed(),
                recorded.name,
                kind,
                integer(request.start.0),
                request.first_data.map(since_start),
                end.map(since_start),
                request
                    .last_data
                    .map(|at| between(at, end.unwrap_or(request.start))),
                recorded.chunks_seen.then_some(integer(request.chunks)),
                bytes,
                prompt_tokens,
                tokens.and_then(|tokens| tokens.input).map(integer),
                tokens.and_then(|tokens| tokens.output).map(integer),
                energy(booked.gpu),
                energy(booked.cpu),
                energy(booked.dram),
                booked.error_ratio().and_then(millionths),
                errors.and_then(|errors| millionths(errors.own)),
                errors.and_then(|errors| millionths(errors.common)),
                prefill,
                wait,
                rest,
            ],
        )
    }

    /// The number of a kind, which is written where it is new.
    fn kind(&mut self, kind: Kind) -> Result<u32, RecordingError> {
        if let Some(&number) = self.kinds.get(&kind) {
            return Ok(number);
        }
        if self.kinds.len() >= KINDS {
            self.kinds.clear();
        }
        self.latest_kind += 1;
        let number = self.latest_kind;
        self.kinds.insert(kind, number);
        self.insert(
            REQUEST_KIND,
            params![
                number,
                kind.service.0,
                kind.route.name(),
                (kind.status != 0).then_some(kind.status),
                kind.outcome.map(Outcome::name),
                kind.streamed,
                kind.tokens.map(|(source, _)| source.name()),
                kind.tokens.map(|(_, calibrated)| calibrated),
                kind.class.name(),
            ],
        )?;
        Ok(number)
    }

    /// Puts everything written so far into the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn commit(&mut self) -> Result<(), RecordingError> {
        if self.uncommitted == 0 {
            return Ok(());
        }
        self.uncommitted = 0;
        self.connection
            .execute_batch("COMMIT")
            .map_err(RecordingError::sqlite(&self.path))
    }

    /// Commits and closes: the log beside the file is folded into it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn close(mut self) -> Result<(), RecordingError> {
        self.commit()?;
        let Self {
            path, connection, ..
        } = self;
        connection
            .close()
            .map_err(|(_, error)| RecordingError::sqlite(&path)(error))
    }

    pub(super) fn insert(
        &mut self,
        sql: &'static str,
        values: &[&dyn ToSql],
    ) -> Result<(), RecordingError> {
        let insert = || -> rusqlite::Result<()> {
            if self.uncommitted == 0 {
                self.connection.execute_batch("BEGIN")?;
            }
            self.connection.prepare_cached(sql)?.execute(values)?;
            Ok(())
        };
        insert().map_err(RecordingError::sqlite(&self.path))?;
        self.uncommitted += 1;
        if self.uncommitted >= BATCH {
            self.commit()?;
        }
        Ok(())
    }
}

/// Prefill, decode and wait, as they stand in a row.
fn columns(phases: Option<GpuPhases>) -> [Option<i64>; 3] {
    match phases {
        Some(GpuPhases {
            prefill,
            decode,
            wait,
        }) => [prefill, decode, wait].map(|energy| Some(integer(energy.0))),
        None => [None; 3],
    }
}

/// Removes a recording and what a killed writer left beside it: SQLite would take an old log for
/// the new file's. What is no SQLite file is left alone.
///
/// # Errors
/// If something else has this name, or the file cannot be removed.
pub(crate) fn remove(path: &Path) -> Result<(), RecordingError> {
    check_replaceable(path)?;
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = PathBuf::from(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(RecordingError::io(&file)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Puts a recording that has been closed in the place of another one.
///
/// # Errors
/// If something else has that name, or files cannot be renamed.
pub(crate) fn replace(closed: &Path, path: &Path) -> Result<(), RecordingError> {
    remove(path)?;
    fs::rename(closed, path).map_err(RecordingError::io(path))
}

/// Nothing is replaced that a recording was not.
///
/// # Errors
/// If the name is taken by something else.
pub(crate) fn check_replaceable(path: &Path) -> Result<(), RecordingError> {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let io = RecordingError::io(path);
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(&io)?,
    };
    let taken = |what: &str| {
        let text = format!("{what} has this name and is not replaced; choose another name");
        Err(io(std::io::Error::new(ErrorKind::AlreadyExists, text)))
    };
    if !metadata.is_file() {
        return taken("something that is no file");
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(&io)?;
    file.take(MAGIC.len() as u64)
        .read_to_end(&mut head)
        .map_err(&io)?;
    if head.is_empty() || head == MAGIC {
        Ok(())
    } else {
        taken("a file that is no recording")
    }
}
