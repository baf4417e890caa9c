//! Where the booked rows of a replay go: into a recording, on a thread of its own, so that the logs
//! are read while SQLite writes.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::merge::Sink;
use crate::ledger::{BookedInterval, ServiceId};
use crate::recording::{RecordedRequest, Recording, RecordingError};

/// Rows that go over together …
const TOGETHER: usize = 256;
/// … and how many such loads may wait: a log that is read faster than it is written takes no more
/// memory than this.
const WAITING: usize = 16;

#[derive(Debug)]
enum Row {
    Service(ServiceId, String),
    Interval(BookedInterval),
    Request(RecordedRequest),
}

#[derive(Debug)]
struct Writer {
    rows: SyncSender<Vec<Row>>,
    thread: JoinHandle<Result<Recording, RecordingError>>,
}

#[derive(Debug)]
pub(super) struct Recorder {
    rows: Vec<Row>,
    /// `None` once it has ended.
    writer: Option<Writer>,
    requests: u64,
}

impl Recorder {
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn new(recording: Recording) -> std::io::Result<Self> {
        let (rows, received) = sync_channel(WAITING);
        let thread = thread::Builder::new()
            .name("recording".to_owned())
            .spawn(move || write(recording, &received))?;
        Ok(Self {
            rows: Vec::with_capacity(TOGETHER),
            writer: Some(Writer { rows, thread }),
            requests: 0,
        })
    }

    /// Writes what is left and closes the file. How many requests it holds.
    pub(super) fn close(mut self) -> Result<u64, RecordingError> {
        self.send()?;
        if let Some(writer) = self.writer.take() {
            writer.end()?.close()?;
        }
        Ok(self.requests)
    }

    fn push(&mut self, row: Row) -> Result<(), RecordingError> {
        self.rows.push(row);
        if self.rows.len() < TOGETHER {
            return Ok(());
        }
        self.send()
    }

    fn send(&mut self) -> Result<(), RecordingError> {
        let rows = std::mem::replace(&mut self.rows, Vec::with_capacity(TOGETHER));
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        if writer.rows.send(rows).is_ok() {
            return Ok(());
        }
        // It takes no more: it failed, and says why.
        self.writer.take().map_or(Ok(()), |writer| {
            writer.end()?;
            Ok(())
        })
    }
}

impl Drop for Recorder {
    /// Nobody writes to the file any more when this returns: it may be removed.
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // Whoever drops it unclosed has an error of their own to tell.
            let _ = writer.end();
        }
    }
}

impl Writer {
    fn end(self) -> Result<Recording, RecordingError> {
        drop(self.rows);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn write(
    mut recording: Recording,
    received: &Receiver<Vec<Row>>,
) -> Result<Recording, RecordingError> {
    for row in received.iter().flatten() {
        match row {
            Row::Service(id, name) => recording.service(id, &name, None)?,
            Row::Interval(interval) => recording.interval(&interval)?,
            Row::Request(request) => recording.request(&request)?,
        }
    }
    Ok(recording)
}

impl Sink for Recorder {
    fn service(&mut self, id: ServiceId, name: &str) -> Result<(), RecordingError> {
        self.push(Row::Service(id, name.to_owned()))
    }

    fn interval(&mut self, interval: BookedInterval) -> Result<(), RecordingError> {
        self.push(Row::Interval(interval))
    }

    fn request(&mut self, request: RecordedRequest) -> Result<(), RecordingError> {
        self.requests += 1;
        self.push(Row::Request(request))
    }
}
