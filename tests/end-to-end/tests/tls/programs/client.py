"""Asks for what its arguments say, and tells what it got, one JSON object a request. A word is a
path to GET, `stream`, `leave` (closes after two events), `goodbye` (the same, and says so first),
`new` (another connection), `wait` (goes on when a line comes on stdin); `12*/path` repeats."""
import json, os, socket, ssl, sys, time

port = int(sys.argv[1])
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE


class Connection:
    def __init__(self):
        raw = socket.create_connection(("127.0.0.1", port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(raw)
        self.socket.settimeout(20 * int(os.environ.get("PERJOULE_TEST_SLOWNESS", 1)))
        self.bytes = b""

    def until(self, end):
        while end not in self.bytes:
            self.more()
        part, self.bytes = self.bytes.split(end, 1)
        return part

    def exactly(self, length):
        while len(self.bytes) < length:
            self.more()
        part, self.bytes = self.bytes[:length], self.bytes[length:]
        return part

    def more(self):
        part = self.socket.recv(65536)
        if not part:
            raise EOFError
        self.bytes += part


def tell(**what):
    print(json.dumps(what), flush=True)


connection = Connection()
for word in sys.argv[2:]:
    times, _, what = word.rpartition("*")
    for _ in range(int(times or 1)):
        if what == "new":
            connection.socket.close()
            connection = Connection()
        elif what == "wait":
            tell(waits=True)
            sys.stdin.readline()
        elif what.startswith("/"):
            connection.socket.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % what.encode())
            head = connection.until(b"\r\n\r\n").lower()
            length = int(head.split(b"content-length:")[1].split()[0])
            tell(path=what, bytes=len(connection.exactly(length)))
        else:
            begun = time.monotonic()
            connection.socket.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                                      b"Content-Length: 2\r\n\r\n{}")
            connection.until(b"\r\n\r\n")
            events, first = 0, None
            while True:
                size = int(connection.until(b"\r\n"), 16)
                if not size:
                    connection.until(b"\r\n")
                    tell(path="stream", chunks=events, first=first)
                    break
                first = first or time.monotonic() - begun
                events += connection.exactly(size + 2).count(b"data:")
                if what != "stream" and events >= 2:
                    if what == "goodbye":
                        connection.socket.setblocking(False)
                        try:
                            connection.socket.unwrap()
                        except ssl.SSLError:
                            pass
                    connection.socket.close()
                    connection = Connection()
                    tell(path=what)
                    break
connection.socket.close()
