"""A process that dies with its parent: killed with it, gone where it is gone already, and no heir of its variable."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nanoserve.parent import child_environment, die_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's own")

CHILD = """
import os, signal, sys
from nanoserve.parent import die_with_parent
die_with_parent(os.environ)
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
HEIR = """
import os
from nanoserve.parent import die_with_parent
die_with_parent(os.environ)
print(dict(os.environ))
"""
PARENT = """
import os, subprocess, sys, time
from nanoserve.parent import child_environment
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=child_environment(os.environ))
time.sleep(60)
"""


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has asked for."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_stopped_child_is_killed_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not has_ended(child)
        parent.kill()
    end = time.monotonic() + 10
    while not has_ended(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_whose_parent_is_gone_ends_and_says_so():
    environment = child_environment(os.environ) | {"NANOSERVE_PARENT": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "process 1, which started this one, is gone" in ended.stderr


def test_what_was_started_otherwise_lives_on_and_the_variable_is_not_inherited():
    die_with_parent({})
    environment = child_environment({"PATH": "/bin"})
    assert environment == {"PATH": "/bin", "NANOSERVE_PARENT": str(os.getpid())}
    environment = child_environment(os.environ)
    said = subprocess.run(
        [sys.executable, "-c", HEIR], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "PATH" in said.stdout
    assert "NANOSERVE_PARENT" not in said.stdout
