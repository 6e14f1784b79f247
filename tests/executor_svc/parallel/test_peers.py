"""Which way a message is summed."""

import itertools

import pytest
import torch

from executor_svc.parallel.peers import (
    TWO_SHOT_SIZES,
    Way,
    check_mode,
    choose_way,
    chooses_fused,
    largest_message,
)
from executor_svc.parallel.place import Place

MESSAGES = [2**power for power in range(8, 27)]


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
def test_the_largest_messages_go_by_the_group_and_two_shot_only_where_it_is_made(size: int) -> None:
    ways = [choose_way("auto", size, num_bytes) for num_bytes in MESSAGES]
    assert ways[-1] is Way.GROUP
    assert (Way.TWO_SHOT in ways) == (size in TWO_SHOT_SIZES)
    changes = sum(a is not b for a, b in itertools.pairwise(ways))
    assert changes == len(set(ways)) - 1 + (ways[0] is Way.GROUP), "each way has one range of sizes"


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("mode", ["auto", "nccl", "one-shot", "two-shot"])
def test_the_buffer_holds_every_message_that_does_not_go_by_the_group(mode: str, size: int) -> None:
    for largest in (2**12, 2**25):
        held = largest_message(mode, size, largest)
        for num_bytes in MESSAGES:
            way, is_fused = choose_way(mode, size, num_bytes), chooses_fused(mode, size, num_bytes)
            if num_bytes <= largest and (way is not Way.GROUP or is_fused):
                assert num_bytes <= held


def test_what_cannot_be_had_is_refused_by_the_flag_s_name() -> None:
    place = Place(0, 2, 0, 2, "127.0.0.1")
    check_mode("auto", place, torch.device("cpu"))
    for mode in ("one-shot", "two-shot"):
        with pytest.raises(ValueError, match=f"^--all-reduce: {mode} needs CUDA devices"):
            check_mode(mode, place, torch.device("cpu"))


@pytest.mark.parametrize(
    ("mode", "place", "said"),
    [
        ("two-shot", Place(0, 3, 0, 3, "127.0.0.1", True), "two-shot needs .* ranks, not 3"),
        ("one-shot", Place(0, 4, 0, 2, "127.0.0.1", True), "one-shot needs all ranks on one host"),
    ],
)
def test_ranks_that_a_way_is_not_made_for_are_refused_by_the_flag_s_name(
    mode: str, place: Place, said: str
) -> None:
    pytest.importorskip("triton", reason="ranks on CUDA need Triton")
    with pytest.raises(ValueError, match=f"^--all-reduce: {said}"):
        check_mode(mode, place, torch.device("cuda"))
    check_mode("auto", place, torch.device("cuda"))
