"""For all tests: how the processes that run them, and those that they start, are set up."""

import os
import signal
from pathlib import Path

import pytest
from certificates import Authorities, make_authorities

# A shell has what it starts in the background ignore Ctrl-C, and that is handed down. A handler is not: whoever the
# tests start has the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports Triton, which reads it then: without a GPU its kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Before anything imports torch, whoever the tests start included: models as small as these gain nothing from a second
# thread, and the processes of a test, and tests side by side, would wait for one another's.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    """Two authorities, each with a good certificate and an expired one."""
    return make_authorities(tmp_path_factory.mktemp("certificates"))
