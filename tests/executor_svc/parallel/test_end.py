"""How a rank ends: at once, and with its reason told."""

import subprocess
import sys

_TWO_ENDINGS = """
import threading, time
import structlog
from executor_svc.parallel.end import end_process

begun = threading.Event()

def slowly(logger, name, event):
    begun.set()
    time.sleep(0.3)
    return event

structlog.configure(processors=[slowly, structlog.processors.JSONRenderer()])
threading.Thread(target=end_process, args=("first",)).start()
begun.wait()
end_process("second")
"""


def test_of_two_threads_that_end_the_process_the_first_tells_why_to_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", _TWO_ENDINGS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, '{"event": "first"}\n'), done.stderr
