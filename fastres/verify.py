"""``python -m fastres.verify``. In Python, ``fastres.verify`` is the function, not this module."""

from __future__ import annotations

import sys

if __name__ != "__main__":
    raise ImportError("run it as python -m fastres.verify; the function is fastres.verify()")

from fastres.verify_command import main

sys.exit(main())
