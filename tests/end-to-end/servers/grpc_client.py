"""The load over gRPC: `grpc_client.py PORT` reads a list of connections, each a list of requests,
as JSON on stdin, and writes what came back, one JSON object a line: `messages` are those of a
stream, `status` is gRPC's as HTTP has it.
"""

import asyncio
import json
import sys

import grpc

# One connection a channel, not one for all of them.
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


async def follow(port, requests):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        for asked in requests:
            await asyncio.sleep(asked["think"] / 1000)
            message = json.dumps(asked).encode()
            messages, status = 0, 200
            metadata = [("traceparent", asked["trace"])]
            if asked["events"]:
                call = channel.unary_stream(asked["path"])(message, metadata=metadata)
                async for _ in call:
                    messages += 1
                    if asked["cut"]:
                        call.cancel()
                        break
            else:
                try:
                    await channel.unary_unary(asked["path"])(message, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                    status = 404
            print(json.dumps({"n": asked["n"], "messages": messages, "status": status}))


async def main():
    connections = json.load(sys.stdin)
    await asyncio.gather(*(follow(sys.argv[1], requests) for requests in connections))


asyncio.run(main())
