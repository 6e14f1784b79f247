"""What Linux says about processes: who descends from whom, and what each holds."""

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What processes hold, all together."""

    rss_bytes: int
    num_descriptors: int
    num_threads: int


def descendants(pid: int) -> list[int]:
    """Process ids of all that descend from `pid`, children before their own."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for parent in found:
        found += sorted(children.get(parent, []))
    return found[1:]


def is_running(pid: int) -> bool:
    """Whether such a process runs; a zombie does not."""
    state = _stat(pid)
    return state is not None and state[0] not in ("Z", "X")


def use_of(pids: list[int]) -> ProcessUse:
    """What those of `pids` that run hold."""
    held = [use for pid in pids if (use := _use(pid)) is not None]
    return ProcessUse(
        sum(use.rss_bytes for use in held),
        sum(use.num_descriptors for use in held),
        sum(use.num_threads for use in held),
    )


def largest(pids: list[int]) -> int:
    """The one of `pids`, at least one, that holds the most memory."""
    return max(pids, key=lambda pid: use_of([pid]).rss_bytes)


def _use(pid: int) -> ProcessUse | None:
    folder = _PROC / str(pid)
    try:
        resident = int((folder / "statm").read_text().split()[1])
        return ProcessUse(
            resident * _PAGE_BYTES, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task"))
        )
    except OSError:
        return None


def _parents() -> dict[int, int]:
    """Every process's parent."""
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]
    return {pid: int(state[1]) for pid in pids if (state := _stat(pid)) is not None}


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third, the state, on; the second, a name, may hold anything."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
