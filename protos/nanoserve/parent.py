"""Processes that end with the one that started them, however that ends: none is left at a port or on a device."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

_VARIABLE = "NANOSERVE_PARENT"
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that this one starts and that calls `die_with_parent`.

    To be started by the main thread: the kernel counts the end of the thread that did it as the parent's.
    """
    return dict(environment) | {_VARIABLE: str(os.getpid())}


def die_with_parent(environment: Mapping[str, str]) -> None:
    """Has the kernel kill this process with its parent, though it be stopped; at once where that is gone.

    Does nothing on systems other than Linux, and in a process that was not started with `child_environment`.
    """
    parent = environment.get(_VARIABLE)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        os._exit(1)
