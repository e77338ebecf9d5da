"""``python -m fastres.inspect``."""

from __future__ import annotations

import sys

from fastres.inspect import main

if __name__ == "__main__":
    sys.exit(main())
