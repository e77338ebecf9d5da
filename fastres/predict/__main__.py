"""``python -m fastres.predict``."""

from __future__ import annotations

import sys

from fastres.predict import main

if __name__ == "__main__":
    sys.exit(main())
