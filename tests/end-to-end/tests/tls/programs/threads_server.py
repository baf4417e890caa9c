"""HTTP/1.1 inside TLS on threads: the library reads and writes the socket itself. With a count
as third argument, that many workers are forked, once a line has come on stdin."""
import http.server, os, ssl, sys, time

cert, key = sys.argv[1], sys.argv[2]
workers = int(sys.argv[3]) if len(sys.argv) > 3 else 0
LARGE = b"x" * 300_000


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = LARGE if self.path == "/large" else b"small"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.log()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        time.sleep(0.03)
        for n in range(20):
            data = b'data: {"token": %d, "text": "equal in length"}\n\n' % (n % 10)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            time.sleep(0.005)
        self.wfile.write(b"0\r\n\r\n")
        self.log()

    def log(self):
        os.write(1, b'{"path": "%s"}\n' % self.path.encode())

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass


server = Server(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
if workers:
    sys.stdin.readline()
    for _ in range(workers):
        if os.fork() == 0:
            break
    else:
        while True:
            time.sleep(1)
server.serve_forever()
