"""The transcripts in golden/: what the core decides in named situations, to be read.

After a change that is meant to decide otherwise, `UPDATE_GOLDEN=1 pytest tests/scheduler_svc/core/test_golden.py`
writes them anew, commands and comments left as they are; the difference is then read line by line before it is
committed.
"""

import os
from pathlib import Path

import pytest
from transcripts import Transcript

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))


def test_there_are_transcripts():
    assert len(GOLDEN) >= 12


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_core_decides_as_the_transcript_says(path: Path):
    text = path.read_text()
    now = Transcript().run(text)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(now)
    else:
        assert now == text
