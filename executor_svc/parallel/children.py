"""The ranks that rank 0 starts on its own host: none outlives it, and it outlives none."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from executor_svc.parallel.end import end_process
from executor_svc.parallel.link import START_GRACE_SECONDS
from executor_svc.parallel.place import Place
from nanoserve.parent import child_environment

_END_SECONDS = 3.0
_COMMAND = (sys.executable, "-P", "-m", "executor_svc.process")


class Children:
    """Ranks 1 and on, as processes of this one. Made by the main thread, as they die with the thread that made them."""

    def __init__(self, place: Place, flags: Sequence[str], port: int) -> None:
        """`flags` are those of the executor; `port` is that of the store at which ranks meet."""
        self.ready = False
        self.closing = False
        self._processes = [
            subprocess.Popen(
                [*_COMMAND, *flags],
                env=_environment(os.environ, place, rank, port),
                stdin=subprocess.DEVNULL,
            )
            for rank in range(1, place.size)
        ]
        for rank, process in enumerate(self._processes, 1):
            name = f"rank-{rank}-process"
            threading.Thread(target=self._watch, args=(rank, process), name=name, daemon=True).start()

    def close(self) -> None:
        """Returns when all have ended, as they have been told to; those that do not are killed."""
        self.closing = True
        deadline = time.monotonic() + _END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        status = process.wait()
        if not self.ready:
            time.sleep(START_GRACE_SECONDS)
        if not self.closing:
            end_process("rank_lost", rank=rank, reason=f"its process ended with status {status}")


def _environment(own: Mapping[str, str], place: Place, rank: int, port: int) -> dict[str, str]:
    """What `torchrun` would give a rank, and who its parent is."""
    return child_environment(own) | {
        "RANK": str(rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(place.size),
        "MASTER_ADDR": place.master,
        "MASTER_PORT": str(port),
    }
