"""The application behind uvicorn: shaped as an inference server, with a log of its own.

One line of JSON a request goes to the file that SERVER_LOG names. Its times are of CLOCK_BOOTTIME:
`read_s` when the application is called, which is when the server has read the request's head;
`first_s` when the send of the first part of the body has returned; `end_s` when the last send
has, or when the server has told that the client is gone. `chunks` are the events that were sent,
`doubtful` those of them that uvloop was given when the client had just left: it writes later than
it is asked to, and does not tell whether they still went out.
"""

import asyncio
import gc
import json
import os
import time
from urllib.parse import parse_qs

LOG = os.open(os.environ["SERVER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
JSON = [(b"content-type", b"application/json")]
STREAM = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]

# A collection stops the server between a socket and its own clock.
gc.disable()


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Exchange:
    """One request, its response, and what is logged of it."""

    def __init__(self, scope, receive, send):
        self.read = now()
        query = parse_qs(scope["query_string"].decode())
        self.n = int(query["n"][0])
        self.events = int(query.get("events", ["0"])[0])
        self.pause = int(query.get("pause", ["0"])[0]) / 1000
        self.method, self.path = scope["method"], scope["path"]
        self.receive, self.asgi_send = receive, send
        # uvicorn's own; it closes at once when a write fails.
        self.transport = send.__self__.transport
        self.writes_later = type(self.transport).__module__.startswith("uvloop")
        self.status = 0
        self.first = self.end = None
        self.chunks = self.doubtful = 0
        self.aborted = False

    async def whole_body(self):
        length = 0
        while True:
            message = await self.receive()
            length += len(message.get("body", b""))
            if not message.get("more_body", False):
                return length

    async def head(self, status, headers):
        self.status = status
        await self.asgi_send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, data, more):
        await self.asgi_send({"type": "http.response.body", "body": data, "more_body": more})
        self.end = now()
        if data and self.first is None and self.method != "HEAD":
            self.first = self.end

    async def answer(self, status, data, headers=JSON):
        headers = headers + ([(b"content-length", str(len(data)).encode())] if data else [])
        await self.head(status, headers)
        await self.body(data, False)

    def is_gone(self):
        if self.transport.is_closing():
            self.aborted, self.end = True, now()
        return self.aborted

    async def stream(self):
        """Events of one token; some come two in one write, some are split over two."""
        await self.head(200, STREAM)
        gone = asyncio.ensure_future(self.receive())
        part = b""
        for number in range(self.events):
            event = b'data: {"choices": [{"text": "token %d"}]}\n\n' % number
            part += event
            if number % 8 == 3 and number + 1 < self.events:
                continue
            pieces = [part[:20], part[20:]] if number % 8 == 6 else [part]
            events = part.count(b"data:")
            part = b""
            await asyncio.wait({gone}, timeout=self.pause)
            if self.is_gone():
                return
            for piece in pieces:
                await self.body(piece, True)
            if self.is_gone():
                return
            self.chunks += events
            if self.writes_later:
                await asyncio.sleep(0)
                if self.is_gone():
                    self.doubtful = events
                    return
        await self.body(b"data: [DONE]\n\n", True)
        await self.body(b"", False)
        gone.cancel()

    def log(self):
        line = {
            "n": self.n,
            "status": self.status,
            "read_s": self.read,
            "first_s": self.first,
            "end_s": self.end,
            "chunks": self.chunks,
            "aborted": self.aborted,
            "doubtful": self.doubtful,
        }
        os.write(LOG, json.dumps(line).encode() + b"\n")


async def app(scope, receive, send):
    exchange = Exchange(scope, receive, send)
    received = await exchange.whole_body()
    path = exchange.path
    if exchange.events:
        await exchange.stream()
    else:
        if exchange.pause:
            await asyncio.sleep(exchange.pause)
        if path == "/v1/completions":
            await exchange.answer(200, b'{"choices": [{"text": "all of it"}]}')
        elif path == "/v1/embeddings":
            await exchange.answer(200, b'{"data": [%s]}' % b",".join([b"0.25"] * 30_000))
        elif path == "/upload":
            await exchange.answer(200, b'{"bytes": %d}' % received)
        elif path == "/v1/models":
            await exchange.answer(200, b'{"data": [{"id": "model"}]}')
        elif path == "/health":
            await exchange.answer(200, b"{}")
        elif path == "/none":
            await exchange.answer(204, b"", [])
        elif path == "/fail":
            await exchange.answer(500, b'{"error": "failed"}')
        else:
            await exchange.answer(404, b'{"error": "not found"}')
    exchange.log()
