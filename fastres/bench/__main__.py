"""``python -m fastres.bench``."""

from __future__ import annotations

import sys

from fastres.bench import main

if __name__ == "__main__":
    sys.exit(main())
