"""Tokens a second through the services: W1 and W2 (many requests of random lengths at once), W5 (a closed loop)."""

import sys

from benchmarks.runner import run

if __name__ == "__main__":
    sys.exit(run(__doc__, ("W1", "W2", "W5")))
