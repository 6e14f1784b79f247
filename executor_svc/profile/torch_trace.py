"""The device's own trace, by torch.profiler: operators of all threads; on CUDA kernels, copies and calls too."""

import gzip
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from torch._C._profiler import _ExperimentalConfig
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile, supported_activities

from nanoserve.profiles import CLOCK_MARK

# The first few are slow themselves; the best of them counts.
_NUM_MARKS = 8


class TorchTrace:
    """One trace after the other; start and stop are for one thread, while no other runs an operator."""

    def __init__(self, folder: Path, silence: Callable[[], AbstractContextManager[None]]) -> None:
        """Torch holds the interpreter, for seconds at times, within `silence`."""
        self._folder, self._silence = folder, silence
        self._profile: profile | None = None

    def warm_up(self) -> None:
        """Makes the first trace, which takes seconds, and throws it away. To be called by the main thread."""
        self.start()
        self.stop()
        self._profile = None

    def start(self) -> None:
        """Begins to record."""
        wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
        # Steps are launched, run and waited for by threads of their own.
        config = _ExperimentalConfig(profile_all_threads=True)
        self._profile = profile(activities=wanted, experimental_config=config)
        with self._silence():
            self._profile.prepare_trace()
            self._profile.start_trace()
        for _ in range(_NUM_MARKS):
            with record_function(f"{CLOCK_MARK}{time.monotonic_ns()}"):
                pass

    def stop(self) -> None:
        """Ends the recording, when the device has done what was queued."""
        assert self._profile is not None
        with self._silence():
            self._profile.stop_trace()

    def write(self) -> Path:
        """Writes what was recorded: a gzipped Chrome trace under the folder."""
        assert self._profile is not None
        raw = self._folder / f"profile-{time.time_ns()}.json"
        with self._silence():
            self._profile.export_chrome_trace(str(raw))
        self._profile = None
        path = raw.with_name(f"{raw.name}.gz")
        with raw.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        raw.unlink()
        return path
