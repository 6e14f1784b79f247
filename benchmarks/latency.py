"""How long one waits, through the services: W3 (a decode step), W4 (a long prompt, cold and cached), W5 (TTFT, ITL)."""

import sys

from benchmarks.runner import run

if __name__ == "__main__":
    sys.exit(run(__doc__, ("W3", "W4", "W5")))
