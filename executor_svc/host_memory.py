"""How much memory this process may still take: what the machine has left, and its control groups allow."""

import os
from collections.abc import Iterator
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that can be had without swapping; all of the machine's, where the system does not say.

    `root` is where /proc and /sys are looked for.
    """
    free = [_machine_bytes(root)]
    for folder in _memory_groups(root):
        for prefix, limit, usage in (
            ("", "memory.max", "memory.current"),
            ("total_", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                # Like MemAvailable: what files fill can be had again, and a checkpoint just read fills much.
                stat = _table(folder / "memory.stat")
                dropped = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                free.append(max(0, most - used + dropped))
    return min(free)


def _machine_bytes(root: Path) -> int:
    kib = _table(root / "proc/meminfo").get("MemAvailable:")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if kib is None else kib * 1024


def _memory_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups around this process, of either version: each may limit its memory."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            mounted = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            own = mounted / path.strip("/")
            yield own
            # Up to the mount: in a container that is its own group, whatever the path says.
            yield from (parent for parent in own.parents if parent.is_relative_to(mounted))


def _table(path: Path) -> dict[str, int]:
    """A file of lines that each begin with a name and a whole number; empty where there is no such file."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or it says "max"."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
