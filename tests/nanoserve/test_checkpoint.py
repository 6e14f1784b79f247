"""Where a model is looked for."""

from pathlib import Path

import pytest

from nanoserve.checkpoint import CheckpointError, demo_checkpoint, find_checkpoint


@pytest.mark.parametrize(
    "model", ["/nonexistent", "./nonexistent/model", "~/nonexistent/model", "nonexistent"]
)
def test_a_directory_that_is_not_there_is_named_with_its_flag(model: str) -> None:
    with pytest.raises(CheckpointError, match=f"^--model: {model}: no such directory$"):
        find_checkpoint(model, weights=True)


def test_a_local_directory_is_taken_as_it_is_and_none_is_the_demo(tmp_path: Path) -> None:
    assert find_checkpoint(str(tmp_path), weights=False) == tmp_path
    assert find_checkpoint(None, weights=True) == demo_checkpoint()
