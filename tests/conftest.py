"""For all tests: how the processes that run them, and those that they start, are set up."""

import os
import signal
from pathlib import Path

# A shell has what it starts in the background ignore Ctrl-C, and that is handed down. A handler is not: whoever the
# tests start has the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports Triton, which reads it then: without a GPU its kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
