"""Reads a server's load again and again while a job runs: peaks, and stretches of steady work."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks.server import Server
from nanoserve.v1 import admin_pb2

_POLL_SECONDS = 0.05  # a reading costs the scheduler well under a millisecond

Reading = tuple[float, admin_pb2.Load]
"""A load and when it was read, by the monotonic clock."""
Result = TypeVar("Result")


def watched(server: Server, job: Callable[[], Result]) -> tuple[Result, list[Reading]]:
    """Runs the job; its result, and readings from before it until it has ended. What it raises is raised here."""
    results: list[Result] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(job())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    readings = [(time.monotonic(), server.load())]
    thread.start()
    while thread.is_alive():
        time.sleep(_POLL_SECONDS)
        readings.append((time.monotonic(), server.load()))
    thread.join()
    if failures:
        raise failures[0]
    return results[0], readings
