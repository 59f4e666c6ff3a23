"""`python -m vine_factory` is the `vine_factory` command."""

from __future__ import annotations

import sys

from vine_factory.cli import main

if __name__ == "__main__":
    sys.exit(main())
