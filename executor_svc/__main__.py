"""The `nanoserve-executor` command: the executor's process under a small parent that ends it when it hangs."""

import os
import sys
from collections.abc import Sequence

# Whoever asks for help, or for no parent, is served by the process itself; so is a rank that rank 0 ends.
_ALONE = {"-h", "--help", "--no-watchdog"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an executor until it is told to stop; see process.py for the exit status, 1 where it hung."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if _ALONE & set(arguments) or os.environ.get("RANK", "0") != "0":
        from executor_svc import process

        return process.main(arguments)
    from executor_svc.watchdog import watch

    return watch([sys.executable, "-P", "-m", "executor_svc.process", *arguments])


if __name__ == "__main__":
    sys.exit(main())
