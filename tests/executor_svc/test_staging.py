"""The ring of pinned buffers: what arrives, and that no buffer is filled again before the device has read it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_models import gpu

from executor_svc.staging import StagingRing, upload

CPU = torch.device("cpu")

arrays = st.one_of(
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9).map(lambda values: np.array(values, np.int32)),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9).map(lambda values: np.array(values, np.int64)),
    st.lists(st.floats(width=32, allow_nan=False), max_size=9).map(lambda v: np.array(v, np.float32)),
)


class LoggedEvent:
    """An event that notes what is done with it in a log of all."""

    def __init__(self, log: list[tuple[str, int]], index: int) -> None:
        self.log, self.index = log, index

    def record(self) -> None:
        self.log.append(("record", self.index))

    def synchronize(self) -> None:
        self.log.append(("synchronize", self.index))


@given(st.lists(st.lists(arrays, min_size=1, max_size=5), min_size=1, max_size=6))
def test_arrays_of_any_types_arrive_as_they_were(uploads: list[list[NDArray[Any]]]) -> None:
    ring = StagingRing(2, CPU)
    for parts in uploads:
        for part, tensor in zip(parts, ring.upload(parts), strict=True):
            assert tensor.numpy().dtype == part.dtype
            np.testing.assert_array_equal(tensor.numpy(), part)


def test_a_slot_is_waited_for_before_it_is_filled_again_and_recorded_after() -> None:
    log: list[tuple[str, int]] = []
    events = iter(range(3))
    ring = StagingRing(3, CPU, lambda: LoggedEvent(log, next(events)))
    for _ in range(7):
        ring.upload([np.arange(4, dtype=np.int32)])
    expected = [(what, turn % 3) for turn in range(7) for what in ("synchronize", "record")]
    assert log == expected


def test_uploads_stay_as_they_are_until_the_ring_has_gone_round() -> None:
    ring = StagingRing(3, CPU)
    parts = [np.full(5, value, np.int32) for value in range(3)]
    tensors = [ring.upload([part])[0] for part in parts]
    assert [int(tensor[0]) for tensor in tensors] == [0, 1, 2]


def test_a_slot_grows_to_what_it_must_carry() -> None:
    ring = StagingRing(2, CPU)
    large = np.arange(10**6, dtype=np.int64)
    for _ in range(3):
        (tensor,) = ring.upload([large])
        np.testing.assert_array_equal(tensor.numpy(), large)


def test_an_uploaded_tensor_is_a_copy_of_its_own() -> None:
    array = np.arange(3, dtype=np.int32)
    tensor = upload(array, CPU)
    array[0] = 9
    assert tensor.tolist() == [0, 1, 2]


@gpu
@pytest.mark.parametrize("num_slots", [1, 4])
def test_cuda_reads_each_upload_before_its_slot_is_filled_again(num_slots: int) -> None:
    device = torch.device("cuda:0")
    ring = StagingRing(num_slots, device, torch.cuda.Event)
    targets = torch.zeros(32, 1000, dtype=torch.int32, device=device)
    for turn in range(32):
        torch.cuda._sleep(1_000_000)
        (tensor,) = ring.upload([np.full(1000, turn, np.int32)])
        targets[turn].copy_(tensor)
    assert targets.cpu().tolist() == [[turn] * 1000 for turn in range(32)]


@pytest.mark.parametrize("count", [33_000, 300_000])
def test_what_is_too_large_for_a_slot_arrives_and_leaves_the_slots_as_they_are(count: int) -> None:
    log: list[tuple[str, int]] = []
    ring = StagingRing(1, CPU, lambda: LoggedEvent(log, 0))
    large = np.arange(count, dtype=np.int64)
    kept = ring.upload([np.array([7, 8], np.int32)])[0]
    (arrived,) = ring.upload([large])
    np.testing.assert_array_equal(arrived.numpy(), large)
    assert kept.tolist() == [7, 8]
    assert log == [("synchronize", 0), ("record", 0)]
