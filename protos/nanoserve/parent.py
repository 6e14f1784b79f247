"""Processes that end with the one that started them, however that ends: none is left at a port or on a device."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, MutableMapping

_VARIABLE = "NANOSERVE_PARENT"
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that this one starts and that calls `die_with_parent`.

    To be started by the main thread: the kernel counts the end of the thread that did it as the parent's.
    """
    return dict(environment) | {_VARIABLE: str(os.getpid())}


def die_with_parent(environment: MutableMapping[str, str]) -> None:
    """Has the kernel kill this process with its parent, though it be stopped; ends at once where that is gone.

    Takes what `child_environment` left out of `environment`, so that no process further down sees it. Does nothing on
    systems other than Linux, and in a process that was started otherwise. OSError where the kernel refuses.
    """
    parent = environment.pop(_VARIABLE, None)
    if parent is None or sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != int(parent):
        print(f"process {parent}, which started this one, is gone", file=sys.stderr)
        os._exit(1)
