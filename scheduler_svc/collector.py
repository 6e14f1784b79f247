"""What Python's garbage collector is told in a process that serves: streams should not wait for it."""

import gc

# Containers made, less those gone, before the young are looked at: the default 700 is the tokens of three steps.
_THRESHOLD = 20_000


def settle_collector() -> None:
    """To be called when all that stays has been loaded: it is not looked at again, and the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_THRESHOLD, 20, 50)
