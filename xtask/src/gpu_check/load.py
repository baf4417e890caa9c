"""Loads for one GPU, with PyTorch alone: a context that does nothing, products of matrices that
fill it, the same as a square wave, and a small server that batches continuously.

The server's model is a decoder of random weights with a KV cache. A step reads one prompt or
gives each running request a token, as engines without chunked prefill do. It speaks the part of
OpenAI's API that is needed here: POST /v1/completions with a prompt, whose words are its tokens,
and max_tokens; the answer streams, one event a token.

Lines on stdout are JSON with the time of CLOCK_BOOTTIME, in seconds.
"""

import argparse
import asyncio
import heapq
import json
import os
import queue
import signal
import sys
import threading
import time
from collections import deque

import torch
import torch.nn.functional as F

CONTEXT = 4096
SLOTS = 32
WORDS = 32_000


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def say(event, **more):
    print(json.dumps({"event": event, "t": now(), **more}), flush=True)


def wait_for_gpu(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def product(device, size):
    """One product of two matrices of random numbers: zeros would draw less power."""
    size = size if device.type == "cuda" else 128
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def hold(device):
    block = torch.ones(1 << 20, device=device)
    wait_for_gpu(device)
    say("ready", sum=block.sum().item())
    while True:
        time.sleep(3600)


def full(device):
    multiply = product(device, 8192)
    multiply()
    wait_for_gpu(device)
    say("ready")
    while True:
        for _ in range(16):
            multiply()
        wait_for_gpu(device)


def wave(device, period, on):
    # Under a millisecond each, so that a burst ends when it should.
    multiply = product(device, 4096)
    for _ in range(20):
        multiply()
    wait_for_gpu(device)
    say("ready")
    start = now() + 0.05
    number = bursts = 0
    busy = 0.0
    told = start
    while True:
        begin = start + number * period
        time.sleep(max(0.0, begin - now()))
        began = now()
        while now() < begin + on:
            multiply()
            multiply()
            wait_for_gpu(device)
        ended = now()
        busy += ended - began
        bursts += 1
        # A burst that was missed is left out: the others stay where they belong.
        number = max(number + 1, int((ended - start) / period) + 1)
        if ended - told >= 1.0:
            told = ended
            say("wave", bursts=bursts, busy_s=busy, since_s=ended - start)


class Decoder:
    """The shape of an 8-billion-parameter model, with as many layers as fit in the memory."""

    def __init__(self, device):
        cuda = device.type == "cuda"
        self.device = device
        self.hidden, self.heads, self.cached_heads, inner = (
            (4096, 32, 8, 14_336) if cuda else (64, 4, 2, 128)
        )
        words = WORDS if cuda else 512
        self.width = self.hidden // self.heads
        cached = self.cached_heads * self.width
        layers = 2
        if cuda:
            weights = self.hidden * (2 * self.hidden + 2 * cached + 3 * inner)
            cache = 2 * SLOTS * CONTEXT * cached
            free, _ = torch.cuda.mem_get_info()
            layers = max(1, min(32, int(0.6 * free / (2 * (weights + cache)))))

        def matrix(rows, columns):
            made = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
            return made.normal_(std=columns**-0.5)

        self.words = matrix(words, self.hidden)
        self.layers = [
            {
                "qkv": matrix(self.hidden + 2 * cached, self.hidden),
                "out": matrix(self.hidden, self.hidden),
                "up": matrix(2 * inner, self.hidden),
                "down": matrix(self.hidden, inner),
            }
            for _ in range(layers)
        ]
        shape = (layers, SLOTS, self.cached_heads, CONTEXT, self.width)
        self.keys = torch.zeros(shape, device=device, dtype=torch.bfloat16)
        self.values = torch.zeros(shape, device=device, dtype=torch.bfloat16)
        self.split = [self.hidden, cached, cached]

    @staticmethod
    def norm(x):
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)

    def feed_forward(self, x, layer):
        gate, up = F.linear(self.norm(x), layer["up"]).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, layer["down"])

    def choose(self, x):
        return F.linear(self.norm(x), self.words).argmax(-1).tolist()

    @torch.inference_mode()
    def prefill(self, slot, length):
        """Reads a prompt into a slot; its first token. Which words it has changes nothing."""
        x = self.words[torch.arange(length, device=self.device) % self.words.shape[0]]
        group = self.heads // self.cached_heads
        for i, layer in enumerate(self.layers):
            q, k, v = F.linear(self.norm(x), layer["qkv"]).split(self.split, -1)
            q = q.view(length, self.heads, self.width).transpose(0, 1)
            k = k.view(length, self.cached_heads, self.width).transpose(0, 1)
            v = v.view(length, self.cached_heads, self.width).transpose(0, 1)
            self.keys[i, slot, :, :length] = k
            self.values[i, slot, :, :length] = v
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)
            y = y[0].transpose(0, 1).reshape(length, self.hidden)
            x = self.feed_forward(x + F.linear(y, layer["out"]), layer)
        return self.choose(x[-1:])[0]

    @torch.inference_mode()
    def decode(self, tokens, lengths):
        """One more token for each of the first slots; what stands in a free one is not used."""
        count = len(tokens)
        longest = min(CONTEXT, (max(lengths) // 64 + 1) * 64)
        at = torch.tensor(lengths, device=self.device)
        row = torch.arange(count, device=self.device)
        mask = (torch.arange(longest, device=self.device) <= at[:, None])[:, None, None, :]
        x = self.words[torch.tensor(tokens, device=self.device)]
        group = self.heads // self.cached_heads
        for i, layer in enumerate(self.layers):
            q, k, v = F.linear(self.norm(x), layer["qkv"]).split(self.split, -1)
            keys, values = self.keys[i], self.values[i]
            keys[row, :, at] = k.view(count, self.cached_heads, self.width)
            values[row, :, at] = v.view(count, self.cached_heads, self.width)
            # The heads that share a key stand where queries of one head do.
            q = q.view(count, self.cached_heads, group, self.width)
            y = F.scaled_dot_product_attention(
                q, keys[:count, :, :longest], values[:count, :, :longest], attn_mask=mask
            )
            y = y.reshape(count, self.hidden)
            x = self.feed_forward(x + F.linear(y, layer["out"]), layer)
        return self.choose(x)


class Request:
    def __init__(self, prompt, output, tell):
        self.prompt, self.left, self.tell = prompt, output, tell
        self.length, self.token = prompt, 0


def batch(model, inbox):
    """Steps for ever: a waiting prompt first, else a token for everybody."""
    waiting = deque()
    running = {}
    free = list(range(SLOTS))

    def give(slot, request, token):
        request.token = token
        request.left -= 1
        request.tell(request.left == 0)
        if request.left == 0:
            running.pop(slot, None)
            heapq.heappush(free, slot)

    while True:
        if not waiting and not running:
            waiting.append(inbox.get())
        while not inbox.empty():
            waiting.append(inbox.get())
        if waiting and free:
            request, slot = waiting.popleft(), heapq.heappop(free)
            running[slot] = request
            give(slot, request, model.prefill(slot, request.prompt))
            continue
        last = max(running)
        slots = [running.get(slot) for slot in range(last + 1)]
        tokens = model.decode(
            [request.token if request else 0 for request in slots],
            [request.length if request else 0 for request in slots],
        )
        for slot, (request, token) in enumerate(zip(slots, tokens)):
            if request:
                request.length += 1
                give(slot, request, token)


EVENT = b'data: {"object":"text_completion","choices":[{"index":0,"text":" a"}]}\n\n'


async def answer(inbox, reader, writer):
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        if head[0].split()[:2] != ["POST", "/v1/completions"]:
            refuse(writer, "404 Not Found", "only POST /v1/completions is served")
            return
        wish = json.loads(body)
        prompt, output = len(wish["prompt"].split()), int(wish["max_tokens"])
        if prompt < 1 or output < 1 or prompt + output > CONTEXT:
            refuse(writer, "400 Bad Request", f"{prompt} + {output} tokens of {CONTEXT}")
            return
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue()
        tell = lambda last: loop.call_soon_threadsafe(tokens.put_nowait, last)
        inbox.put(Request(prompt, output, tell))
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        last = False
        while not last:
            last = await tokens.get()
            event = EVENT + b"data: [DONE]\n\n" if last else EVENT
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    except (KeyError, ValueError) as error:
        refuse(writer, "400 Bad Request", repr(error))
    finally:
        writer.close()


def refuse(writer, status, why):
    body = json.dumps({"error": why})
    writer.write(
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )


def serve(device):
    sys.setswitchinterval(0.0005)
    model = Decoder(device)
    for length in (64, 2000):
        model.prefill(0, length)
    for count in (1, 4, 8):
        model.decode([0] * count, [length] * count)
    inbox = queue.SimpleQueue()

    async def front():
        listening = await asyncio.start_server(
            lambda reader, writer: answer(inbox, reader, writer), "127.0.0.1", 0, limit=1 << 20
        )
        port = listening.sockets[0].getsockname()[1]
        say("model", layers=len(model.layers), hidden=model.hidden)
        print(f"listening on http://127.0.0.1:{port}", flush=True)
        await listening.serve_forever()

    threading.Thread(target=lambda: asyncio.run(front()), daemon=True).start()
    batch(model, inbox)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["check", "hold", "full", "wave", "serve"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--period", type=float, default=1.0)
    parser.add_argument("--on", type=float, default=0.5)
    options = parser.parse_args()
    # What is in flight is of no use to anybody.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    device = torch.device(options.device)
    if options.what == "check":
        if device.type == "cuda":
            name = torch.cuda.get_device_name()
            wait_for_gpu(device)
        else:
            name = "CPU"
        print(f"load: PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {name}", flush=True)
        signal.pause()
    elif options.what == "wave":
        wave(device, options.period, options.on)
    else:
        {"hold": hold, "full": full, "serve": serve}[options.what](device)


if __name__ == "__main__":
    main()
