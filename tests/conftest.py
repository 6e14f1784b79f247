"""For all tests: what a shell that runs them in the background does to the processes that they start is undone."""

import signal

# A shell has what it starts in the background ignore Ctrl-C, and that is handed down. A handler is not: whoever the
# tests start has the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)
