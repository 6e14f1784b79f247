"""Runs a command that dies with its parent: `python -I -S guarded_exec.py PARENT_PID COMMAND [ARGUMENT ...]`.

On Linux the kernel sends this process SIGKILL when the thread that started it ends, however it ends (SIGKILL
included), and the setting outlives exec; so nothing needs to run, and nothing can be skipped, on the parent's
side. It is set here and not between fork and exec, where no Python may run beside gRPC's threads. Elsewhere the
command runs without this.

Imports the standard library only, and is run as a script: starting a service waits for it.
"""

import os
import sys

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def die_with_parent(parent_pid: int) -> None:
    """Asks for SIGKILL at the parent's end; exits at once where the parent is no longer `parent_pid`."""
    import ctypes
    import signal

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:  # it ended before the setting was made
        sys.exit(1)


if __name__ == "__main__":
    if sys.platform == "linux":
        die_with_parent(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
