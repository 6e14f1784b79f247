"""Recordings come from the core beside a virtual executor, and from whole schedulers: the harnesses of both."""

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
for folder in (_TESTS, _TESTS / "core"):
    sys.path.insert(0, str(folder))
