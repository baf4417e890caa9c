"""Writes into a TLS session as fast as it can; nobody reads what comes out."""
import ssl, sys

cert, key = sys.argv[1], sys.argv[2]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname = False
client.verify_mode = ssl.CERT_NONE
to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
server = context.wrap_bio(to_server, to_client, server_side=True)
other = client.wrap_bio(to_client, to_server)
done = set()
while len(done) < 2:
    for end in (other, server):
        try:
            end.do_handshake()
            done.add(end)
        except ssl.SSLWantReadError:
            pass
print(0, flush=True)
while True:
    server.write(b"x")
    to_client.read()
