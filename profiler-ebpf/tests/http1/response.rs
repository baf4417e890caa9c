//! Responses in every framing, with what is true of them.

use proptest::prelude::*;

/// A response with what is true of it: chunks, the offset of its first body byte.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) bytes: Vec<u8>,
    pub(crate) chunks: u32,
    pub(crate) status: u16,
    pub(crate) head: usize,
    pub(crate) first_body: Option<usize>,
    pub(crate) last_body: Option<usize>,
    pub(crate) request: &'static str,
    pub(crate) until_close: bool,
}

pub(crate) const POST: &str = "POST /v1/completions HTTP/1.1\r\n";

fn event() -> impl Strategy<Value = (String, u32)> {
    prop_oneof![
        "[a-z{}:\", ]{0,90}".prop_map(|text| (format!("data: {text}x\n\n"), 1)),
        "[a-z]{0,9}".prop_map(|text| (format!("event: {text}\r\ndata:{text}y\r\n\r\n"), 1)),
        Just((": keep-alive\n\n".to_owned(), 0)),
        Just(("data: [DONE]\n\n".to_owned(), 0)),
        Just(("data:[DONE]\n\n".to_owned(), 0)),
        Just(("dat\nda\n\n".to_owned(), 0)),
        "[ -~]{900,2500}".prop_map(|text| (format!("data: x{text}\n\n"), 1)),
    ]
}

fn json_line() -> impl Strategy<Value = (String, u32)> {
    prop_oneof![
        "[a-z:\" ]{0,40}".prop_map(|text| (format!("{{{text}}}\n"), 1)),
        Just(("\n".to_owned(), 0)),
        Just(("\r\n".to_owned(), 0)),
        Just(("{}\r\n".to_owned(), 1)),
    ]
}

fn headers() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![
            Just("Server: uvicorn\r\n".to_owned()),
            Just("Content-Language: en\r\nContent-Typo: text/event-stream\r\n".to_owned()),
            "[A-Z][a-z]{1,20}: [ -~]{0,200}\r\n".prop_filter(
                "a header that means something",
                |line| {
                    !line.to_lowercase().starts_with("content")
                        && !line.to_lowercase().starts_with("transfer")
                }
            ),
        ],
        0..6,
    )
    .prop_map(|lines| lines.concat())
}

fn spelling() -> impl Strategy<Value = (fn(&str) -> String, &'static str)> {
    (
        prop_oneof![
            Just((|name: &str| name.to_lowercase()) as fn(&str) -> String),
            Just((|name: &str| name.to_uppercase()) as fn(&str) -> String),
            Just((|name: &str| name.to_owned()) as fn(&str) -> String),
        ],
        prop_oneof![Just(""), Just(" "), Just("  \t")],
    )
}

/// Cuts a body into HTTP chunks at `sizes`, in turn.
fn chunked(body: &str, sizes: &[usize], trailers: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = body.as_bytes();
    let mut i = 0;
    while !rest.is_empty() {
        let size = sizes
            .get(i)
            .copied()
            .unwrap_or(usize::MAX)
            .clamp(1, rest.len());
        let (now, later) = rest.split_at(size);
        let extension = if i % 3 == 2 { ";a=b" } else { "" };
        let line = if i % 2 == 0 {
            format!("{size:x}")
        } else {
            format!("{size:X}")
        };
        out.extend_from_slice(format!("{line}{extension}\r\n").as_bytes());
        out.extend_from_slice(now);
        out.extend_from_slice(b"\r\n");
        rest = later;
        i += 1;
    }
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers.as_bytes());
    out.extend_from_slice(b"\r\n");
    out
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Framing {
    Chunked,
    Length,
    Close,
}

/// Any response a server may give to [`POST`].
pub(crate) fn response() -> impl Strategy<Value = Response> {
    let body = prop_oneof![
        prop::collection::vec(event(), 0..12).prop_map(|e| ("text/event-stream", e)),
        prop::collection::vec(json_line(), 0..12).prop_map(|e| ("application/x-ndjson", e)),
        "[ -~\\n\\r]{0,3000}".prop_map(|text| ("application/json", vec![(text, 0)])),
    ];
    (
        headers(),
        spelling(),
        body,
        prop_oneof![
            Just(Framing::Chunked),
            Just(Framing::Length),
            Just(Framing::Close)
        ],
        prop::collection::vec(1usize..400, 0..40),
        prop_oneof![Just(""), Just("Digest: 0\r\nX: data: y\r\n")],
        prop::bool::ANY,
    )
        .prop_map(
            |(headers, (spell, blank), (kind, parts), framing, sizes, trailers, interim)| {
                let body: String = parts.iter().map(|(text, _)| text.as_str()).collect();
                let chunks = parts.iter().map(|(_, chunks)| chunks).sum();
                let mut bytes = Vec::new();
                if interim {
                    bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\nContent-Length: 7\r\n\r\n");
                }
                bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
                bytes.extend_from_slice(headers.as_bytes());
                bytes.extend_from_slice(
                    format!("{}:{blank}{kind}\r\n", spell("Content-Type")).as_bytes(),
                );
                match framing {
                    Framing::Chunked => bytes.extend_from_slice(
                        format!("{}:{blank}chunked\r\n", spell("Transfer-Encoding")).as_bytes(),
                    ),
                    Framing::Length => bytes.extend_from_slice(
                        format!("{}:{blank}{}\r\n", spell("Content-Length"), body.len()).as_bytes(),
                    ),
                    Framing::Close => bytes.extend_from_slice(b"Connection: close\r\n"),
                }
                bytes.extend_from_slice(b"\r\n");
                let head = bytes.len();
                let (mut first_body, mut last_body) = (None, None);
                match framing {
                    Framing::Chunked => {
                        let framed = chunked(&body, &sizes, trailers);
                        if !body.is_empty() {
                            let line = framed.iter().position(|byte| *byte == b'\n').unwrap();
                            first_body = Some(head + line + 1);
                            last_body = Some(head + framed.len() - 2 - trailers.len() - 3 - 3);
                        }
                        bytes.extend_from_slice(&framed);
                    }
                    _ => {
                        bytes.extend_from_slice(body.as_bytes());
                        if !body.is_empty() {
                            first_body = Some(head);
                            last_body = Some(bytes.len() - 1);
                        }
                    }
                }
                Response {
                    bytes,
                    chunks,
                    status: 200,
                    head,
                    first_body,
                    last_body,
                    request: POST,
                    until_close: framing == Framing::Close,
                }
            },
        )
}
