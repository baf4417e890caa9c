//! The lines of a journal, and how the ledger's values stand in them.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, BookedRequest, Class, Component, End, Input, Outcome, Request, RequestId, Route,
    ServiceId, Source, TokenCount,
};
use crate::units::Microjoules;

/// One line. Times are seconds of `CLOCK_BOOTTIME`, energy is in microjoules.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(super) enum Entry {
    Journal {
        schema: u32,
        version: String,
        simulated: bool,
    },
    Meter {
        meter: u32,
        component: Component,
        device: String,
        source: Source,
        tick_ns: u64,
        stale_after_ns: u64,
        gain_error_ratio: f64,
    },
    Service {
        service: u32,
        name: String,
    },
    Interval {
        meter: u32,
        from_s: f64,
        to_s: f64,
        energy_uj: u64,
        accounts_uj: Accounts,
        services: Vec<Share>,
    },
    Request(RequestLine),
    Engine {
        service: u32,
        engine: String,
        version: Option<String>,
        model: Option<String>,
    },
    Tokens {
        service: u32,
        from_s: f64,
        to_s: f64,
        input: Option<u64>,
        output: Option<u64>,
    },
    Hole {
        meter: u32,
        from_s: f64,
        to_s: f64,
        reason: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Share {
    pub(super) service: u32,
    pub(super) requests_uj: u64,
    pub(super) overhead_uj: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RequestLine {
    pub(super) id: u64,
    pub(super) service: u32,
    pub(super) route: Route,
    pub(super) status: u16,
    pub(super) outcome: Outcome,
    pub(super) start_s: f64,
    pub(super) first_token_s: Option<f64>,
    pub(super) last_data_s: Option<f64>,
    pub(super) end_s: f64,
    pub(super) streamed: bool,
    pub(super) chunks: u64,
    pub(super) input_bytes: Option<u64>,
    pub(super) input_tokens: Option<u64>,
    pub(super) energy_uj: Energy,
    pub(super) class: Class,
    pub(super) error_ratio: Option<f64>,
    #[serde(default)]
    pub(super) tokens: Option<TokenCount>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Energy {
    pub(super) gpu: Option<u64>,
    pub(super) cpu: Option<u64>,
    pub(super) dram: Option<u64>,
}

impl From<&BookedRequest> for RequestLine {
    fn from(booked: &BookedRequest) -> Self {
        let BookedRequest {
            request,
            gpu,
            cpu,
            dram,
            class,
            error_ratio,
            ..
        } = *booked;
        let end = request.end.unwrap_or(End {
            at: request.start,
            outcome: Outcome::Incomplete,
        });
        let (input_bytes, input_tokens) = match request.input {
            Input::Bytes(bytes) => (Some(bytes), None),
            Input::Tokens(tokens) => (None, Some(tokens)),
        };
        Self {
            id: request.id.0,
            service: request.service.0,
            route: request.route,
            status: request.status,
            outcome: end.outcome,
            start_s: seconds(request.start),
            first_token_s: request.first_data.map(seconds),
            last_data_s: request.last_data.map(seconds),
            end_s: seconds(end.at),
            streamed: request.streamed,
            chunks: request.chunks,
            input_bytes,
            input_tokens,
            energy_uj: Energy {
                gpu: gpu.map(|energy| energy.0),
                cpu: cpu.map(|energy| energy.0),
                dram: dram.map(|energy| energy.0),
            },
            class,
            error_ratio,
            tokens: booked.token_count(),
        }
    }
}

impl From<RequestLine> for BookedRequest {
    fn from(line: RequestLine) -> Self {
        let input = line
            .input_tokens
            .map_or(Input::Bytes(line.input_bytes.unwrap_or(0)), Input::Tokens);
        Self {
            request: Request {
                id: RequestId(line.id),
                service: ServiceId(line.service),
                route: line.route,
                start: timestamp(line.start_s),
                first_data: line.first_token_s.map(timestamp),
                last_data: line.last_data_s.map(timestamp),
                input,
                chunks: line.chunks,
                streamed: line.streamed,
                status: line.status,
                end: Some(End {
                    at: timestamp(line.end_s),
                    outcome: line.outcome,
                }),
            },
            gpu: line.energy_uj.gpu.map(Microjoules),
            cpu: line.energy_uj.cpu.map(Microjoules),
            dram: line.energy_uj.dram.map(Microjoules),
            class: line.class,
            error_ratio: line.error_ratio,
            tokens: line.tokens,
        }
    }
}

pub(super) fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 * 1e-9
}

pub(super) fn timestamp(seconds: f64) -> Timestamp {
    Timestamp((seconds * 1e9).round() as u64)
}
