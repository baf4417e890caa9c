"""HTTP/1.1 inside TLS on asyncio: the library never sees the socket (memory BIO)."""
import asyncio, json, os, ssl, sys, time

cert, key = sys.argv[1], sys.argv[2]
LARGE = b"x" * 300_000


def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            start = now()
            method, path, _ = head.split(b" ", 2)
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            if method == b"POST":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                             b"Transfer-Encoding: chunked\r\n\r\n")
                await asyncio.sleep(0.03)
                first = chunks = 0
                for n in range(20):
                    data = b'data: {"token": %d, "text": "equal in length"}\n\n' % (n % 10)
                    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
                    first = first or now()
                    await writer.drain()
                    chunks += 1
                    await asyncio.sleep(0.005)
                writer.write(b"0\r\n\r\n")
                await writer.drain()
                print(json.dumps({"path": path.decode(), "start": start, "first": first,
                                  "end": now(), "chunks": chunks}), flush=True)
            else:
                body = LARGE if path == b"/large" else b"small"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
                print(json.dumps({"path": path.decode(), "start": start, "end": now(),
                                  "chunks": 0}), flush=True)
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
