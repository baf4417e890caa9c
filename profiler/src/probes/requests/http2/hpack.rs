//! HPACK, as far as requests need it: the few fields that say what a request is, and the dynamic
//! table that leads to them. Source: RFC 7541.
//!
//! In: a direction's header blocks, in order. Out: [`Field`]s. Of every other field only its size
//! is kept, for the table's sake: a cookie or a token is never stored.
//!
//! The table may have a beginning that was not seen (a connection older than the agent, a block
//! that was lost). An index counts from the newest entry, so that what is found is right; what is
//! not found is unknown, and the walk goes on behind it.

use std::collections::VecDeque;

use httlib_huffman::DecoderSpeed;
use profiler_ebpf::request::TRACE;

/// What a field says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    /// `:path`, its first bytes.
    Path(Box<[u8]>),
    /// `:status`.
    Status(u16),
    /// `content-type`.
    Content(Content),
    /// `grpc-status`.
    GrpcStatus(u32),
    /// The beginning of `traceparent`, where trace ids are asked for.
    Trace(Box<[u8; TRACE]>),
    /// Any other, or one that is not known.
    Other,
}

/// What a body is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Grpc,
    EventStream,
    JsonLines,
    Other,
}

/// A block that is no HPACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The names that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Path,
    Status,
    ContentType,
    GrpcStatus,
    Trace,
    Other,
}

/// Bytes kept of a path; a route needs no more.
const PATH: usize = 64;

/// RFC 7541, section 4.1: what an entry counts beside its bytes.
const ENTRY: usize = 32;

/// The table's size unless the encoder says otherwise, and the most that is kept whatever it says.
const TABLE: usize = 4_096;
const LARGEST_TABLE: usize = 65_536;

#[derive(Debug)]
struct Entry {
    name: Name,
    name_bytes: usize,
    field: Field,
    size: usize,
}

/// One direction's decoder.
#[derive(Debug)]
pub(super) struct Decoder {
    table: VecDeque<Entry>,
    size: usize,
    limit: usize,
    trace_ids: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            limit: TABLE,
            trace_ids: false,
        }
    }
}

impl Decoder {
    /// One that reads trace ids too.
    pub(super) fn with_trace_ids() -> Self {
        Self {
            trace_ids: true,
            ..Self::default()
        }
    }

    /// A block was lost: what the table holds no longer has its place.
    pub(super) fn forget(&mut self) {
        self.table.clear();
        self.size = 0;
    }

    /// Decodes a whole block. After an error the table is forgotten.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut seen: impl FnMut(&Field),
    ) -> Result<(), Malformed> {
        let mut rest = block;
        let result = loop {
            if rest.is_empty() {
                break Ok(());
            }
            if let Err(malformed) = self.field(&mut rest, &mut seen) {
                break Err(malformed);
            }
        };
        if result.is_err() {
            self.forget();
        }
        result
    }

    fn field(&mut self, rest: &mut &[u8], seen: &mut impl FnMut(&Field)) -> Result<(), Malformed> {
        let first = *rest.first().ok_or(Malformed)?;
        if first & 0x80 != 0 {
            let index = integer(rest, 7)?;
            if index == 0 {
                return Err(Malformed);
            }
            match index.checked_sub(STATIC.len() + 1) {
                None => seen(&static_field(index)),
                Some(place) => seen(
                    self.table
                        .get(place)
                        .map_or(&Field::Other, |entry| &entry.field),
                ),
            }
            return Ok(());
        }
        if first & 0xe0 == 0x20 {
            self.limit = integer(rest, 5)?.min(LARGEST_TABLE);
            self.evict();
            return Ok(());
        }
        let indexed = first & 0x40 != 0;
        let index = integer(rest, if indexed { 6 } else { 4 })?;
        let (name, name_bytes) = match index.checked_sub(STATIC.len() + 1) {
            _ if index == 0 => {
                let name = string(rest)?;
                (name_of(&name), name.len())
            }
            None => static_name(index),
            Some(place) => self
                .table
                .get(place)
                .map_or((Name::Other, 0), |entry| (entry.name, entry.name_bytes)),
        };
        let value = string(rest)?;
        let field = match name {
            Name::Trace if !self.trace_ids => Field::Other,
            name => field_of(name, &value),
        };
        seen(&field);
        if indexed {
            let size = name_bytes + value.len() + ENTRY;
            self.size += size;
            self.table.push_front(Entry {
                name,
                name_bytes,
                field,
                size,
            });
            self.evict();
        }
        Ok(())
    }

    fn evict(&mut self) {
        while self.size > self.limit {
            let Some(oldest) = self.table.pop_back() else {
                self.size = 0;
                return;
            };
            self.size -= oldest.size;
        }
    }
}

/// Takes an integer whose first byte holds `prefix` bits of it.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let most = (1usize << prefix) - 1;
    let (first, mut behind) = rest.split_first().ok_or(Malformed)?;
    let mut value = usize::from(*first) & most;
    if value == most {
        let mut shift = 0;
        loop {
            let (byte, further) = behind.split_first().ok_or(Malformed)?;
            behind = further;
            value += (usize::from(*byte) & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            // Four bytes hold 28 bits: more than any block has.
            if shift > 21 {
                return Err(Malformed);
            }
        }
    }
    *rest = behind;
    Ok(value)
}

/// Takes a string.
fn string<'a>(rest: &mut &'a [u8]) -> Result<std::borrow::Cow<'a, [u8]>, Malformed> {
    let coded = *rest.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    if length > rest.len() {
        return Err(Malformed);
    }
    let (bytes, behind) = rest.split_at(length);
    *rest = behind;
    if !coded {
        return Ok(bytes.into());
    }
    let mut text = Vec::with_capacity(length * 2);
    httlib_huffman::decode(bytes, &mut text, DecoderSpeed::FiveBits).map_err(|_| Malformed)?;
    Ok(text.into())
}

fn name_of(name: &[u8]) -> Name {
    match name {
        b":path" => Name::Path,
        b":status" => Name::Status,
        b"content-type" => Name::ContentType,
        b"grpc-status" => Name::GrpcStatus,
        b"traceparent" => Name::Trace,
        _ => Name::Other,
    }
}

fn field_of(name: Name, value: &[u8]) -> Field {
    let number = || std::str::from_utf8(value).ok()?.parse().ok();
    match name {
        Name::Path => Field::Path(value.get(..PATH).unwrap_or(value).into()),
        Name::Status => number()
            .and_then(|status: u32| u16::try_from(status).ok())
            .filter(|status| (100..1000).contains(status))
            .map_or(Field::Other, Field::Status),
        Name::GrpcStatus => number().map_or(Field::Other, Field::GrpcStatus),
        Name::ContentType => Field::Content(content(value)),
        Name::Trace => value
            .first_chunk()
            .map_or(Field::Other, |trace| Field::Trace(Box::new(*trace))),
        Name::Other => Field::Other,
    }
}

/// Types of lines of JSON: those of HTTP/1, whose names are looked at alike.
const JSON_LINES: [&str; 4] = [
    "application/x-nd",
    "application/ndjs",
    "application/jsonl",
    "application/x-jsonl",
];

fn content(value: &[u8]) -> Content {
    let begins = |with: &[u8]| {
        value
            .get(..with.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    if begins(b"application/grpc") {
        Content::Grpc
    } else if begins(b"text/event-stream") {
        Content::EventStream
    } else if JSON_LINES.iter().any(|name| begins(name.as_bytes())) {
        Content::JsonLines
    } else {
        Content::Other
    }
}

/// Bytes of each name of the static table (RFC 7541, appendix A).
const STATIC: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// The name at a place of the static table, and its bytes.
fn static_name(index: usize) -> (Name, usize) {
    let name = match index {
        4 | 5 => Name::Path,
        8..=14 => Name::Status,
        31 => Name::ContentType,
        _ => Name::Other,
    };
    let bytes = index.checked_sub(1).and_then(|place| STATIC.get(place));
    (name, bytes.copied().map_or(0, usize::from))
}

/// The field at a place of the static table.
fn static_field(index: usize) -> Field {
    const STATUS: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match index {
        4 => Field::Path((*b"/").into()),
        5 => Field::Path((*b"/index.html").into()),
        8..=14 => STATUS
            .get(index - 8)
            .map_or(Field::Other, |status| Field::Status(*status)),
        _ => Field::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Malformed> {
        let mut fields = Vec::new();
        decoder.decode(block, |field| {
            if *field != Field::Other {
                fields.push(field.clone());
            }
        })?;
        Ok(fields)
    }

    fn path(path: &[u8]) -> Field {
        Field::Path(path.into())
    }

    /// RFC 7541, appendix C.4: three requests, Huffman coded, on one connection.
    #[test]
    fn the_standards_own_requests_are_decoded() {
        let mut decoder = Decoder::default();
        for (block, expected) in [
            (
                &[
                    0x82u8, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0,
                    0xab, 0x90, 0xf4, 0xff,
                ][..],
                &b"/"[..],
            ),
            (
                &[
                    0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf,
                ],
                b"/",
            ),
            (
                &[
                    0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d,
                    0x7f, 0x89, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
                ],
                b"/index.html",
            ),
        ] {
            assert_eq!(decode(&mut decoder, block), Ok(vec![path(expected)]));
        }
        assert_eq!(decoder.size, 164);
    }

    /// RFC 7541, appendix C.6: responses in a table of 256 bytes, with evictions.
    #[test]
    fn the_standards_own_responses_are_decoded_with_their_evictions() {
        let mut decoder = Decoder {
            limit: 256,
            ..Decoder::default()
        };
        let blocks: [&[u8]; 3] = [
            &[
                0x48, 0x82, 0x64, 0x02, 0x58, 0x85, 0xae, 0xc3, 0x77, 0x1a, 0x4b, 0x61, 0x96, 0xd0,
                0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81,
                0x66, 0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff, 0x6e, 0x91, 0x9d, 0x29, 0xad, 0x17, 0x18,
                0x63, 0xc7, 0x8f, 0x0b, 0x97, 0xc8, 0xe9, 0xae, 0x82, 0xae, 0x43, 0xd3,
            ],
            &[0x48, 0x83, 0x64, 0x0e, 0xff, 0xc1, 0xc0, 0xbf],
            &[0x88, 0xc1],
        ];
        let expected = [(302, 222), (307, 222), (200, 222)];
        for (block, (status, size)) in blocks.into_iter().zip(expected) {
            assert_eq!(decode(&mut decoder, block), Ok(vec![Field::Status(status)]));
            assert_eq!(decoder.size, size);
        }
    }

    /// A field with a name and a value as they are, put in the table.
    fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut block = vec![0x40, name.len() as u8];
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value);
        block
    }

    #[test]
    fn what_was_before_is_unknown_and_never_wrong() {
        let mut decoder = Decoder::default();
        // The newest of the other side's table, of which nothing is known here.
        assert_eq!(
            decode(&mut decoder, &[0x88, 0xbe, 0xbf]),
            Ok(vec![Field::Status(200)])
        );
        let new = literal(b":path", b"/new");
        assert_eq!(decode(&mut decoder, &new), Ok(vec![path(b"/new")]));
        // Now the newest is known; the one behind it still is not.
        assert_eq!(decode(&mut decoder, &[0xbf, 0xbe]), Ok(vec![path(b"/new")]));
        // A value whose name is not known takes its place all the same.
        assert_eq!(decode(&mut decoder, &[0x7f, 0x00, 0x01, b'x']), Ok(vec![]));
        assert_eq!(decode(&mut decoder, &[0xbf]), Ok(vec![path(b"/new")]));
        decoder.forget();
        assert_eq!(decode(&mut decoder, &[0xbe, 0xbf]), Ok(vec![]));
    }

    #[test]
    fn statuses_and_kinds_of_content_are_known_by_their_fields() {
        let mut decoder = Decoder::default();
        for (name, value, expected) in [
            (&b"grpc-status"[..], &b"13"[..], Field::GrpcStatus(13)),
            (b":status", b"418", Field::Status(418)),
            (
                b"content-type",
                b"application/grpc+proto",
                Field::Content(Content::Grpc),
            ),
            (
                b"content-type",
                b"Text/Event-Stream; charset=utf-8",
                Field::Content(Content::EventStream),
            ),
            (
                b"content-type",
                b"application/json",
                Field::Content(Content::Other),
            ),
        ] {
            let block = literal(name, value);
            assert_eq!(decode(&mut decoder, &block), Ok(vec![expected]));
        }
        for (name, value) in [
            (&b":status"[..], &b"20x"[..]),
            (b"grpc-status", b""),
            (b"cookie", b"s"),
        ] {
            assert_eq!(decode(&mut decoder, &literal(name, value)), Ok(vec![]));
        }
    }

    #[test]
    fn a_trace_is_read_where_it_is_asked_for_and_kept_nowhere_else() {
        let value = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let block = literal(b"traceparent", value);
        let trace = value.first_chunk().expect("long enough");
        let mut decoder = Decoder::with_trace_ids();
        for block in [&block[..], &[0xbe]] {
            let expected = vec![Field::Trace(Box::new(*trace))];
            assert_eq!(decode(&mut decoder, block), Ok(expected));
        }
        let short = literal(b"traceparent", &value[..TRACE - 1]);
        assert_eq!(decode(&mut decoder, &short), Ok(vec![]));
        let mut decoder = Decoder::default();
        assert_eq!(decode(&mut decoder, &block), Ok(vec![]));
        assert_eq!(decoder.table[0].field, Field::Other);
    }

    #[test]
    fn what_is_no_hpack_is_refused_and_never_panics() {
        let mut decoder = Decoder::default();
        for block in [
            &[0x80][..],
            &[0xff],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x40],
            &[0x40, 0x05, b'a'],
            &[0x00, 0x82, 0xff],
            &[0x44, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(decode(&mut decoder, block), Err(Malformed), "{block:x?}");
        }
        let mut state = 1u64;
        let mut decoder = Decoder::default();
        for _ in 0..20_000 {
            let block: Vec<u8> = (0..40)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            let _ = decode(&mut decoder, &block);
            assert!(decoder.size <= LARGEST_TABLE);
            assert_eq!(
                decoder.size,
                decoder.table.iter().map(|entry| entry.size).sum::<usize>()
            );
        }
    }
}
