//! The journal: everything the ledger booked, one JSON object a line, in the order it was booked.
//!
//! In: [`Booked`](crate::ledger::Booked) values and the names behind their ids. Out: a text file that is valid at every
//! line's end; [`read`] gives the same values back, so that `report` needs no agent.

mod journal;
mod lines;
mod read;

use std::io;
use std::path::PathBuf;

pub use journal::Journal;
pub use read::{Recorded, read};

/// The layout of the lines; a reader refuses a higher one.
const SCHEMA: u32 = 1;

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be opened, read or written.
    #[error("journal {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A line is not what a journal holds.
    #[error(
        "journal {path}, line {line}: {reason}; is this a file that `perjoule run --journal` wrote?"
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::ledger::{
        Booked, BookedRequest, Class, Component, End, EngineInfo, Input, Meter, MeterId, Outcome,
        Request, RequestId, Route, ServiceId, Source, TokenCount, TokenDelta, TokenSource,
    };
    use crate::units::Microjoules;

    fn booked_request() -> BookedRequest {
        BookedRequest {
            request: Request {
                id: RequestId(7),
                service: ServiceId(1),
                route: Route::ChatCompletions,
                start: Timestamp(1_500_000_000),
                first_data: Some(Timestamp(1_700_000_000)),
                last_data: Some(Timestamp(2_500_000_000)),
                input: Input::Bytes(4_000),
                chunks: 12,
                streamed: true,
                status: 200,
                end: Some(End {
                    at: Timestamp(2_500_000_000),
                    outcome: Outcome::Done,
                }),
            },
            gpu: Some(Microjoules(123_456_789)),
            cpu: None,
            dram: None,
            class: Class::A,
            error_ratio: Some(0.03),
            tokens: Some(TokenCount {
                source: TokenSource::Usage,
                input: Some(900),
                output: None,
                calibrated: true,
            }),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_a_torn_last_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut journal = Journal::create(&path, true).unwrap();
        let meter = Meter {
            component: Component::Gpu,
            device: "GPU-0".into(),
            source: Source::Counter,
            limit: None,
            tick: 100_000_000,
            stale_after: 2_000_000_000,
            gain_error_ratio: 0.05,
            idle: None,
        };
        journal.meter(MeterId(0), &meter).unwrap();
        journal.service(ServiceId(1), "vllm").unwrap();
        journal.book(&Booked::Request(booked_request())).unwrap();
        let info = EngineInfo {
            service: ServiceId(1),
            engine: "vllm",
            counts: crate::ledger::Counts::Step,
            version: None,
            model: Some("llama".into()),
        };
        journal.engine(&info).unwrap();
        let delta = TokenDelta {
            service: ServiceId(1),
            from: Timestamp(987_654_321_000_000_001),
            to: Timestamp(987_654_322_000_000_002),
            input: Some(12),
            output: None,
        };
        journal.tokens(&delta).unwrap();
        journal.flush().unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"entry\":\"requ")).unwrap();

        let recorded = read(&path).unwrap();

        assert!(recorded.simulated);
        assert_eq!(recorded.services[&ServiceId(1)], "vllm");
        assert_eq!(recorded.meters[&MeterId(0)].device, "GPU-0");
        assert_eq!(recorded.models[&ServiceId(1)], "llama");
        assert_eq!(recorded.tokens.len(), 1);
        assert_eq!(recorded.tokens[0].input, Some(12));
        let [Booked::Request(read)] = recorded.booked.as_slice() else {
            panic!("{:?}", recorded.booked)
        };
        assert_eq!(read.gpu, Some(Microjoules(123_456_789)));
        assert_eq!(read.request.first_data, Some(Timestamp(1_700_000_000)));
        assert_eq!(read.request.chunks, 12);
        assert_eq!(read.tokens, booked_request().tokens);
    }

    #[test]
    fn a_foreign_file_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.jsonl");
        std::fs::write(&path, "{\"hello\": 1}\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        std::fs::write(&path, "").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("empty"));
    }
}
