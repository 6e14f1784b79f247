"""Which rank this process is, as `torchrun` says it in the environment; rank 0 says it to ranks it starts likewise."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """One rank among `size`; `local_rank` and `local_size` count those of this host."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    master: str
    """The host of rank 0, as the others reach it."""
    overlapping: bool = False
    """Whether all ranks share one CUDA device, as only tests have it: NCCL does not, so gloo takes its place."""

    @property
    def device_index(self) -> int:
        """Its CUDA device on this host."""
        return 0 if self.overlapping else self.local_rank


def is_overlapping(environment: Mapping[str, str]) -> bool:
    """Whether torch has been told that ranks may share a device."""
    return environment.get("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES") == "1"


def read_place(environment: Mapping[str, str], size: int) -> Place | None:
    """None where nobody has said; ValueError, naming the flag, where it is not said for `size` ranks."""
    world = environment.get("WORLD_SIZE")
    if world is None or "RANK" not in environment or (world == "1" and size == 1):
        return None
    if world != str(size):
        raise ValueError(
            f"--tensor-parallel-size: is {size}, but this is one of WORLD_SIZE={world} processes"
        )
    try:
        rank = int(environment["RANK"])
        return Place(
            rank=rank,
            size=size,
            local_rank=int(environment.get("LOCAL_RANK", rank)),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", size)),
            master=environment["MASTER_ADDR"],
            overlapping=is_overlapping(environment),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"--tensor-parallel-size: the environment of torchrun is wrong: {error}") from error
