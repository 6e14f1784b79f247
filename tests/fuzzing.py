"""What every fuzz test does: seeded calls in threads, strict processes, and their memory and logs looked at.

FUZZ_CALLS (300) says how many calls the fuzz tests make together, FUZZ_SEED (1) which; a failure names the
call's number, and FUZZ_ONLY makes that call alone.
"""

import contextlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from processes import Process, running

NUM_CALLS = int(os.environ.get("FUZZ_CALLS", "300"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
ONLY = os.environ.get("FUZZ_ONLY")
# A call that has not ended so long after its deadline hangs.
BOUND_SECONDS = 20.0
MAX_GROWTH_BYTES = 96 << 20
MAX_NEW_FILES = 32
NUM_THREADS = 8
# Calls after which memory is looked at for the first time: caches are filled then.
_WARM_SHARE = 0.4
# Development mode: asyncio's debug mode, warnings that are off otherwise, faulthandler, checks in malloc.
_STRICT = {"PYTHONDEVMODE": "1", "PYTHONTRACEMALLOC": "0"}
_WRONG = re.compile(
    r"Traceback|never retrieved|never awaited|Warning:|internal error|Fatal Python error|_crashed|[Uu]nhandled"
    r'|"level": "(error|critical)"'
)
_FORBIDDEN = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service."""

    path: str
    request: Descriptor


def methods_of(*services: ServiceDescriptor) -> list[Method]:
    """All methods of these services."""
    return [
        Method(f"/{service.full_name}/{method.name}", method.input_type)
        for service in services
        for method in service.methods
    ]


def call_raw(
    rng: random.Random, channel: grpc.Channel, path: str, messages: Sequence[bytes], seconds: float
) -> tuple[str, list[bytes]]:
    """Makes a call of any kind with these bytes for messages; returns its end and what was answered.

    AssertionError where the end is one that no bytes may lead to, or does not come.
    """
    begun, answers = time.monotonic(), []
    leaves_after = rng.choice((None, None, None, 0, 1, 3))
    call = channel.stream_stream(path)(iter(messages), timeout=seconds, metadata=_metadata(rng))
    try:
        if leaves_after == 0:
            call.cancel()
        for answer in call:
            answers.append(answer)
            if leaves_after is not None and len(answers) >= leaves_after:
                call.cancel()
        code = grpc.StatusCode.OK
    except grpc.RpcError:
        code = call.code()
    assert code not in _FORBIDDEN, f"{code.name}: {call.details()}"
    took = time.monotonic() - begun
    assert took < seconds + BOUND_SECONDS, f"took {took:.1f} s with a deadline of {seconds:g} s"
    return code.name, answers


def _metadata(rng: random.Random) -> list[tuple[str, str | bytes]]:
    choices: Sequence[list[tuple[str, str | bytes]]] = (
        [],
        [],
        [("authorization", "Bearer " + "x" * rng.choice((0, 1, 5000)))],
        [("x-bin", rng.randbytes(rng.choice((0, 50, 3000))))],
        [("traceparent", rng.choice(("00-" + "f" * 32 + "-" + "1" * 16 + "-01", "00-0-0-0", "~ ,;")))],
        [(f"x-{index}", "y") for index in range(50)],
    )
    return rng.choice(choices)


def make_calls(
    one: Callable[[random.Random], str], first: int, count: int, *, num_threads: int = NUM_THREADS
) -> Counter[str]:
    """Makes the calls numbered from `first` on, each with its own seed; returns how many ended how.

    AssertionError names the seeds of those that failed.
    """
    numbers = range(first, first + count) if ONLY is None else [int(ONLY)]

    def numbered(number: int) -> str:
        try:
            return one(random.Random(f"{SEED}:{number}"))
        except Exception as error:
            return f"FUZZ_SEED={SEED} FUZZ_ONLY={number}: {type(error).__name__}: {error}"

    with ThreadPoolExecutor(num_threads) as pool:
        ends = Counter(pool.map(numbered, numbers))
    failures = [end for end in ends if end.startswith("FUZZ_SEED")]
    assert not failures, "\n".join(failures[:20])
    return ends


@contextmanager
def strictly(module: str, *flags: str) -> Iterator[Process]:
    """A service in Python's development mode; at the end it must be alive, and have logged nothing wrong."""
    with running(module, *flags, environment=_STRICT) as process:
        yield process
        assert process.process.poll() is None, f"{module} has ended: {process.lines[-20:]}"
        wrong = [line for line in process.lines if _WRONG.search(line)]
        assert not wrong, "\n".join(wrong[:20])


def calls_with_flat_memory(
    one: Callable[[random.Random], str],
    first: int,
    count: int,
    *processes: Process,
    num_threads: int = NUM_THREADS,
) -> Counter[str]:
    """`make_calls`; behind a part of them the processes must not grow, in memory or open files."""
    num_warm = int(count * _WARM_SHARE)
    ends = make_calls(one, first, num_warm, num_threads=num_threads)
    before = [holdings(process.process.pid) for process in processes]
    if ONLY is None:
        ends += make_calls(one, first + num_warm, count - num_warm, num_threads=num_threads)
    for process, (num_bytes, num_files) in zip(processes, before, strict=True):
        now_bytes, now_files = holdings(process.process.pid)
        print(f"{process.process.args[2]}: {num_bytes >> 20} to {now_bytes >> 20} MiB, {now_files} files")
        assert now_bytes - num_bytes < MAX_GROWTH_BYTES
        assert now_files - num_files < MAX_NEW_FILES
    return ends


def holdings(process_id: int) -> tuple[int, int]:
    """Resident bytes and open files of a process and those that it has started."""
    num_bytes = num_files = 0
    pids = [process_id]
    for pid in pids:  # which grows
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):  # one that has ended
            num_bytes += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            num_files += len(list((folder / "fd").iterdir()))
            for children in folder.glob("task/*/children"):
                pids += map(int, children.read_text().split())
    return num_bytes, num_files
