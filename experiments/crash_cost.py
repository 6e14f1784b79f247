"""What an executor that is killed costs the streams that run: the latency it adds, and their longest pause.

    python experiments/crash_cost.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

The same requests twice, the second time with the executor killed (SIGKILL) when half of the tokens are there. `away`
is how long the scheduler had no executor: the supervisor's pause and the start, weights and graphs included. What is
left of the added latency is the sequences' computing again. Every stream must have all of its tokens, or the case
fails.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from benchmarks.load import Outcome
from benchmarks.report import percentile, rounded
from benchmarks.watch import Reading, watched
from benchmarks.workloads import equal_prompts
from experiments.harness import Bench, Case, main
from experiments.sizes import Sizes
from experiments.store import Row, StudyError

NAME = "crash_cost"
_POLL_SECONDS = 0.02
_MOST_SECONDS = 120.0


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """One a number of streams."""
    longest = sizes.crash.num_prompt_tokens + sizes.crash.num_output_tokens
    return [
        Case(
            f"streams: {streams}",
            {"workload": repr(sizes.crash), "streams": streams},
            partial(_measure, sizes=sizes, streams=streams),
            (f"--max-model-len={longest}", f"--max-num-seqs={max(sizes.crash_streams)}"),
            ("--no-enable-prefix-caching",),
        )
        for streams in sizes.crash_streams
    ]


def _measure(bench: Bench, sizes: Sizes, streams: int) -> Row:
    runs = [equal_prompts(sizes.crash, streams, run) for run in range(3)]
    bench.clients.run(runs[0])  # the warm-up
    undisturbed = bench.clients.run(runs[1])
    half = streams * sizes.crash.num_output_tokens // 2
    killer = threading.Thread(target=_kill_after, args=(bench, half))
    killer.start()
    outcome, readings = watched(bench.server, lambda: bench.clients.run(runs[2]))
    killer.join()
    away = seconds_away(readings)
    bench.server.forget_ends()
    added = outcome.seconds - undisturbed.seconds
    return rounded(
        {
            "streams": streams,
            "tokens_at_the_kill": half,
            "undisturbed_s": undisturbed.seconds,
            "crashed_s": outcome.seconds,
            "added_s": added,
            "away_s": away,
            "added_beside_away_s": added - away,
            "longest_pause_s_p50": percentile(_longest_pauses(outcome), 0.5),
            "usual_pause_s_p50": percentile(_longest_pauses(undisturbed), 0.5),
            "output_tokens": outcome.num_output_tokens,
        }
    )


def _kill_after(bench: Bench, num_tokens: int) -> None:
    assert bench.server.local is not None  # the harness starts its servers
    begun, before = time.monotonic(), bench.server.load().num_output_tokens
    while bench.server.load().num_output_tokens - before < num_tokens:
        if time.monotonic() - begun > _MOST_SECONDS:
            return  # the load has failed, which is told elsewhere
        time.sleep(_POLL_SECONDS)
    os.kill(bench.server.local.executor_pid, signal.SIGKILL)


def seconds_away(readings: Sequence[Reading]) -> float:
    """From the first reading without an executor to the first with one again; StudyError where none was without."""
    away = [at for at, load in readings if not load.executor_healthy]
    if not away:
        raise StudyError("the executor was not seen to be away: the requests were over too soon")
    back = [at for at, load in readings if at > away[0] and load.executor_healthy]
    return (back[0] if back else readings[-1][0]) - away[0]


def _longest_pauses(outcome: Outcome) -> list[float]:
    """Of each stream, between two of its messages."""
    return [max((b - a for a, b in pairwise(stream.arrivals)), default=0.0) for stream in outcome.streams]


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
