"""Recordings to calibrate from are made by the harnesses of core and replay."""

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
for folder in (_TESTS / "core", _TESTS / "replay"):
    sys.path.insert(0, str(folder))
