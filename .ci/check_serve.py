"""Proves that `vlmpress serve --services quantpack` needs no other package; run by tox where no other is installed."""

import importlib.util
import json
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ABSENT = ("tokenreduce", "stagetrain", "verbdistill", "edgevlm", "ray")
STOP_LIMIT_S = 10


def check_health(address: str) -> None:
    """The whole server says SERVING."""
    with grpc.insecure_channel(address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=10)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(f"{address}: expected SERVING, got {reply}")


def main() -> None:
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    if present:
        sys.exit(f"expected quantpack alone, found {', '.join(present)}")
    program = Path(sysconfig.get_path("scripts")) / "vlmpress"
    with tempfile.TemporaryDirectory() as store:
        options = ["--listen", "127.0.0.1:0", "--store", store, "--services", "quantpack"]
        server = subprocess.Popen([program, "serve", *options], stdout=subprocess.PIPE, text=True)
        try:
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                sys.exit("expected one line of JSON when the server is ready, got none")
            print(line, end="")
            check_health(json.loads(line)["address"])
            asked_s = time.monotonic()
            server.send_signal(signal.SIGTERM)
            code = server.wait(STOP_LIMIT_S)
            print(f"ended with {code} after {time.monotonic() - asked_s:.1f} s")
        finally:
            server.kill()
    sys.exit(code)


if __name__ == "__main__":
    main()
