"""The process that tries guides: it compiles one after the other, and dies of one that takes too much of anything.

Reads lines of JSON from stdin: what GrammarCompiler is made with, then guides. Writes one for each: null, or what is
wrong with the guide. It ends with its input, and while it compiles by a timer, so it outlives no scheduler.
"""

import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path

from scheduler_svc.core.request import Guide
from scheduler_svc.grammars import GrammarCompiler, GrammarError

# What one guide may take. The threads that compile what has passed here have larger stacks.
MAX_SECONDS = 2.0
_STACK_BYTES = 16 * 1024 * 1024
_MEMORY_BYTES = 256 * 1024 * 1024


def _answer(verdict: str | None) -> None:
    sys.stdout.write(json.dumps(verdict) + "\n")
    sys.stdout.flush()


def _try(compiler: GrammarCompiler, guide: Guide) -> str | None:
    # Nothing handles its signal: the kernel ends the process, whatever it does. By the process's own time, as a guide
    # is not to blame for a machine that is held up.
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        compiler.build(guide)
    except GrammarError as error:
        return str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def _limit_memory() -> None:
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve() -> None:
    compiler = GrammarCompiler(**json.loads(sys.stdin.buffer.readline()))
    _limit_memory()
    _answer(None)
    for line in sys.stdin.buffer:
        _answer(_try(compiler, Guide(**json.loads(line))))


def main() -> None:
    """Serves until the input ends. Signals to the process group are left to the scheduler."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
