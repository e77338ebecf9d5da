"""``python -m fastres.export``."""

from __future__ import annotations

import sys

from fastres.export.command import main

if __name__ == "__main__":
    sys.exit(main())
