"""Checks a server's health over gRPC; exit status 0 means SERVING.

Run `python healthcheck.py 127.0.0.1:50051`. With BPTT_TLS_CA, a file of certificates, it uses TLS.
Needs no token.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

DEADLINE_SECONDS = 3.0  # below the image's limit of five seconds for the whole check


def main(address: str) -> int:
    """Send one health check; print the status or the error on standard error."""
    ca = os.environ.get("BPTT_TLS_CA")
    if ca:
        credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
        secure = grpc.secure_channel(address, credentials)
    with secure if ca else grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            sys.stderr.write(f"{address}: {error}\n")
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    sys.stderr.write(f"{address}: {status}\n")
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
