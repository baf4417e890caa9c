"""gRPC inside TLS on grpcio, which has its own library inside."""
import sys, time
from concurrent import futures
import grpc

certificate, key = (open(name, "rb").read() for name in sys.argv[1:3])


def stream(request, context):
    for n in range(5):
        time.sleep(0.01)
        yield b"token %d" % n


service = grpc.method_handlers_generic_handler(
    "inference.GRPCInferenceService",
    {
        "ModelStreamInfer": grpc.unary_stream_rpc_method_handler(stream),
    },
)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((service,))
credentials = grpc.ssl_server_credentials([(key, certificate)])
print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
server.start()
server.wait_for_termination()
