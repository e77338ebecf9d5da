"""``python -m fastres.roofline``."""

from __future__ import annotations

import sys

from fastres.roofline import main

if __name__ == "__main__":
    sys.exit(main())
