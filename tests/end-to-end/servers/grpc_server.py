"""A gRPC server with the names of KServe's inference service: `grpc_server.py PORT`.

Messages are JSON, no generated code is needed. The log is app.py's: a message has been sent when
its write is done, and `chunks` are the messages of a stream: a single response is an answer. The
status is gRPC's as HTTP has it.
"""

import asyncio
import gc
import json
import os
import sys
import time

import grpc

LOG = os.open(os.environ["SERVER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
SERVICE = "inference.GRPCInferenceService"

# A collection stops the server between a socket and its own clock.
gc.disable()


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Exchange:
    """One request, and what is logged of it when its status has been sent, or its client is gone."""

    def __init__(self, request, context):
        self.asked = json.loads(request)
        self.context = context
        self.pause = self.asked["pause"] / 1000
        self.line = {
            "n": self.asked["n"],
            "status": 200,
            "read_s": now(),
            "first_s": None,
            "end_s": None,
            "chunks": 0,
            "doubtful": 0,
            "aborted": False,
        }
        context.add_done_callback(self.ended)

    async def send(self, text):
        line = self.line
        line["chunks"] += 1
        # It may go out or not if the call is cancelled in the meantime.
        line["doubtful"] = 1
        await self.context.write(json.dumps({"text": text}).encode())
        line["doubtful"] = 0
        if line["first_s"] is None:
            line["first_s"] = now()

    def ended(self, _context):
        self.line["end_s"] = now()
        os.write(LOG, json.dumps(self.line).encode() + b"\n")

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        self.line["aborted"] = kind is asyncio.CancelledError


async def model_infer(request, context):
    with Exchange(request, context) as exchange:
        await asyncio.sleep(exchange.pause)
        return b'{"text": "all of it"}'


async def model_stream_infer(request, context):
    with Exchange(request, context) as exchange:
        for number in range(exchange.asked["events"]):
            await asyncio.sleep(exchange.pause)
            await exchange.send(f"token {number}")


async def model_metadata(request, context):
    with Exchange(request, context) as exchange:
        exchange.line["status"] = 404
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")


async def main(port):
    server = grpc.aio.server()
    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(model_infer),
        "ModelStreamInfer": grpc.unary_stream_rpc_method_handler(model_stream_infer),
        "ModelMetadata": grpc.unary_unary_rpc_method_handler(model_metadata),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main(sys.argv[1]))
