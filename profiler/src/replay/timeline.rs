//! A logged request as the ledger is told it: as it stood at each of its chunks.

use super::requests::Logged;
use crate::clock::Timestamp;
use crate::ledger::{
    BookedRequest, Class, End, Input, Outcome, Request, RequestId, Route, ServiceId, TokenCount,
    TokenSource,
};
use crate::recording::RecordedRequest;

/// What a prompt of unknown size weighs, tokens. Among prompts that are all unknown it does not
/// matter: the speed at which they are read is learned from the same number.
const UNKNOWN_PROMPT: u64 = 500;

/// What the log tells of a request, for when it is booked.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) name: String,
    first_token: Option<Timestamp>,
    input: Option<u64>,
    output: Option<u64>,
    /// How many the log has; `None` where it does not say.
    chunks: Option<u64>,
}

impl Told {
    /// The booked request with what its log said of it, and nothing else.
    pub(super) fn with(self, mut booked: BookedRequest) -> RecordedRequest {
        let request = &mut booked.request;
        request.first_data = self.first_token;
        request.last_data = None;
        request.chunks = self.chunks.unwrap_or(0);
        request.input = self.input.map_or(Input::Bytes(0), Input::Tokens);
        if self.chunks.is_none() || self.input.is_none() {
            booked.class = booked.class.max(Class::B);
        }
        if self.input.is_some() || self.output.is_some() {
            booked.tokens = Some(TokenCount {
                source: TokenSource::Usage,
                input: self.input,
                output: self.output,
                calibrated: true,
            });
        }
        RecordedRequest {
            booked,
            name: Some(self.name),
            chunks_seen: self.chunks.is_some(),
        }
    }
}

/// When a response's tokens went out.
enum Output {
    /// It was seen.
    Chunks(Vec<Timestamp>),
    /// So many, evenly between first token and end.
    Spread(u64, Timestamp),
    /// Nothing is known but that it was in service.
    Unseen,
}

/// Tells a request from its start to its end; `whole` with its tokens' times.
pub(super) fn tell(
    id: RequestId,
    service: ServiceId,
    logged: Logged,
    whole: bool,
    mut tell: impl FnMut(Timestamp, Request),
) -> Told {
    let chunks = logged.chunks.as_ref().map(|chunks| chunks.len() as u64);
    let first_token = logged
        .first_token
        .or_else(|| logged.chunks.as_ref()?.first().copied());
    let last = logged.chunks.as_ref().and_then(|chunks| chunks.last());
    let (at, outcome) = match logged.end {
        Some(end) => (end, Outcome::Done),
        // It ends with the last thing that is known of it.
        None => {
            let last = last.copied().or(first_token).unwrap_or(logged.start);
            (last, Outcome::Incomplete)
        }
    };
    let end = Some(End { at, outcome });
    let mut request = Request {
        id,
        service,
        route: Route::Other,
        start: logged.start,
        first_data: None,
        last_data: None,
        input: Input::Tokens(logged.input.unwrap_or(UNKNOWN_PROMPT)),
        chunks: 0,
        streamed: false,
        status: 0,
        end: None,
    };
    let output = match (logged.chunks, first_token, logged.output) {
        _ if !whole => Output::Unseen,
        (Some(chunks), _, _) if !chunks.is_empty() => Output::Chunks(chunks),
        (None, Some(first), Some(1)) if first < at => Output::Chunks(vec![first]),
        (None, Some(first), Some(tokens)) if tokens > 1 && first < at => {
            Output::Spread(tokens, first)
        }
        _ => Output::Unseen,
    };
    match output {
        Output::Chunks(chunks) => {
            request.streamed = true;
            request.first_data = first_token;
            let mut rest = chunks.as_slice();
            if let Some(first) = first_token {
                request.last_data = Some(first);
                request.chunks = rest.iter().take_while(|at| **at == first).count() as u64;
                rest = rest.get(request.chunks as usize..).unwrap_or_default();
                // A first token that is no chunk of its own left with the prompt's step all the same.
                request.chunks = request.chunks.max(1);
                tell(first, request);
            }
            while let Some(&chunk) = rest.first() {
                let together = rest.iter().take_while(|at| **at == chunk).count();
                request.chunks += together as u64;
                request.last_data = Some(chunk);
                rest = rest.get(together..).unwrap_or_default();
                tell(chunk, request);
            }
        }
        Output::Spread(tokens, first) => {
            request.streamed = true;
            request.first_data = Some(first);
            request.last_data = Some(at);
            request.chunks = tokens;
        }
        Output::Unseen => {
            // Its body came with its end, as far as anybody knows.
            request.first_data = Some(first_token.unwrap_or(at));
            request.last_data = Some(at);
        }
    }
    request.end = end;
    tell(at, request);
    Told {
        name: logged.id,
        first_token,
        input: logged.input,
        output: logged.output,
        chunks,
    }
}
