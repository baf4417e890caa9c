//! Random connections: frames in an order that can happen, and what they must come to.

/// A small random number generator (splitmix64): a seed names a case.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// One frame on its way.
pub(crate) struct Step {
    pub(crate) sent: bool,
    pub(crate) bytes: Vec<u8>,
    /// Where in `bytes` content lies that a body is made of.
    pub(crate) content: std::ops::Range<usize>,
    pub(crate) stream: u32,
    pub(crate) mark: Mark,
}

/// What a frame means to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    None,
    Request,
    RequestData,
    Head,
    Data,
    End,
    ResetByClient,
    ResetByServer,
}

/// What must come of a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    pub(crate) chunks: u32,
    pub(crate) grpc: bool,
    pub(crate) sse: bool,
    pub(crate) ndjson: bool,
}

pub(crate) struct Script {
    pub(crate) steps: Vec<Step>,
    pub(crate) streams: Vec<(u32, Expected)>,
    /// Header blocks by direction, in order: stream and bytes.
    pub(crate) blocks: [Vec<(u32, Vec<u8>)>; 2],
}

struct Body {
    bytes: Vec<u8>,
    expected: Expected,
}

fn body(random: &mut Random) -> Body {
    let mut bytes = Vec::new();
    let mut expected = Expected::default();
    match random.below(5) {
        0 => {}
        1 => {
            expected.grpc = true;
            for _ in 0..=random.below(4) {
                let length = if random.one_in(4) {
                    random.below(2_000)
                } else {
                    random.below(40)
                };
                bytes.push(random.below(2) as u8);
                bytes.extend((length as u32).to_be_bytes());
                bytes.extend(random.bytes(length));
                expected.chunks += 1;
            }
        }
        2 => {
            expected.sse = true;
            for _ in 0..=random.below(4) {
                let length = random.below(60) as usize;
                match random.below(5) {
                    0 => bytes.extend(b": a comment\n\n"),
                    1 => bytes.extend(b"data: [DONE]\n\n"),
                    _ => {
                        bytes.extend(b"data: ");
                        bytes.extend(vec![b'x'; length]);
                        bytes.extend(if random.one_in(2) {
                            &b"\n\n"[..]
                        } else {
                            b"\r\n\r\n"
                        });
                        expected.chunks += 1;
                    }
                }
            }
        }
        3 => {
            expected.ndjson = true;
            let lines = 1 + random.below(5);
            for n in 0..lines {
                bytes.push(b'{');
                bytes.extend(vec![b'x'; random.below(60) as usize]);
                bytes.push(b'}');
                expected.chunks += 1;
                // The last line may lack its end; empty ones count nothing.
                let ends: [&[u8]; 4] = [b"\n", b"\r\n", b"\n\n", b""];
                let end = random.below(if n + 1 == lines { 4 } else { 3 });
                bytes.extend(ends[end as usize]);
            }
        }
        _ => {
            let length = random.below(3_000);
            bytes = random.bytes(length);
            // What begins like something else is something else.
            if let Some(first) = bytes.first_mut() {
                *first = b'[';
            }
        }
    }
    Body { bytes, expected }
}

/// Pads a payload as its kind may be: the payload, its content's place and the flag.
fn padded(random: &mut Random, front: &[u8], content: &[u8]) -> (Vec<u8>, usize, u8) {
    let mut payload = Vec::new();
    let mut flag = 0;
    let padding = random.below(20);
    if random.one_in(4) {
        payload.push(padding as u8);
        flag = 8;
    }
    payload.extend(front);
    let at = payload.len();
    payload.extend(content);
    if flag != 0 {
        payload.extend(vec![0; padding as usize]);
    }
    (payload, at, flag)
}

impl Script {
    fn push(
        &mut self,
        sent: bool,
        bytes: Vec<u8>,
        content: std::ops::Range<usize>,
        stream: u32,
        mark: Mark,
    ) {
        self.steps.push(Step {
            sent,
            bytes,
            content,
            stream,
            mark,
        });
    }

    /// A header block: HEADERS, and CONTINUATION as it happens.
    fn block(&mut self, random: &mut Random, sent: bool, stream: u32, end: bool, mark: Mark) {
        let length = match random.below(8) {
            0 => 0,
            1 => random.below(2_500),
            _ => random.below(60),
        };
        let block = random.bytes(length);
        self.blocks[usize::from(sent)].push((stream, block.clone()));
        let pieces = if random.one_in(5) {
            1 + random.below(3)
        } else {
            1
        };
        let mut rest = &block[..];
        for piece in 0..pieces {
            let last = piece + 1 == pieces;
            let length = if last {
                rest.len()
            } else {
                random.below(rest.len() as u64 + 1) as usize
            };
            let (now, later) = rest.split_at(length);
            rest = later;
            let end_headers = if last { 4 } else { 0 };
            let bytes = if piece == 0 {
                let priority = random.one_in(5);
                let front = if priority {
                    random.bytes(5)
                } else {
                    Vec::new()
                };
                let (payload, _, flag) = padded(random, &front, now);
                let flags = flag | end_headers | u8::from(end) | if priority { 0x20 } else { 0 };
                frame(1, flags, stream, &payload)
            } else {
                frame(9, end_headers, stream, now)
            };
            // A request begins with its first frame; the end is the block's.
            let mark = match (mark, piece == 0, last) {
                (Mark::End, _, true) => Mark::End,
                (Mark::End, true, false) => Mark::Head,
                (Mark::End, ..) => Mark::None,
                (_, true, _) => mark,
                _ => Mark::None,
            };
            self.push(sent, bytes, 0..0, stream, mark);
        }
    }

    fn noise(&mut self, random: &mut Random, stream: u32) {
        let sent = random.one_in(2);
        let bytes = match random.below(6) {
            0 => frame(6, 0, 0, &random.bytes(8)),
            1 => frame(8, 0, stream, &random.bytes(4)),
            2 => frame(8, 0, 0, &random.bytes(4)),
            3 => frame(4, 1, 0, &[]),
            4 => frame(2, 0, stream, &random.bytes(5)),
            _ => {
                let length = random.below(300);
                frame(0x10, 0, 0, &random.bytes(length))
            }
        };
        self.push(sent, bytes, 0..0, stream, Mark::None);
    }

    fn promise(&mut self, random: &mut Random, stream: u32) {
        let length = random.below(40);
        let block = random.bytes(length);
        self.blocks[1].push((stream, block.clone()));
        let (payload, _, flag) = padded(random, &2u32.to_be_bytes(), &block);
        self.push(
            true,
            frame(5, flag | 4, stream, &payload),
            0..0,
            stream,
            Mark::None,
        );
    }

    /// The frames of one stream, in an order of their own.
    fn stream(random: &mut Random, stream: u32) -> Self {
        let mut script = Self {
            steps: Vec::new(),
            streams: Vec::new(),
            blocks: Default::default(),
        };
        let request_data = random.below(3);
        script.block(random, false, stream, request_data == 0, Mark::Request);
        for n in 0..request_data {
            let length = if random.one_in(5) {
                random.below(5_000)
            } else {
                random.below(50)
            };
            let (payload, _, flag) = padded(random, &[], &vec![1; length as usize]);
            let flags = flag | u8::from(n + 1 == request_data);
            script.push(
                false,
                frame(0, flags, stream, &payload),
                0..0,
                stream,
                Mark::RequestData,
            );
        }
        let mut body = body(random);
        if random.one_in(8) {
            let client = random.one_in(2);
            let mark = if client {
                Mark::ResetByClient
            } else {
                Mark::ResetByServer
            };
            script.push(
                !client,
                frame(3, 0, stream, &random.bytes(4)),
                0..0,
                stream,
                mark,
            );
            script.streams.push((stream, Expected::default()));
            return script;
        }
        if random.one_in(10) {
            script.promise(random, stream);
        }
        let trailers = random.one_in(2);
        if random.one_in(6) {
            // An interim response.
            script.block(random, true, stream, false, Mark::Head);
        }
        if body.bytes.is_empty() && random.one_in(2) {
            script.block(random, true, stream, true, Mark::End);
            script.streams.push((stream, body.expected));
            return script;
        }
        script.block(random, true, stream, false, Mark::Head);
        let mut rest = std::mem::take(&mut body.bytes);
        while !rest.is_empty() {
            let most = if random.one_in(3) {
                rest.len() as u64
            } else {
                40
            };
            let length = 1 + random.below(most.min(rest.len() as u64)) as usize;
            let later = rest.split_off(length);
            let (payload, at, flag) = padded(random, &[], &rest);
            let end = later.is_empty() && !trailers && random.one_in(2);
            let content = 9 + at..9 + at + rest.len();
            let bytes = frame(0, flag | u8::from(end), stream, &payload);
            let mark = if end { Mark::End } else { Mark::Data };
            script.push(true, bytes, content, stream, mark);
            rest = later;
        }
        if script
            .steps
            .last()
            .is_none_or(|step| step.mark != Mark::End)
        {
            if trailers {
                script.block(random, true, stream, true, Mark::End);
            } else {
                let (payload, _, flag) = padded(random, &[], &[]);
                script.push(
                    true,
                    frame(0, flag | 1, stream, &payload),
                    0..0,
                    stream,
                    Mark::End,
                );
            }
        }
        script.streams.push((stream, body.expected));
        script
    }

    /// A whole connection of a few streams, whose frames are mixed.
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut whole = Self {
            steps: Vec::new(),
            streams: Vec::new(),
            blocks: Default::default(),
        };
        whole.push(false, PREFACE.to_vec(), 0..0, 0, Mark::None);
        whole.push(
            false,
            frame(4, 0, 0, &random.bytes(12)),
            0..0,
            0,
            Mark::None,
        );
        whole.push(true, frame(4, 0, 0, &[]), 0..0, 0, Mark::None);
        let count = 1 + random.below(4) as u32;
        let mut scripts: Vec<_> = (0..count)
            .map(|n| {
                let mut script = Self::stream(random, 2 * n + 1);
                script.steps.reverse();
                script
            })
            .collect();
        // Streams begin in the order of their numbers.
        let mut begun = 0;
        let mut block_frames = [Vec::new(), Vec::new()];
        loop {
            let alive: Vec<usize> = (0..begun)
                .filter(|n| !scripts[*n].steps.is_empty())
                .collect();
            if random.one_in(3) && begun < scripts.len() || alive.is_empty() {
                if begun == scripts.len() {
                    break;
                }
                begun += 1;
                let n = begun - 1;
                Self::take(&mut whole, &mut scripts, n, &mut block_frames);
                continue;
            }
            if random.one_in(5) {
                let stream = 2 * random.below(u64::from(count)) as u32 + 1;
                whole.noise(random, stream);
            }
            let n = alive[random.below(alive.len() as u64) as usize];
            Self::take(&mut whole, &mut scripts, n, &mut block_frames);
        }
        // Blocks in the order in which their first frames lie.
        for (sent, order) in block_frames.into_iter().enumerate() {
            let mut taken = vec![0; scripts.len()];
            for n in order {
                let n: usize = n;
                whole.blocks[sent].push(scripts[n].blocks[sent][taken[n]].clone());
                taken[n] += 1;
            }
        }
        for script in &mut scripts {
            whole.streams.append(&mut script.streams);
        }
        whole
    }

    /// Moves a frame on, and the CONTINUATIONs behind it: nothing may come between.
    fn take(whole: &mut Self, scripts: &mut [Self], n: usize, blocks: &mut [Vec<usize>; 2]) {
        let Some(step) = scripts[n].steps.pop() else {
            return;
        };
        if matches!(step.bytes[3], 1 | 5) {
            blocks[usize::from(step.sent)].push(n);
        }
        whole.steps.push(step);
        while scripts[n]
            .steps
            .last()
            .is_some_and(|next| next.bytes[3] == 9)
        {
            whole.steps.extend(scripts[n].steps.pop());
        }
    }
}
