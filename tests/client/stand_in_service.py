"""A process that behaves as either service does at its start and end, and does nothing between.

Flags beside --listen: --bad makes it refuse its flags; --silent never serve; --die end soon after it serves;
--deaf ignore SIGTERM; --litter FILE start a process that outlives it and write its id there. Others are ignored.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--listen", required=True)
    for name in ("bad", "silent", "die", "deaf"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--litter")
    parser.add_argument("--log-level", default="info")
    options, _ = parser.parse_known_args()
    if options.bad:
        print("a first line of no weight", file=sys.stderr)
        sys.exit(f"{options.listen.partition(':')[0]}: model.safetensors is damaged")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else lambda *_: ended.set())
    if options.litter:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(options.litter).write_text(str(child.pid))
    if options.silent:
        ended.wait()
        return
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port(options.listen)
    server.start()
    address = options.listen if options.listen.startswith("unix:") else f"127.0.0.1:{port}"
    entry = {"event": "listening", "level": "info", "address": address, "argv": sys.argv[1:]}
    if options.log_level in ("debug", "info"):
        print(json.dumps(entry), file=sys.stderr, flush=True)
    ended.wait(0.5 if options.die else None)
    server.stop(None).wait()
    if options.die:
        os._exit(3)


main()
