"""`python -m nanoserve_client` is the `nanoserve` command."""

import sys

from nanoserve_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
