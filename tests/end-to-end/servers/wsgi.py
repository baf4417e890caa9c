"""The application of app.py for a server with threads: gunicorn's, through WSGI.

Its log is the same. A part of the body has been sent when the server asks for the next one; the
response, when the server closes it. An event whose write failed is not counted.
"""

import gc
import json
import os
import time
from urllib.parse import parse_qs

LOG = os.open(os.environ["SERVER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
JSON = [("Content-Type", "application/json")]
STREAM = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]
PLAIN = {
    "/v1/completions": (200, b'{"choices": [{"text": "all of it"}]}'),
    "/v1/embeddings": (200, b'{"data": [%s]}' % b",".join([b"0.25"] * 30_000)),
    "/upload": (200, b"{}"),
    "/v1/models": (200, b'{"data": [{"id": "model"}]}'),
    "/health": (200, b"{}"),
    "/none": (204, b""),
    "/fail": (500, b'{"error": "failed"}'),
}

# A collection stops the server between a socket and its own clock.
gc.disable()


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Response:
    """The parts of one response's body, and what is logged of it."""

    def __init__(self, environ, start_response):
        self.read = now()
        query = parse_qs(environ["QUERY_STRING"])
        self.n = int(query["n"][0])
        self.events = int(query["events"][0])
        self.pause = int(query["pause"][0]) / 1000
        self.first = None
        self.chunks = 0
        self.whole = False
        while environ["wsgi.input"].read(65_536):
            pass
        self.status, data = PLAIN.get(environ["PATH_INFO"], (404, b"{}"))
        if self.events:
            headers = STREAM
            self.parts = self.stream()
        else:
            time.sleep(self.pause)
            headers = JSON + ([("Content-Length", str(len(data)))] if data else [])
            data = b"" if environ["REQUEST_METHOD"] == "HEAD" else data
            self.parts = iter([(data, 0)] if data else [])
        start_response(f"{self.status} Said", headers)
        self.sending = 0
        self.began = False

    def stream(self):
        for number in range(self.events):
            time.sleep(self.pause)
            yield b'data: {"choices": [{"text": "token %d"}]}\n\n' % number, 1
        yield b"data: [DONE]\n\n", 0

    def __iter__(self):
        return self

    def __next__(self):
        self.chunks += self.sending
        self.sending = 0
        if self.began and self.first is None:
            self.first = now()
        try:
            part, self.sending = next(self.parts)
        except StopIteration:
            self.whole = True
            raise
        self.began = True
        return part

    def close(self):
        line = {
            "n": self.n,
            "status": self.status,
            "read_s": self.read,
            "first_s": self.first,
            "end_s": now(),
            "chunks": self.chunks,
            "aborted": not self.whole,
        }
        os.write(LOG, json.dumps(line).encode() + b"\n")


app = Response
